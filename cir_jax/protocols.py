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
        multiple: the image is cut in the middle to multiples of it before it is coded.
        first_seed: of the noise in the first image.
        one_seed: it is that of every image; otherwise each has the next whole number.
    """

    text: str
    metrics: tuple[str, ...] = ("psnr", "ssim", "psnr_b")
    coded_grey: bool = False
    measured_grey: bool = False
    border: int = 0
    multiple: int = 1
    first_seed: int = 3407
    one_seed: bool = False

    def coded(self, image: Image) -> UInt8[np.ndarray, "_ _ _"]:
        """The clean image as it is coded."""
        image = cut(image, self.multiple)
        return grey(image) if self.coded_grey else image

    def seed(self, index: int) -> int:
        """Of the noise in an image, by its index in the set.

        A function of nothing else, so that images can be shared out in any way.
        """
        return self.first_seed if self.one_seed else self.first_seed + index

    @property
    def seeding(self) -> str:
        """What `seed` does, in words."""
        if self.one_seed:
            return f"NumPy's default_rng({self.first_seed}), anew for every image"
        start = f"NumPy's default_rng({self.first_seed} + index)"
        return f"{start}, of the image in the sorted set, from 0"

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


def cut(image: Image, multiple: int) -> UInt8[np.ndarray, "_ _ c"]:
    """The middle of an image whose sides are multiples; of odd rests more is cut after.

    Args:
        image: of at least that many pixels a side.
        multiple: 1 leaves it whole.
    """
    height, width = (side // multiple * multiple for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def grey(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 1"]:
    """Y of BT.601 limited range; of an image that is grey already, its own values."""
    if (image == image[..., :1]).all():
        return image[..., :1]
    return metrics.luma(image)


COLOUR, GRAY, CSR, ALL_IN_ONE = "colour", "gray", "csr", "all-in-one"
_WHOLE = Protocol(
    "RGB jointly, whole images, 8-bit rounding, no border crop, mean over images; "
    "noise seeded 3407 + index and rounded to 8 bits (published: that seed; which "
    "generator, and whether rounded, is a guess; that code pads by repeating edges)",
    ("psnr", "ssim"),
)
PROTOCOLS = {
    COLOUR: Protocol(
        "RGB jointly (PSNR-B: blocking of BT.601 limited-range Y), 8-bit rounding, "
        "no border crop, mean over images",
    ),
    GRAY: Protocol(
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
    ALL_IN_ONE: _WHOLE,
    f"{ALL_IN_ONE}-3": Protocol(
        "RGB jointly, images cut in the middle to multiples of 16, 8-bit rounding, no "
        "border crop, mean over images; noise seeded 0 anew for every image and "
        "rounded to 8 bits (published: one NumPy generator seeded 0, 8-bit noise; "
        "which generator, and that it starts anew, is a guess)",
        ("psnr", "ssim"),
        multiple=16,
        first_seed=0,
        one_seed=True,
    ),
    f"{ALL_IN_ONE}-5": _WHOLE,
}


def get_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        UserError: there is none; lists those that there are.
    """
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
