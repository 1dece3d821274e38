"""Damaged records: replaced while reading, named, and counted up to a limit.

Which record stands for a damaged one depends on the records alone, so that batches stay
a function of the seed and their number.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from grain.sources import RandomAccessDataSource

from cir_jax.errors import UserError

DAMAGED = "damaged"
"""Key of the position that a batch's elements replace."""


class Replacing:
    """Records, with the next whole one in the place of a damaged one.

    Elements are a record and the position of the damaged one that it stands for, or -1.
    """

    def __init__(self, source: RandomAccessDataSource[Any]):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        damaged = -1
        for number in range(position, position + len(self)):
            try:
                return self._source[number % len(self)], damaged
            except UserError as error:
                damaged, last = position, error
        raise last


@dataclasses.dataclass(frozen=True)
class PassedOn:
    """A grain transform of `Replacing`'s elements, by another one of records."""

    transform: Callable[[Any, np.random.Generator], dict[str, np.ndarray]]

    def __call__(
        self, element: tuple[Any, int], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The transformed record, with the position that it replaces."""
        payload, damaged = element
        return self.transform(payload, rng) | {DAMAGED: np.int64(damaged)}


def counted(
    elements: grain.DatasetIterator, source: RandomAccessDataSource[Any], limit: int
) -> Iterator[dict[str, np.ndarray]]:
    """Takes the damaged positions out of batches, names each once, and counts them.

    Raises:
        UserError: there are more than `limit`.
    """
    found: dict[int, str] = {}
    with contextlib.closing(elements):
        for batch in elements:
            positions = set(batch.pop(DAMAGED).tolist())
            for position in positions - found.keys() - {-1}:
                named = set(found.values())
                reason = found[position] = _why_damaged(source, position)
                if reason in named:  # an epoch of a mix repeats its records
                    continue
                if len(named) == limit:
                    raise UserError(
                        f"more than config.data.damaged={limit} records are damaged; "
                        f"the last: {reason}"
                    )
                print(f"skipped {len(named) + 1} of at most {limit}: {reason}",
                      file=sys.stderr)  # fmt: skip
            yield batch


def _why_damaged(source: RandomAccessDataSource[Any], position: int) -> str:
    try:
        source[position]
    except UserError as error:
        return str(error)
    return f"record {position} could not be read, and now it can"
