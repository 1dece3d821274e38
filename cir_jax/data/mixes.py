"""Mixes: several records folders read as one, each repeated so often in an epoch.

The parts may differ in all but scale and colour: one holds its versions, another clean
crops and a recipe for the reader. So each record comes with the number of its part.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class OfPart(NamedTuple):
    """A record of a mix."""

    part: int
    """The number of the folder that it is of."""
    payload: bytes


class MixedSource(Sequence):
    """Random access to an epoch: part by part, each as often as it is repeated."""

    def __init__(self, sources: Sequence[Sequence], repeats: Sequence[int]):
        self._sources = list(sources)
        lengths = [
            repeat * len(source)
            for source, repeat in zip(sources, repeats, strict=True)
        ]
        self._ends = list(itertools.accumulate(lengths))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, position: int) -> OfPart:
        if not 0 <= position < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        part = bisect.bisect_right(self._ends, position)
        source = self._sources[part]  # it ends where the part does: count from there
        return OfPart(part, source[(position - self._ends[part]) % len(source)])

    def span(self, part: int) -> range:
        """The positions of a part's records."""
        return range(self._ends[part - 1] if part else 0, self._ends[part])


@dataclasses.dataclass(frozen=True)
class ByPart:
    """A grain transform of a mix's records: for each part another one."""

    transforms: tuple[Callable[[bytes, np.random.Generator], dict], ...]

    def __call__(
        self, record: OfPart, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """What its part's transform makes of the record."""
        return self.transforms[record.part](record.payload, rng)
