"""Drawings to train on: text, lines and flat shapes, made up, so free of any terms.

    python -m data_pipelines.drawings --out photos/drawings --count 64

Restorers that have seen photographs alone blur lettering and line art. Drawing number i
is always the same one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track

from cir_jax.cli import DONE, INTERRUPTED, WRONG_USE
from cir_jax.errors import UserError
from cir_jax.files import written_whole

WIDTH, HEIGHT = 512, 384
LARGEST = 3
"""Drawings are made up to so many times larger and averaged, for smooth edges."""
LETTERS = np.array(list("etaoinshrdlucmfwypvbgkETAOINSHRDL0123456789.,:-"))


def drawing(number: int) -> UInt8[np.ndarray, "384 512 3"]:
    """A drawing; its number says which."""
    rng = np.random.default_rng(number)
    pen = _Pen(rng, enlarged=int(rng.integers(1, LARGEST + 1)))
    kinds = (pen.lettering, pen.lines, pen.curves, pen.grid, pen.shapes)
    for _ in range(rng.integers(3, 9)):
        kinds[rng.integers(len(kinds))]()
    return np.asarray(pen.image.resize((WIDTH, HEIGHT), Image.Resampling.BOX))


class _Pen:
    """Draws one kind of thing at a time, at random places."""

    def __init__(self, rng: np.random.Generator, enlarged: int):
        self._rng, self._enlarged = rng, enlarged
        self._light = rng.random() < 0.8
        ground = self._colour(self._light)
        self.image = Image.new("RGB", (WIDTH * enlarged, HEIGHT * enlarged), ground)
        self._draw = ImageDraw.Draw(self.image)

    def lettering(self) -> None:
        """A block of text, in random letters."""
        rng, size = self._rng, int(self._rng.integers(9, 34))
        font = ImageFont.load_default(size * self._enlarged)
        lines = (
            " ".join(
                "".join(rng.choice(LETTERS, rng.integers(2, 10))) for _ in range(6)
            )
            for _ in range(rng.integers(1, 8))
        )
        self._draw.multiline_text(
            self._place(), "\n".join(lines), self._ink(), font=font
        )

    def lines(self) -> None:
        """A bundle of straight lines."""
        ink, width = self._ink(), self._width()
        for _ in range(self._rng.integers(2, 15)):
            self._draw.line((*self._place(), *self._place()), ink, width)

    def curves(self) -> None:
        """Ellipses about one centre."""
        ink, width, (x, y) = self._ink(), self._width(), self._place()
        wide, high = self._rng.integers(4, 30, 2) * self._enlarged
        for ring in range(1, self._rng.integers(2, 12)):
            box = (x - wide * ring, y - high * ring, x + wide * ring, y + high * ring)
            self._draw.ellipse(box, outline=ink, width=width)

    def grid(self) -> None:
        """Parallel lines along both sides, as in tables."""
        ink, width, (x, y) = self._ink(), self._width(), self._place()
        wide, high = self._rng.integers(6, 60, 2) * self._enlarged
        for k in range(6):
            self._draw.line((x + k * wide, y, x + k * wide, y + 5 * high), ink, width)
            self._draw.line((x, y + k * high, x + 5 * wide, y + k * high), ink, width)

    def shapes(self) -> None:
        """Filled polygons."""
        for _ in range(self._rng.integers(1, 5)):
            corners = [self._place() for _ in range(self._rng.integers(3, 6))]
            self._draw.polygon(corners, self._colour(self._rng.random() < 0.5))

    def _place(self) -> tuple[int, int]:
        x, y = self._rng.integers((WIDTH, HEIGHT)) * self._enlarged
        return int(x), int(y)

    def _width(self) -> int:
        return int(self._rng.integers(1, 4)) * max(1, self._enlarged - 1)

    def _ink(self) -> tuple[int, ...]:
        """What stands out from the ground, most often black or white."""
        if self._rng.random() < 0.5:
            return (0, 0, 0) if self._light else (255, 255, 255)
        return self._colour(not self._light)

    def _colour(self, light: bool) -> tuple[int, ...]:
        if light and self._rng.random() < 0.5:
            return (255, 255, 255)
        low = 150 if light else 0
        return tuple(map(int, self._rng.integers(low, low + 106, 3)))


def main(arguments: Sequence[str]) -> int:
    """Draws; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.drawings", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNGs")
    parser.add_argument("--count", type=int, default=64, help="how many; default: 64")
    options = parser.parse_args(arguments)
    try:
        if options.count < 1:
            raise UserError(f"--count is {options.count}: give at least 1")
        options.out.mkdir(parents=True, exist_ok=True)
        for number in track(
            range(options.count), "drawing", console=Console(stderr=True)
        ):
            with written_whole(options.out / f"{number:04d}.png") as path:
                Image.fromarray(drawing(number)).save(path, "PNG")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print("interrupted: the drawings so far are whole", file=sys.stderr)
        return INTERRUPTED
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
