"""Sets whose degraded images are files."""

import numpy as np
import pytest
import tiny

from cir_jax import Restorer, image_io, metrics
from cir_jax.compression import compressions, title
from cir_jax.errors import UserError
from cir_jax.evaluate import evaluate
from cir_jax.image_sets import ImageFolder, PairedFolder


def written(folder, images):
    for name, image in images.items():
        image_io.write_png(folder / name, image)


@pytest.fixture
def pairs(tmp_path, photographs):
    """Clean images as RESIDE has them, and hazy ones, two of the second."""
    first, second = (
        np.ascontiguousarray(image[:40, :56]) for image in [*photographs.values()][:2]
    )
    clean = {"0001.png": first, "0001_1.png": second}
    hazy = {
        "0001_0.8_0.2.png": first // 2 + 100,
        "0001_1_0.9_0.1.png": second // 2 + 90,
        "0001_1_0.95_0.2.png": second // 2 + 120,
    }
    written(tmp_path / "clean", clean)
    written(tmp_path / "hazy", hazy)
    partners = dict(zip(hazy, (first, second, second), strict=True))
    return tmp_path, partners, hazy


def paired(root, name="haze"):
    return PairedFolder(ImageFolder(root / "clean"), name, root / "hazy")


def test_partners_are_found_by_the_longest_stem(pairs):
    root, partners, hazy = pairs
    images = paired(root)
    assert list(images) == sorted(hazy) and len(images) == 3
    for index, name in enumerate(images):
        np.testing.assert_array_equal(images[name], partners[name])
        pair = images.degradation(images[name], 1, index)
        np.testing.assert_array_equal(pair.degraded, hazy[name])
        assert pair.bpp is None and pair.suffix == ""
    assert images.sizes == dict.fromkeys(hazy, (40, 56))
    assert title(images.degradation) == "haze"


def test_rain_pairs_with_norain(tmp_path, photographs):
    image = np.ascontiguousarray(photographs["coffee"][:32, :32])
    written(tmp_path / "clean", {"norain-001.png": image, "norain-002.png": image})
    written(tmp_path / "hazy", {"rain-002.png": image, "rain-001.png": image})
    assert list(paired(tmp_path, "rain")) == ["rain-001.png", "rain-002.png"]


def test_a_pair_of_sets_in_one_table(pairs):
    """Noise where there are clean images alone, the files elsewhere."""
    root, partners, hazy = pairs
    restorer = Restorer(tiny.Filter())
    sets = {"clean": ImageFolder(root / "clean"), "SOTS": paired(root)}
    report = evaluate(
        {"tiny": restorer}, sets, compressions("noise", (25,)), "all-in-one-3"
    )
    keys = [(r["set"], r["codec"], r["quality"], r["images"]) for r in report.rows()]
    assert keys == [("clean", "noise", 25, 2)] * 2 + [("SOTS", "haze", None, 3)] * 2
    *_, alone, row = report.rows()
    inside = np.s_[4:36, 4:52]  # of 40x56 the middle in multiples of 16
    expected = [
        [
            metrics.psnr(partners[name][inside], version)
            for version in (image[inside], restorer(image[inside]))
        ]
        for name, image in hazy.items()
    ]
    found = [alone["psnr"], row["psnr"]]
    assert found == pytest.approx(np.mean(expected, axis=0), abs=1e-9)
    assert row["bpp"] is None and report.to_json()["rows"][-1]["quality"] is None
    *_, table_row = report.table().split("\n\n")[1].splitlines()
    cells = [cell.strip() for cell in table_row.strip("|").split("|")]
    assert cells[:4] == ["SOTS", "haze", "-", "tiny"] and cells[-2] == "-"
    assert report.to_csv().splitlines()[-1].startswith("SOTS,haze,,tiny,")
    notes = report.table().split("\n\n")[2]
    assert "noise: NumPy's default_rng(0), anew for every image" in notes
    assert "images: clean 2, SOTS 3" in notes and "haze: degraded images" in notes
    with pytest.raises(UserError, match=r"\(haze\) are as large .* scale is 4"):
        evaluate({}, sets, compressions("noise", (25,)), scale=4)


@pytest.mark.parametrize("protocol", ["colour", "y", "gray"])
def test_other_protocols_take_pairs(pairs, protocol):
    root, partners, hazy = pairs
    (row,) = evaluate({}, {"s": paired(root)}, (), protocol).rows()
    psnr = [
        metrics.psnr(partners[name], image)
        if protocol == "colour"
        else metrics.psnr(metrics.luma(partners[name]), metrics.luma(image))
        for name, image in hazy.items()
    ]
    assert row["psnr"] == pytest.approx(np.mean(psnr), abs=1e-9)


def test_pairs_that_do_not_fit_are_named(pairs):
    root, partners, _ = pairs
    image = partners["0001_0.8_0.2.png"]
    wrong = root / "hazy" / "0002_0.8_0.2.png"
    written(root / "hazy", {wrong.name: image})
    with pytest.raises(UserError, match=r"0002_0\.8_0\.2\.png has no clean image in"):
        paired(root)
    written(root / "clean", {"0002.png": np.ascontiguousarray(image[:32])})
    with pytest.raises(UserError, match=r"is 56x40 pixels, its clean .* 56x32: give"):
        paired(root)
    wrong.unlink()
    with pytest.raises(UserError, match=r"0002\.png has no degraded .* 1 of 3 clean"):
        paired(root)
    (root / "clean" / "below").mkdir()
    written(root / "clean" / "below", {"0001.png": image})
    with pytest.raises(UserError, match=r"has 0001\.png and below/0001\.png, of the"):
        paired(root)
