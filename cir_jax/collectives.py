"""What a compiled program sends between its devices, read from its text (HLO)."""

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from cir_jax import hlo
from cir_jax.hlo import Instruction

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
    program = hlo.read(text)
    computations = program.computations

    @functools.cache
    def total(name: str) -> tuple[dict[tuple[str, str], int], bool]:
        sizes, exact = _own(name, computations[name]), True
        for instruction in computations[name]:
            for below, times in instruction.called:
                inner, told = total(below) if below in computations else ({}, True)
                for operation, size in inner.items():
                    # Fused into several others, it is in each of them.
                    size *= times or 1
                    sizes[operation] = max(size, sizes[operation])
                exact &= told and (times is not None or not inner)
        return sizes, exact

    operations, exact = total(program.entry)
    sizes: collections.Counter[str] = collections.Counter()
    for (kind, _), size in operations.items():
        sizes[kind] += size
    return Collectives(dict(sizes), exact)


def _own(
    computation: str, instructions: Sequence[Instruction]
) -> collections.Counter[tuple[str, str]]:
    """Bytes of a computation's own operations, by kind and what tells them apart."""
    sizes: collections.Counter[tuple[str, str]] = collections.Counter()
    named: dict[str, Instruction] = {}
    for i in instructions:
        named[i.name] = i
        kind = re.sub("-(start|done)$", "", i.code).replace("recv", BETWEEN_SLICES)
        if kind not in PASSES and kind != BETWEEN_SLICES:
            continue
        if i.code.endswith("-start") or i.code == "recv":
            continue  # the shape has more than the result
        started = named.get(i.operands[0], i) if i.code.endswith("-done") else i
        if computation.startswith("all-reduce-scatter"):  # as the TPU compiler fuses it
            kind = "reduce-scatter"
        channel = _CHANNEL.search(started.rest)
        size = max(
            _bytes(i), sum(_bytes(named[o]) for o in started.operands if o in named)
        )
        number = channel[1] if channel else f"{computation} {i.name}"
        sizes[kind, f"{number}, {size}"] += size
    return sizes


def _bytes(instruction: Instruction) -> int:
    return sum(array.size for array in instruction.results)
