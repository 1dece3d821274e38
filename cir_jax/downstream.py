"""What restored images are good for: scores of machine vision, beside the metrics.

A scorer gets two folders of 8-bit PNG files of the same names, the clean images and
those of a row of the table, and gives one number. It is a command of the user's,
NAME=COMMAND such as `map=python detect.py --truth labels/ {images}`, whose last line on
standard output is the number; or one of `BUILT_IN` by its name.
"""

import dataclasses
import itertools
import math
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cir_jax import features, image_io, programs
from cir_jax.errors import UserError, unknown
from cir_jax.image_sets import Images
from cir_jax.protocols import Protocol
from cir_jax.resize import modcrop
from cir_jax.scores import COLUMNS

EXAMPLE = "map='python detect.py --truth labels/ {images}'"
PLACEHOLDER = re.compile(r"\{clean\}|\{images\}")
TAKEN = {"images", *COLUMNS, *map(str.lower, COLUMNS.values())}
"""Names in lower case that rows of the table and of its files have already."""

Image = UInt8[np.ndarray, "h w c"]
Row = tuple[Any, ...]
"""Set, codec, quality and method, as `scores.KEY`."""


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Something that gives folders of images a number; `parse_scorers` makes them.

    Attributes:
        name: what the table calls it.
        text: what it is, for the table's protocol.
        score: the number, of the clean images' folder and of another one; raises a
            UserError if there is none.
    """

    name: str
    text: str
    score: Callable[[Path, Path], float]


@dataclasses.dataclass(frozen=True)
class Command:
    """A program that scores a folder of images.

    Attributes:
        words: the program and its arguments, with the placeholders.
    """

    words: tuple[str, ...]

    def __call__(self, clean: Path, images: Path) -> float:
        """Runs it in the current folder, for as long as it takes.

        Raises:
            UserError: it cannot be run or fails, or prints no finite number last.
        """
        folders = {"{clean}": str(clean), "{images}": str(images)}
        words = [
            PLACEHOLDER.sub(lambda match: folders[match[0]], word)
            for word in self.words
        ]
        shown = shlex.join(self.words)
        try:
            ended = programs.run(words)
        except OSError as error:
            raise UserError(
                f"{shown} cannot be run ({error.strerror}): mend the command"
            ) from error
        if ended.status:
            raise UserError(
                f"{shown} failed (exit status {ended.status}; {ended.reason}): mend "
                "the command"
            )
        try:
            number = float(ended.printed)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            printed = f"{ended.printed!r} last" if ended.printed else "nothing"
            more = "" if ended.reason == ended.printed else f" ({ended.reason})"
            raise UserError(
                f"{shown} printed {printed}{more}: let the last line of its standard "
                "output be a finite number, and nothing else"
            )
        return number


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean over images of a measure of a clean and another RGB image."""

    measure: Callable[[Image, Image], float]

    def __call__(self, clean: Path, images: Path) -> float:
        """Reads the images pair by pair."""
        values = []
        for path in image_io.find_images(clean):
            other = images / path.relative_to(clean)
            pair = image_io.read_rgb(path), image_io.read_rgb(other)
            values.append(self.measure(*pair))
        return float(np.mean(values))


BUILT_IN = {
    scorer.name: scorer
    for scorer in (
        Scorer(
            "keypoints",
            "repeatability of Harris corners, the strongest "
            f"{features.PIXELS_PER_CORNER}th of the clean image's pixels, within "
            f"{features.CORNER_REACH:g} pixels; mean over images, no border crop",
            Mean(features.corner_repeatability),
        ),
        Scorer(
            "edges",
            "F-measure of edges, the clean image's steepest "
            f"{features.EDGE_SHARE:.0%} after thinning, within "
            f"{features.EDGE_REACH:g} pixel; mean over images, no border crop",
            Mean(features.edge_agreement),
        ),
    )
}


def parse_scorers(texts: Sequence[str]) -> list[Scorer]:
    """Reads names of `BUILT_IN`, and NAME=COMMAND.

    Raises:
        UserError: an unknown name, one that a column or another scorer has, or a
            command that cannot be split into words, lacks `{images}`, has other braces,
            or whose program is not there.
    """
    scorers: dict[str, Scorer] = {}
    for text in texts:
        scorer = BUILT_IN.get(text) or _parse_command(text)
        if scorer.name.lower() in TAKEN | {name.lower() for name in scorers}:
            raise UserError(
                f"downstream {scorer.name}: the table has a column {scorer.name} "
                "already: give another name"
            )
        scorers[scorer.name] = scorer
    return [*scorers.values()]


