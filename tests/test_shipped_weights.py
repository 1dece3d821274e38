"""The weights that ship: what their cards say holds, and they do no harm."""

import re
import shutil
from pathlib import Path

import drawn
import numpy as np
import pytest

from cir_jax import Restorer, cli, codecs, image_io, metrics, weights
from cir_jax.errors import UserError
from cir_jax.weights import shipping

NAMES = tuple(weights.shipped())
README = Path(__file__).parents[1] / "README.md"
jpeg = codecs.get_codec("jpeg")
KNOWN_LOSSES = {("line art", 50): -0.2, ("line art", 95): -4, ("halftone", 95): -0.7}
"""Of sharp edges in good JPEGs, dB; the card names them."""


@pytest.fixture(scope="module")
def restorer():
    """One compiled program does for all pictures of this file."""
    return Restorer("default", tile=256)


@pytest.fixture(scope="module")
def crops(photographs):
    """The middle of each photograph, of one tile: 256 of 256x384 pixels."""
    return [image[:, 64:-64] for image in photographs.values()]


def compressed(image, quality):
    return jpeg.decode(jpeg.encode(image, quality))


def test_they_are_small_enough_to_ship():
    assert sum(path.stat().st_size for path in weights.shipped().values()) <= 10e6


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_card_with_scores_and_a_checksum(name):
    path = weights.shipped()[name]
    assert sorted(shipping.gains(path)) == [10, 20, 30, 40]
    text = shipping.card(path).read_text()
    for word in ("non-commercial", "Known limits", "steps", "commit", "hours"):
        assert word in text, word
    assert path.name in (path.parent / "SHA256SUMS").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_whose_checksum_is_wrong_is_refused(name, tmp_path):
    path = Path(shutil.copy(weights.shipped()[name], tmp_path))
    shutil.copy(weights.shipped()[name].parent / "SHA256SUMS", tmp_path)
    weights.load(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.* is damaged or was changed"):
        weights.load(path)


def test_the_command_lists_them_and_prints_a_card(capsys):
    assert cli.run(["weights"]) == cli.DONE
    table = capsys.readouterr().out
    for name, path in weights.shipped().items():
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {name} "))
        assert all(gain in row for gain in shipping.gains(path).values())
    assert cli.run(["weights", "default"]) == cli.DONE
    assert capsys.readouterr().out == shipping.card(weights.find("default")).read_text()
    with pytest.raises(UserError, match="unknown shipped weights 'promptcir_hal'"):
        cli.run(["weights", "promptcir_hal"])


def test_the_readme_has_the_cards_gains():
    (row,) = re.findall(r"^\| *`cir restore` .*", README.read_text(), re.MULTILINE)
    gains = shipping.gains(weights.find("default"))
    assert re.findall(r"\+\d\.\d\d", row) == [gains[q] for q in (10, 20, 30, 40)]


@pytest.mark.parametrize(("quality", "least"), [(10, 0.95), (40, 0.5), (95, 0.0)])
def test_photographs_gain(quality, least, crops, restorer):
    gains = []
    for image in crops:
        degraded = compressed(image, quality)
        before, after = (metrics.psnr(x, image) for x in (degraded, restorer(degraded)))
        gains.append(after - before)
    assert np.mean(gains) > least


@pytest.mark.parametrize("quality", [90, 95])
def test_a_jpeg_that_is_saved_again_stays(quality, crops, restorer):
    changes = []
    for image in crops:
        original = compressed(image, quality)
        again = compressed(original, quality)
        before, after = (metrics.psnr(x, original) for x in (again, restorer(again)))
        changes.append(after - before)
    assert np.mean(changes) > -0.05


def test_a_photograph_that_was_never_compressed_stays(crops, restorer):
    for image in crops:
        assert metrics.psnr(restorer(image), image) > 50


@pytest.mark.parametrize("quality", [10, 50, 95])
@pytest.mark.parametrize("kind", drawn.pictures())
def test_what_is_no_photograph_gains_and_keeps_its_colours(kind, quality, restorer):
    image = drawn.pictures()[kind]
    degraded = compressed(image, quality)
    restored = restorer(degraded)
    gain = metrics.psnr(restored, image) - metrics.psnr(degraded, image)
    assert gain > KNOWN_LOSSES.get((kind, quality), -0.05)
    drift = restored.mean((0, 1)) - degraded.mean((0, 1))
    assert np.abs(drift).max() <= 1


def test_the_command_takes_them_by_itself(tmp_path, photographs):
    image = photographs["coffee"]
    source = tmp_path / "coffee.jpg"
    source.write_bytes(jpeg.encode(image, 10))
    assert cli.run(["restore", str(source), "-o", str(tmp_path / "out")]) == cli.DONE
    restored = image_io.read_rgb(tmp_path / "out" / "coffee.png")
    gain = metrics.psnr(restored, image) - metrics.psnr(compressed(image, 10), image)
    assert gain > 0.5
