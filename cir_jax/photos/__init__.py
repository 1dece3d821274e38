"""The photographs that ship with the package; CREDITS.md names their authors."""

import pathlib

from cir_jax import errors

_SPLITS = ("train", "validation")


def folder(split: str) -> pathlib.Path:
    """Where the photographs of one split are.

    No photograph has parts in both splits. Every validation image is 384 wide and
    256 high, so that one compiled shape serves all of them.

    Args:
        split: "train" or "validation".

    Returns:
        A folder of lossless WebP files, 8-bit RGB, each side at least 256.

    Raises:
        UserError: there is no such split.
    """
    if split not in _SPLITS:
        raise errors.unknown("photo split", split, _SPLITS)
    return pathlib.Path(__file__).parent / split


def resolve(name: str) -> pathlib.Path:
    """The folder that a name means: "photos:SPLIT", or a path.

    Raises:
        UserError: no such split.
    """
    prefix, separator, split = name.partition("photos:")
    return folder(split) if separator and not prefix else pathlib.Path(name)
