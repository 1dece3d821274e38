"""Drawings as the command makes them."""

import numpy as np
import pytest

from cir_jax import image_io
from data_pipelines import drawings


def test_drawings_are_different_and_always_the_same(tmp_path):
    out = tmp_path / "below" / "drawings"
    assert drawings.main(["--out", str(out), "--count", "6"]) == 0
    assert [path.name for path in sorted(out.iterdir())] == [
        f"{number:04d}.png" for number in range(6)
    ]
    made = [image_io.read_rgb(path) for path in sorted(out.iterdir())]
    assert len({image.tobytes() for image in made}) == 6
    for number, image in enumerate(made):
        assert image.shape == (drawings.HEIGHT, drawings.WIDTH, 3)
        np.testing.assert_array_equal(image, drawings.drawing(number))
        # Flat ground and sharp edges: most neighbours are equal, some far apart.
        steps = np.abs(np.diff(image.astype(int), axis=1)).max(-1)
        assert (steps == 0).mean() > 0.7 and (steps > 40).mean() > 0.001


@pytest.mark.parametrize("count", ["0", "-1"])
def test_too_few_are_refused(tmp_path, capsys, count):
    assert drawings.main(["--out", str(tmp_path / "out"), "--count", count]) == 2
    assert f"--count is {count}: give at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert drawings.main(["--out", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "file" in line
