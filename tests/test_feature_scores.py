import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from flax import nnx

from cir_jax import cli, feature_scores, image_io, weights
from cir_jax.feature_scores import probe, spearman
from cir_jax.models import build_model
from cir_jax.patches import cut_patches


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 25, 99], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 1, 2, 3], [5, 5, 7, 9], 1.0),  # equal ones share their ranks
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8208),  # scipy.stats.spearmanr
    ],
)
def test_the_rank_correlation(left, right, expected):
    assert spearman(np.float64(left), np.float64(right)) == pytest.approx(
        expected, abs=1e-4
    )


def test_a_probe_tells_what_a_plane_can_tell_and_nothing_else():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(2000, 5))
    plane = codes @ [1, -2, 0, 3, 0] > 0.5
    tells = probe(codes[:1000], plane[:1000])
    assert np.mean(tells(codes[1000:]) == plane[1000:]) > 0.98
    ring = (codes**2).sum(axis=1) > 4.35
    tells = probe(codes[:1000], ring[:1000])
    assert 0.4 < np.mean(tells(codes[1000:]) == ring[1000:]) < 0.6


def test_patches_are_cut_side_by_side():
    image = np.arange(5 * 9 * 3, dtype=np.uint8).reshape(5, 9, 3)
    patches = cut_patches(image, 4, Path("image.png"))
    assert patches.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(patches[1], image[:4, 4:8])


@pytest.fixture(scope="module")
def files(tmp_path_factory, photographs):
    """Folders of two small images each, and weights of small encoders."""
    folder = tmp_path_factory.mktemp("features")
    for name, place in {"fit": 0, "held_out": 100}.items():
        (folder / name).mkdir()
        for stem in ("coffee", "autumn"):
            crop = photographs[stem][place : place + 32, place : place + 48]
            image_io.write_png(
                folder / name / f"{stem}.png", np.ascontiguousarray(crop)
            )
    model = build_model(tiny.FEATURES, nnx.Rngs(0))
    weights.save(folder / "features.safetensors", model, {})
    return folder


def command(files, *further):
    folders = ["--fit", str(files / "fit"), "--images", str(files / "held_out")]
    arguments = [str(files / "features.safetensors"), *folders, *further]
    return feature_scores.main([*arguments, "--patch", "16"])


def test_the_command_measures_images_that_it_did_not_fit(files, tmp_path, capsys):
    scores = tmp_path / "scores.json"
    found = ["--quality", "10,90", "--json", str(scores)]
    assert command(files, *found) == cli.DONE
    told = capsys.readouterr().out
    assert "rank correlation" in told and "of 12 patches from" in told
    written = json.loads(scores.read_text())
    assert written["images"] == 2 and 0 <= written["probe"] <= 1
    assert -1 <= written["spearman"]["jpeg"] <= 1
    assert [row["quality"] for row in written["rows"]] == [10, 90]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--codec", "webp"], "these weights know jpeg, hevc"),
        (["--patch", "12"], "give a multiple of 8"),
        (["--patch", "64"], "smaller than a patch"),
        (["--images", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(files, arguments, words, capsys):
    folders = ["--fit", str(files / "fit"), "--images", str(files / "held_out")]
    name = str(files / "features.safetensors")
    assert feature_scores.main([name, *folders, *arguments]) == cli.WRONG_USE
    told = capsys.readouterr().err
    assert words in told and told.splitlines()[-1].startswith("error: ")
