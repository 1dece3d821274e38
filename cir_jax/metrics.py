"""Exact image metrics in float64 on the host: the numbers that go into tables.

All take 8-bit images, for that is what is published and what a viewer sees: restored
images are clipped and rounded before they are measured. Checked against the published
JPEG rows by their definitions, and in the tests against independent implementations.
"""

import math

import numpy as np
from jaxtyping import Float64, UInt8

PEAK = 255.0
SSIM_SIGMA = 1.5
SSIM_WINDOW = 11
SSIM_C1, SSIM_C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
BLOCK = 8


def luma(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 1"]:
    """Y of BT.601 in limited range (16..235), rounded: MATLAB's rgb2ycbcr.

    Not the full-range grey that JPEG and OpenCV use; the two differ by 0.75 dB of PSNR
    at quality 10.
    """
    weights = np.array([65.481, 128.553, 24.966]) / PEAK
    y = image.astype(np.float64) @ weights + 16.0
    return np.round(y).astype(np.uint8)[..., None]


def mse(a: UInt8[np.ndarray, "h w c"], b: UInt8[np.ndarray, "h w c"]) -> float:
    """Mean squared error over all pixels and channels jointly, 8-bit units squared."""
    return float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))


def psnr(a: UInt8[np.ndarray, "h w c"], b: UInt8[np.ndarray, "h w c"]) -> float:
    """Peak signal-to-noise ratio in dB, all channels jointly; infinite if equal."""
    return decibels(mse(a, b))


def psnr_b(
    clean: UInt8[np.ndarray, "h w c"], restored: UInt8[np.ndarray, "h w c"]
) -> float:
    """PSNR with the blocking effect factor added to the error, in dB.

    Yim and Bovik, Quality assessment of deblocked images (TIP 2011), eq. 13-18, with
    the blocking measured on the luma of the restored image, as FBCNN's tables do. Not
    symmetric: the second image is the one whose blocking counts.
    """
    y = luma(restored) if restored.shape[-1] == 3 else restored
    return decibels(mse(clean, restored) + blocking_effect(y[..., 0]))


def blocking_effect(image: UInt8[np.ndarray, "h w"]) -> float:
    """Blocking effect factor of one channel, 8-bit units squared, at least 0.

    The mean squared step across 8x8 block borders minus the mean squared step
    elsewhere, times log2(8) / log2(shorter side). As in the published code, borders are
    counted as size // 8 - 1 a side, one fewer than there are where the size is no
    multiple of 8.
    """
    image = image.astype(np.float64)
    height, width = image.shape
    border = other = 0.0
    for axis in (0, 1):
        steps = np.diff(image, axis=axis) ** 2
        at_border = np.moveaxis(steps, axis, 0)[BLOCK - 1 :: BLOCK].sum()
        border += at_border
        other += steps.sum() - at_border
    borders = height * (width // BLOCK - 1) + width * (height // BLOCK - 1)
    others = height * (width - 1) + width * (height - 1) - borders
    if borders <= 0 or others <= 0:
        return 0.0
    excess = border / borders - other / others
    return max(0.0, excess * math.log2(BLOCK) / math.log2(min(height, width)))


def ssim(a: UInt8[np.ndarray, "h w c"], b: UInt8[np.ndarray, "h w c"]) -> float:
    """Structural similarity, averaged over the valid area and then over channels.

    Wang et al., Image quality assessment (TIP 2004), eq. 13: Gaussian window of 11x11
    and sigma 1.5, K1 = 0.01, K2 = 0.03, range 255.

    Raises:
        ValueError: a side is shorter than the window of 11 pixels.
    """
    if min(a.shape[:2]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs sides of at least {SSIM_WINDOW} pixels, not {a.shape[:2]}"
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_a + variance_b + SSIM_C2)
    return float(np.mean(luminance * structure))


def _blur(image: Float64[np.ndarray, "h w c"]) -> Float64[np.ndarray, "_ _ c"]:
    """The Gaussian window's weighted mean at every place where it fits."""
    reach = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(reach**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        size = image.shape[axis] - SSIM_WINDOW + 1
        image = sum(
            weight * np.take(image, range(start, start + size), axis=axis)
            for start, weight in enumerate(weights)
        )
    return image


def decibels(error: float) -> float:
    """PSNR in dB of a mean squared error of 8-bit units; infinite for 0."""
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)
