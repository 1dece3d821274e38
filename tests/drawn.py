"""Pictures that are no photographs: text, lines, flat graphics, night noise, dots.

The weights that ship have seen drawings of the first three kinds, not these; of the
last two none.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

SIZE = (256, 192)  # width, height
WORDS = "The quick brown fox jumps over the lazy dog. 0123456789"


def pictures() -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """One of each kind, by name, always the same ones."""
    return {
        "text": _text(),
        "line art": _line_art(),
        "flat graphics": _flat_graphics(),
        "night noise": _night_noise(),
        "halftone": _halftone(),
    }


def _text() -> np.ndarray:
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    for number, size in enumerate((9, 11, 14, 18, 24)):
        font = ImageFont.load_default(size)
        draw.text((6, 8 + 34 * number), WORDS, fill=(20, 20, 60), font=font)
    return np.asarray(image)


def _line_art() -> np.ndarray:
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    for radius in range(10, 100, 9):
        draw.ellipse((128 - radius, 96 - radius, 128 + radius, 96 + radius), outline=0)
    for x in range(0, 256, 16):
        draw.line((x, 0, 256 - x, 191), fill=0, width=1)
    return np.asarray(image)


def _flat_graphics() -> np.ndarray:
    image = Image.new("RGB", SIZE, (240, 240, 235))
    draw = ImageDraw.Draw(image)
    colours = ((200, 30, 40), (30, 120, 200), (250, 200, 30), (40, 160, 80))
    for number, colour in enumerate(colours):
        draw.rectangle((10 + 60 * number, 20, 55 + 60 * number, 90), fill=colour)
        draw.ellipse((10 + 60 * number, 110, 60 + 60 * number, 160), fill=colour)
    return np.asarray(image)


def _night_noise() -> np.ndarray:
    rng = np.random.default_rng(0)
    glow = np.linspace(8, 40, SIZE[0])[None, :, None] * np.array([1.0, 0.9, 0.7])
    noisy = glow + rng.normal(0, 6, (SIZE[1], SIZE[0], 3))
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _halftone() -> np.ndarray:
    """A gradient as a newspaper prints it: larger and larger dots, six pixels apart."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    screen = np.cos(2 * np.pi * x / 6) + np.cos(2 * np.pi * y / 6)
    ink = screen > 2 - 4 * x / SIZE[0]
    return np.where(ink[..., None], np.uint8(20), np.uint8([250, 245, 230]))
