"""What several commands ask of their arguments."""

import argparse
import math
import os
from collections.abc import Iterable
from pathlib import Path

from cir_jax.errors import UserError


def check_can_write(flag: str, path: Path | None) -> None:
    """Refuses, before long work, a file that could not be written after it.

    Raises:
        UserError: it is a folder, or its folder is missing or may not be written to.
    """
    if path and path.is_dir():
        raise UserError(f"{flag} {path} is a folder: give a file name")
    if path and not path.parent.is_dir():
        raise UserError(f"{flag} {path}: its folder does not exist")
    if path and not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag} {path}: its folder may not be written to")


def check_is_no_image(flag: str, path: Path | None, images: Iterable[Path]) -> None:
    """Refuses a file to be written that is one of the images.

    Raises:
        UserError: it is one of them, by whatever name.
    """
    if path and os.path.realpath(path) in set(map(os.path.realpath, images)):
        raise UserError(f"{flag} {path} is one of the images: give another name")


def add_reading_options(parser: argparse.ArgumentParser, use: str) -> None:
    """Adds what commands that read any image file ask about it.

    Args:
        parser: the command's.
        use: what it does with what there is of a file that breaks off.
    """
    parser.add_argument(
        "--max-megapixels",
        type=float,
        default=300.0,
        help="refuse larger images; default 300",
    )
    parser.add_argument(
        "--allow-truncated",
        action="store_true",
        help=f"{use} what there is of files that break off",
    )


def max_pixels(megapixels: float) -> int:
    """The pixels that `--max-megapixels` allows.

    Raises:
        UserError: it is no finite number above 0.
    """
    if not 0 < megapixels < math.inf:
        raise UserError(f"--max-megapixels {megapixels}: give a finite number above 0")
    return round(megapixels * 1e6)


def named(text: str, flag: str, form: str) -> tuple[str, str]:
    """Splits a flag's NAME=VALUE.

    Raises:
        UserError: there is no equals sign; shows the form that is expected.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"{flag} {text}: give it as {form}")
    return name, value
