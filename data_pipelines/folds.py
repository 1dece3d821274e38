"""Folds: halves, thirds … of a source's images, by their paths.

For cross-fitting: what is trained on one fold is used on the images of another.
"""

import re
import zlib
from typing import NamedTuple

from cir_jax.errors import UserError


class Fold(NamedTuple):
    """One of the folds of a source."""

    number: int
    """From 1."""
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, key: str) -> bool:
        """Whether an image is in the fold."""
        return self.number == number_of(key, self.count)


def number_of(key: str, count: int) -> int:
    """The number of the fold, of so many, that an image is in: by its path's CRC-32."""
    return zlib.crc32(key.encode(errors="surrogateescape")) % count + 1


def parse_fold(text: str, flag: str) -> Fold:
    """Reads K/N.

    Raises:
        UserError: it is no fold, or one of less than two.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    fold = Fold(*map(int, match.groups())) if match else Fold(0, 0)
    if not 1 <= fold.number <= fold.count or fold.count < 2:
        raise UserError(
            f"{flag} {text}: give K/N with K from 1 to N and N at least 2, such as 1/2"
        )
    return fold
