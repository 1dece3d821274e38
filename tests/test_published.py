"""The codec's own rows against published ones, where the test sets are at hand.

    CIR_BENCHMARKS=folder pytest -m slow tests/test_published.py

looks for LIVE1, BSDS500 and Classic5 in that folder, as their distributions have them.
"""

import os
from pathlib import Path

import pytest

from cir_jax.benchmarks import find_benchmark
from cir_jax.compression import compressions
from cir_jax.evaluate import evaluate
from cir_jax.image_sets import ImageFolder

ROWS = {
    ("LIVE1", "colour"): [
        (25.69, 0.743, 24.20),
        (28.06, 0.826, 26.49),
        (29.37, 0.861, 27.84),
        (30.28, 0.882, 28.83),
    ],
    ("BSDS500", "colour"): [
        (25.84, 0.741, 24.12),
        (28.21, 0.827, 26.36),
        (29.57, 0.865, 27.71),
        (30.52, 0.887, 28.68),
    ],
    ("LIVE1", "gray"): [
        (27.77, 0.773, 25.33),
        (30.07, 0.851, 27.57),
        (31.41, 0.885, 28.92),
        (32.35, 0.904, 29.96),
    ],
    ("BSDS500", "gray"): [
        (27.80, 0.768, 25.10),
        (30.05, 0.849, 27.22),
        (31.37, 0.884, 28.53),
        (32.30, 0.903, 29.49),
    ],
    ("Classic5", "gray"): [
        (27.82, 0.760, 25.21),
        (30.12, 0.834, 27.50),
        (31.48, 0.867, 28.94),
        (32.43, 0.885, 29.92),
    ],
}
"""JPEG 10, 20, 30 and 40: PSNR, SSIM and PSNR-B, of FBCNN's tables."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "protocol"), ROWS)
def test_jpeg_measures_as_published(name, protocol):
    root = Path(os.environ.get("CIR_BENCHMARKS", "no benchmarks"))
    benchmark = find_benchmark(name)
    folder = benchmark.folder(root)
    if folder == root:
        pytest.skip(f"{name} is not in the folder CIR_BENCHMARKS")
    images = ImageFolder(folder)
    assert benchmark.complaints(images.sizes) == []
    jpegs = compressions("jpeg", (10, 20, 30, 40))
    report = evaluate({}, {name: images}, jpegs, protocol)
    for row, (psnr, ssim, psnr_b) in zip(
        report.rows(), ROWS[name, protocol], strict=True
    ):
        assert row["psnr"] == pytest.approx(psnr, abs=0.0101)
        assert row["ssim"] == pytest.approx(ssim, abs=0.00101)
        assert row["psnr_b"] == pytest.approx(psnr_b, abs=0.0101)
