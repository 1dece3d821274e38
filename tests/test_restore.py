import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from cir_jax import Restorer, cli, image_io
from cir_jax.errors import UserError
from cir_jax.restore import restore_files


@pytest.fixture(scope="module")
def restorer():
    return Restorer(tiny.Filter())


@pytest.mark.parametrize("shape", [(16, 16), (13, 9), (1, 1), (3, 16)])
def test_any_size_comes_back_in_its_size(restorer, shape):
    image = np.random.default_rng(0).random((*shape, 3), np.float32)
    restored = restorer(image)
    assert restored.shape == image.shape and restored.dtype == np.float32
    eight_bit = restorer(image_io.to_uint8(image))
    assert eight_bit.shape == image.shape and eight_bit.dtype == np.uint8


def test_what_needs_no_padding_is_the_networks_own_output(restorer):
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    expected = tiny.Filter()(jnp.asarray(image[None]))
    np.testing.assert_allclose(restorer(image), expected[0], atol=1e-6)


def test_padding_mirrors_at_the_bottom_and_right(restorer):
    image = np.random.default_rng(0).random((13, 9, 3), np.float32)
    padded = np.concatenate([image, image[:-4:-1]], axis=0)
    padded = np.concatenate([padded, padded[:, :-8:-1]], axis=1)
    assert padded.shape == (16, 16, 3)
    np.testing.assert_array_equal(restorer(image), restorer(padded)[:13, :9])


def test_eight_bits_are_rounded_once(restorer):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    expected = image_io.to_uint8(restorer(np.float32(image) / 255))
    np.testing.assert_array_equal(restorer(image), expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float64),
    ],
    ids=lambda image: f"{image.shape}-{image.dtype}",
)
def test_other_arrays_are_refused(restorer, image):
    with pytest.raises(Exception, match=r"image|Type-check"):
        restorer(image)


def test_a_folder_keeps_its_tree_and_a_bad_file_stops_nothing(
    tmp_path, weights_file, capsys
):
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "below").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (13, 9, 3), np.uint8)
    Image.fromarray(pixels).save(source / "below" / "a.jpg")
    Image.fromarray(pixels).save(source / "b.png")
    (source / "bad.jpg").write_bytes(b"not a JPEG")
    arguments = ["restore", str(source), "-o", str(out), "--weights", str(weights_file)]
    assert cli.run(arguments) == cli.SOME_FAILED
    assert "bad.jpg is not an image" in capsys.readouterr().err
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert found == ["b.png", "below/a.png"]
    for name in ("b.png", "below/a"):
        original = next(source.glob(name.removesuffix(".png") + ".*"))
        expected = Restorer(weights_file)(image_io.read_rgb(original))
        result = image_io.read_rgb((out / name).with_suffix(".png"))
        np.testing.assert_array_equal(result, expected)


def test_a_second_run_leaves_finished_outputs_alone(tmp_path, restorer):
    source, out = tmp_path / "a.png", tmp_path / "out"
    Image.new("RGB", (8, 8), (200, 10, 10)).save(source)
    assert restore_files(restorer, [source], out, overwrite=False) == {}
    (out / "a.png").write_bytes(b"kept")
    assert restore_files(restorer, [source], out, overwrite=False) == {}
    assert (out / "a.png").read_bytes() == b"kept"
    assert restore_files(restorer, [source], out, overwrite=True) == {}
    assert image_io.read_rgb(out / "a.png").shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("inputs", "out", "words"),
    [
        (["nowhere.png"], "out", r"nowhere\.png does not exist"),
        (["empty"], "out", "empty holds no image"),
        (["full"], "full/out", "lies inside the input folder"),
        (["full/a.png"], "full", r"a\.png would be overwritten"),
        (["full/a.png", "full/a.jpg"], "out", "would both be written to"),
    ],
)
def test_wrong_use_is_named(tmp_path, restorer, inputs, out, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "full" / name)
    paths = [tmp_path / name for name in inputs]
    with pytest.raises(UserError, match=words):
        restore_files(restorer, paths, tmp_path / out, overwrite=False)
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["a.jpg", "a.png"]
