"""What several commands ask of their arguments."""

import os
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


def named(text: str, flag: str, form: str) -> tuple[str, str]:
    """Splits a flag's NAME=VALUE.

    Raises:
        UserError: there is no equals sign; shows the form that is expected.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"{flag} {text}: give it as {form}")
    return name, value
