import numpy as np
import pytest
import tiny
from PIL import Image

from cir_jax import Restorer, metrics, showcase
from cir_jax.compression import compressions
from cir_jax.evaluate import evaluate


@pytest.fixture(scope="module")
def evaluated(photographs):
    """An evaluation of a method that changes the images more and more."""
    images = {
        name: np.ascontiguousarray(image[:64, :80])
        for name, image in photographs.items()
    }
    given = (
        {"net": Restorer(tiny.Filter())},
        {"a/set": images},
        compressions("jpeg", (10, 40)),
    )
    return evaluate(*given), *given


def test_sheets_are_of_the_worst_the_median_and_the_best(evaluated, tmp_path):
    report, methods, sets, jpegs = evaluated
    files = showcase.write_sheets(tmp_path / "sheets", *evaluated)
    names = [f"a_set-jpeg-10-{place}.png" for place in ("worst", "median", "best")]
    assert [path.name for path in files] == names
    gains = {}
    for name, image in sets["a/set"].items():
        pair = jpegs[0](image, 1)
        restored = methods["net"](pair.degraded)
        gains[name] = metrics.psnr(image, restored) - metrics.psnr(image, pair.degraded)
    ranked = sorted(gains, key=gains.get)
    assert showcase._ranked(report, "a/set", jpegs[0], "net") == ranked
    for path in files:
        with Image.open(path) as sheet:
            assert min(sheet.size) > 400


def test_sheets_of_the_codec_alone_and_of_grey_images(evaluated, tmp_path):
    _, _, sets, jpegs = evaluated
    report = evaluate({}, sets, jpegs, "gray")
    files = showcase.write_sheets(tmp_path, report, {}, sets, jpegs)
    assert len(files) == 3 and all(path.is_file() for path in files)


def test_a_plot_needs_two_qualities(evaluated, tmp_path):
    report, methods, sets, jpegs = evaluated
    (path,) = showcase.write_rate_distortion(tmp_path, report)
    with Image.open(path) as plot:
        assert plot.size == (1200, 825)
        assert len(set(plot.convert("RGB").get_flattened_data())) > 50
    single = evaluate(methods, sets, jpegs[:1])
    assert showcase.write_rate_distortion(tmp_path, single) == []


def test_the_picture_shows_every_image_where_it_changed_most(photographs):
    class Marks(Restorer):
        """Changes one place of an image, the same in all."""

        def __call__(self, image):
            image = image.copy()
            image[100:120, 200:220] = (255, 0, 255)
            return image

    (jpeg,) = compressions("jpeg", (10,))
    marks = {"marks": Marks(tiny.Filter())}
    sheet = showcase.before_after(marks, photographs, jpeg, window=64, zoom=1)
    assert sheet.shape[0] > 4 * 64 and sheet.shape[1] > 3 * 64
    magenta = (sheet == (255, 0, 255)).all(axis=-1)
    assert magenta.sum() == len(photographs) * 20 * 20
