"""What a compiled program sends between its devices, read from its text (HLO)."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

PASSES = {
    "all-reduce": 2,
    "all-gather": 1,
    "reduce-scatter": 1,
    "all-to-all": 1,
    "collective-permute": 1,
}
"""How often a ring of devices hands an array round: to add up and then to tell it is
two (Patarasuk and Yuan, 2009, "Bandwidth optimal all-reduce algorithms")."""
BETWEEN_SLICES = "between slices"
"""What TPU slices hear of each other, by their hosts and the data centre's network."""

_COMPUTATION = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][a-z\d-]*)\((.*?)\)(.*)")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|\w+_computations?)=(\{.*?\}|[^\s,]+)")
_LOOP = re.compile(r"\bcondition=%?([\w.-]+), body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Of one run of a program.

    Attributes:
        sizes: bytes by kind: of the arrays that are put together or taken apart, in
            one piece. Kinds that there are none of are left out.
        exact: whether each loop with some in it says how often it runs; the others are
            counted once.
    """

    sizes: Mapping[str, int]
    exact: bool = True

    def sent(self, devices: int) -> float:
        """Bytes that each device must send where all of them form one ring.

        Of as many parts as there are devices, one need not be passed on.
        """
        passed = sum(times * self.sizes.get(kind, 0) for kind, times in PASSES.items())
        return passed * (devices - 1) / devices


def read(text: str) -> Collectives:
    """Adds up the collective operations of a compiled program.

    Those of a loop count as often as it runs, those of all branches as if each were
    taken; what is started and awaited counts once.

    Args:
        text: as `jax.stages.Compiled.as_text` gives it.
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            lines = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        lines.append(line)

    @functools.cache
    def total(name: str) -> tuple[dict[tuple[str, str], int], bool]:
        sizes, exact = _own(name, computations[name]), True
        for line in computations[name]:
            for below, times in _below(line):
                inner, told = total(below) if below in computations else ({}, True)
                for operation, size in inner.items():
                    # Fused into several others, it is in each of them.
                    size *= times or 1
                    sizes[operation] = max(size, sizes[operation])
                exact &= told and (times is not None or not inner)
        return sizes, exact

    operations, exact = total(entry)
    sizes: collections.Counter[str] = collections.Counter()
    for (kind, _), size in operations.items():
        sizes[kind] += size
    return Collectives(dict(sizes), exact)


def _own(
    computation: str, lines: Sequence[str]
) -> collections.Counter[tuple[str, str]]:
    """Bytes of a computation's own operations, by kind and what tells them apart."""
    sizes: collections.Counter[tuple[str, str]] = collections.Counter()
    shapes: dict[str, str] = {}
    started: dict[str, tuple[str, str]] = {}
    for name, shape, code, operands, rest in (
        found.groups() for line in lines if (found := _INSTRUCTION.match(line))
    ):
        shapes[name] = shape
        kind = re.sub("-(start|done)$", "", code).replace("recv", BETWEEN_SLICES)
        if kind not in PASSES and kind != BETWEEN_SLICES:
            continue
        if code.endswith("-done"):
            operands, rest = started.get(operands.strip("%"), ("", ""))
        elif code.endswith("-start") or code == "recv":
            started[name] = operands, rest  # the shape has more than the result
            continue
        if computation.startswith("all-reduce-scatter"):  # as the TPU compiler fuses it
            kind = "reduce-scatter"
        channel = _CHANNEL.search(rest)
        taken = sum(_bytes(shapes.get(o, "")) for o in re.findall(r"[^%, ]+", operands))
        size = max(_bytes(shape), taken)
        number = channel[1] if channel else f"{computation} {name}"
        sizes[kind, f"{number}, {size}"] += size
    return sizes


def _below(line: str) -> list[tuple[str, int | None]]:
    """The computations that an operation runs, and how often; None is not told."""
    if loop := _LOOP.search(line):
        trips = _TRIPS.search(line)
        return [(name, int(trips[1]) if trips else None) for name in loop.groups()]
    called = ",".join(_CALLED.findall(line))
    return [(name, 1) for name in re.findall(r"[\w.-]+", called)]


def _bytes(shape: str) -> int:
    """Of an array, or of all in a tuple: "(f32[2,3]{1,0}, bf16[8])"."""
    return sum(
        math.prod(map(int, filter(None, sides.split(","))))
        * max(1, int(bits or 8) // 8)
        for bits, sides in _ARRAY.findall(shape)
    )