def _parse_command(text: str) -> Scorer:
    """The scorer of NAME=COMMAND, checked."""
    if re.fullmatch(r"[\w-]+", text):
        raise unknown("downstream scorer", text, BUILT_IN)
    name, words = programs.named_command("downstream", text, EXAMPLE)
    what = f"downstream {name}"
    if "{images}" not in " ".join(words):
        raise UserError(
            f"{what}: its command has no {{images}}: give one such as {EXAMPLE}"
        )
    programs.refuse_other_braces(what, words, PLACEHOLDER, "{clean} and {images}")
    if shutil.which(words[0]) is None:
        raise UserError(
            f"{what}: its program {words[0]} is not installed: install it, or mend the "
            "command"
        )
    return Scorer(name, shlex.join(words), Command(words))


class Downstream:
    """The scorers of an evaluation, and the images that wait for them.

    A context: images lie in a temporary folder, those of a row until it is scored, and
    clean ones until the end.

    Args:
        scorers: none are fine, and nothing is written then.
    """

    def __init__(self, scorers: Sequence[Scorer]):
        self._scorers = scorers
        self.numbers: dict[Row, dict[str, float]] = {}
        """Of every row that was scored, by the scorer's name."""
        self._of_clean: dict[str, dict[str, float]] = {}
        self._clean: dict[str, Path] = {}
        self._waiting: dict[Row, Path] = {}
        self._count = itertools.count()

    def __enter__(self) -> "Downstream":
        if self._scorers:
            self._temporary = tempfile.TemporaryDirectory(prefix="cir_downstream_")
            self._folder = Path(self._temporary.name)
        return self

    def __exit__(self, *error: object) -> None:
        if self._scorers:
            self._temporary.cleanup()

    def add_set(
        self, name: str, images: Images, protocol: Protocol, scale: int
    ) -> None:
        """Writes a set's clean images as they are coded; scores them as if restored.

        So a command that cannot work fails before anything is restored.

        Raises:
            UserError: two would have the same file name, a file cannot be written, or a
                scorer fails.
        """
        if not self._scorers:
            return
        folder = self._clean[name] = self._new_folder()
        written: dict[Path, str] = {}
        for image, pixels in images.items():
            file = _file(image)
            if file in written:
                raise UserError(
                    f"downstream: {written[file]} and {image} of {name} would both be "
                    f"{file}: rename one"
                )
            written[file] = image
            clean = modcrop(protocol.coded(pixels), scale)
            image_io.write_png(folder / file, clean)
        self._of_clean[name] = self._scored(name, folder, f"the clean images of {name}")

    def add(self, row: Row, image: str, pixels: Image) -> None:
        """Writes an image of a row, by its name in the set; from any thread.

        Raises:
            UserError: the file cannot be written.
        """
        if self._scorers:
            # Atomic, so that a row has one folder; at worst a number is left out.
            folder = self._waiting.setdefault(row, self._new_folder())
            image_io.write_png(folder / _file(image), pixels)

    def score(self) -> None:
        """Scores the rows whose images wait, and deletes those.

        Raises:
            UserError: a scorer fails; names it, the row and what it printed.
        """
        for row, folder in self._waiting.items():
            title = " ".join(str(part) for part in row if part is not None)
            self.numbers[row] = self._scored(row[0], folder, title)
            shutil.rmtree(folder)
        self._waiting.clear()

    def notes(self) -> Mapping[str, str]:
        """The lines of the protocol about the scorers."""
        lines = {}
        for scorer in self._scorers:
            found = {name: each[scorer.name] for name, each in self._of_clean.items()}
            lines[f"downstream {scorer.name}"] = scorer.text
            lines[f"{scorer.name} of the clean images"] = ", ".join(
                f"{name} {number:.6g}" for name, number in found.items()
            )
        return lines

    def _new_folder(self) -> Path:
        """A folder's path; it is made with its first image."""
        return self._folder / str(next(self._count))

    def _scored(self, set_name: str, folder: Path, title: str) -> dict[str, float]:
        """Every scorer's number of a folder."""
        numbers = {}
        for scorer in self._scorers:
            try:
                numbers[scorer.name] = scorer.score(self._clean[set_name], folder)
            except UserError as error:
                raise UserError(
                    f"downstream {scorer.name} of {title}: {error}"
                ) from error
        return numbers


def _file(image: str) -> Path:
    """Where an image of a set is in a folder: the same path, but a PNG."""
    return Path(image).with_suffix(".png")
