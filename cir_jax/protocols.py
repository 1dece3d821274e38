"""Protocols by name: what is measured, on which channels and part of the image."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8

from cir_jax import metrics
from cir_jax.errors import unknown

Image = UInt8[np.ndarray, "h w c"]
Metric = Callable[[Image, Image], float]
"""Of the clean image and another one."""

METRICS: dict[str, Metric] = {
    "psnr": metrics.psnr,
    "ssim": metrics.ssim,
    "psnr_b": metrics.psnr_b,
    "psnr_y": lambda a, b: metrics.psnr(metrics.luma(a), metrics.luma(b)),
    "ssim_y": lambda a, b: metrics.ssim(metrics.luma(a), metrics.luma(b)),
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How an image is coded and measured.

    Attributes:
        text: as it is printed beside the numbers.
        metrics: names in `METRICS`.
        coded_grey: the image is made grey before it is coded.
        measured_grey: the restored image is made grey before it is measured.
        border: pixels that are cut off on every side before measuring.
    """

    text: str
    metrics: tuple[str, ...] = ("psnr", "ssim", "psnr_b")
    coded_grey: bool = False
    measured_grey: bool = False
    border: int = 0

    def coded(self, image: Image) -> UInt8[np.ndarray, "h w _"]:
        """The clean image as it is coded."""
        return grey(image) if self.coded_grey else image

    def measure(
        self, clean: Image, restored: Image, further: Mapping[str, Metric]
    ) -> dict[str, float]:
        """The metrics of a restored image.

        Args:
            clean: as it was coded, `coded`.
            restored: of the same shape.
            further: metrics of RGB images beside the protocol's, by name; they get
                grey in three channels.
        """
        if self.measured_grey:
            clean, restored = grey(clean), metrics.luma(restored)
        inside = slice(self.border, -self.border or None)
        pair = clean[inside, inside], restored[inside, inside]
        chosen = {name: METRICS[name] for name in self.metrics}
        scores = {name: metric(*pair) for name, metric in chosen.items()}
        pair = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in pair]
        return scores | {name: metric(*pair) for name, metric in further.items()}


def grey(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 1"]:
    """Y of BT.601 limited range; of an image that is grey already, its own values."""
    if (image == image[..., :1]).all():
        return image[..., :1]
    return metrics.luma(image)


COLOUR, CSR = "colour", "csr"
PROTOCOLS = {
    COLOUR: Protocol(
        "RGB jointly (PSNR-B: blocking of BT.601 limited-range Y), 8-bit rounding, "
        "no border crop, mean over images",
    ),
    "gray": Protocol(
        "Y of BT.601 limited range (MATLAB rgb2ycbcr), grey files as they are, coded "
        "as a grey image; colour networks get Y in three channels and their outputs "
        "are averaged; 8-bit rounding, no border crop, mean over images",
        coded_grey=True,
    ),
    "y": Protocol(
        "coded and restored in colour, measured on Y of BT.601 limited range (MATLAB "
        "rgb2ycbcr); 8-bit rounding, no border crop, mean over images",
        measured_grey=True,
    ),
    CSR: Protocol(
        "compressed-image super-resolution: images cut to a multiple of the scale, "
        "downscaled by MATLAB's bicubic, then compressed; RGB jointly and Y of BT.601 "
        "limited range (MATLAB rgb2ycbcr), 8-bit rounding, border crop 4, mean over "
        "images",
        ("psnr", "ssim", "psnr_y", "ssim_y"),
        border=4,
    ),
    "all-in-one": Protocol(
        "RGB jointly, 8-bit rounding, no border crop, mean over images",
        ("psnr", "ssim"),
    ),
}


def get_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        UserError: there is none; lists those that there are.
    """
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
