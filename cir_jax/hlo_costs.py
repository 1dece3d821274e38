"""What a compiled program computes and moves, operation by operation, from its text.

Counted, not measured: every operand is read once and every result written once, in
whole tiles, by each operation that is not fused into another.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cir_jax.hlo import MAIN_MEMORY, Array, Instruction, Program, read

PRODUCT = "convolution, dot"
ELEMENTWISE = "elementwise"
LISTED = ("gather", "scatter", "transpose", "reshape", "copy")
"""Kinds of which `Operation.source` is worth a list: what moves arrays about."""

_FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
"""What moves nothing."""
_RUNS = {"call", "conditional", "while"}
"""What runs computations whose operations count one by one."""
_COLLECTIVES = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "recv",
    "reduce-scatter",
    "send",
}
_FIRST = {
    "scatter": {"scatter"},
    "gather": {"gather"},
    PRODUCT: {"convolution", "dot"},
    "collective": _COLLECTIVES,
    "sort": {"sort"},
    "reduction": {"reduce", "reduce-window", "select-and-scatter"},
    "custom call": {"custom-call"},
}
"""Kinds by what makes them one, the first that is in a fusion."""
_MOVES = {
    "broadcast",
    "concatenate",
    "copy",
    "dynamic-slice",
    "dynamic-update-slice",
    "iota",
    "pad",
    "reshape",
    "reverse",
    "slice",
    "transpose",
}
"""What computes nothing."""
_PARTS = {"slice", "dynamic-slice", "gather"}
"""What reads no more of its first operand than it gives."""
_WITHOUT_WORK = {"AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast"}
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a program, with what is fused into it.

    Attributes:
        kind: in words, such as `PRODUCT` or "transpose".
        times: how often it runs.
        reads: arrays, or the parts of them that it reads.
        writes: arrays.
        flops: of one run's convolutions and dots.
        cycles: of one run, as the compiler estimates; 0 where it does not.
        source: the JAX operation that it is of and the Python function that has it.
        exact: whether `times` is told by all loops that it is in.
    """

    kind: str
    times: int
    reads: Sequence[Array]
    writes: Sequence[Array]
    flops: int
    cycles: int
    source: str
    exact: bool = True

    @property
    def arrays(self) -> Sequence[Array]:
        """All that one run reads and writes."""
        return [*self.reads, *self.writes]


@dataclasses.dataclass(frozen=True)
class Total:
    """Of several operations and all their runs.

    Attributes:
        operations: how many.
        read: bytes, in whole tiles.
        written: bytes, in whole tiles.
        size: bytes of both without what pads the tiles.
        main: bytes of both, in whole tiles, of the main memory alone.
        flops: of convolutions and dots.
        cycles: as the compiler estimates.
        exact: whether each operation's number of runs is told.
    """

    operations: int
    read: int
    written: int
    size: int
    main: int
    flops: int
    cycles: int
    exact: bool

    @property
    def moved(self) -> int:
        """Bytes read and written, in whole tiles."""
        return self.read + self.written

    @property
    def padding(self) -> float:
        """Share of these bytes that pads tiles."""
        return 1 - self.size / self.moved if self.moved else 0.0

    @property
    def intensity(self) -> float:
        """FLOP per byte, in whole tiles."""
        return self.flops / self.moved if self.moved else 0.0


def total(operations: Iterable[Operation]) -> Total:
    """Adds operations up, each as often as it runs."""
    every = list(operations)

    def over(array_bytes, of=lambda o: o.arrays) -> int:
        return sum(o.times * sum(map(array_bytes, of(o))) for o in every)

    return Total(
        len(every),
        over(lambda a: a.padded, lambda o: o.reads),
        over(lambda a: a.padded, lambda o: o.writes),
        over(lambda a: a.size),
        over(lambda a: a.padded if a.space == MAIN_MEMORY else 0),
        sum(o.times * o.flops for o in every),
        sum(o.times * o.cycles for o in every),
        all(o.exact for o in every),
    )


def operations(text: str) -> list[Operation]:
    """The operations of a compiled program.

    Those of a loop run as often as it tells, else once; those of all branches count as
    if each were taken.

    Args:
        text: as `jax.stages.Compiled.as_text` gives it.
    """
    program = read(text)
    return _Reader(program).run(program.entry, 1) if program.entry else []


class _Reader:
    """Walks over a program."""

    def __init__(self, program: Program):
        self.program = program
        self.named: Mapping[str, Mapping[str, Instruction]] = {
            name: {i.name: i for i in body}
            for name, body in program.computations.items()
        }

    def run(self, computation: str, times: int, exact: bool = True) -> list[Operation]:
        """All operations of a computation, and of those that it runs."""
        found: list[Operation] = []
        for instruction in self.program.computations.get(computation, ()):
            if instruction.code in _RUNS:
                for name, inner in instruction.called:
                    told = exact and inner is not None
                    found += self.run(name, times * (inner or 1), told)
            elif not self._is_free(instruction):
                operation = self._operation(computation, instruction, times)
                found.append(dataclasses.replace(operation, exact=exact))
        return found

    def _is_free(self, instruction: Instruction) -> bool:
        if instruction.code in _FREE or instruction.code.endswith("-done"):
            return True  # what is awaited was counted at its start
        return instruction.attribute("custom_call_target") in _WITHOUT_WORK

    def _operation(self, computation: str, i: Instruction, times: int) -> Operation:
        names = self.named[computation]
        reads, writes = self._traffic(computation, i)
        inside = [(i, names), *self._inside(i)]
        return Operation(
            self._kind(i, inside),
            times,
            reads,
            writes,
            sum(_flops(j, within) for j, within in inside),
            sum(map(int, _CYCLES.findall(i.rest))),
            self._source(i, names),
        )

    def _inside(
        self, i: Instruction
    ) -> Iterable[tuple[Instruction, Mapping[str, Instruction]]]:
        """What is fused into an instruction, at any depth, with its neighbours."""
        if not i.attribute("calls"):
            return
        for name, _ in i.called:
            for j in self.program.computations.get(name, ()):
                yield j, self.named[name]
                yield from self._inside(j)

    def _kind(
        self,
        i: Instruction,
        inside: Sequence[tuple[Instruction, Mapping[str, Instruction]]],
    ) -> str:
        codes = {
            re.sub("-(start|done)$", "", j.code)
            for j, _ in inside
            if not self._is_free(j)
        } - {"async", "fusion"}
        for kind, makes in _FIRST.items():
            if codes & makes:
                return kind
        if i.code in ("copy-start", "slice-start"):
            return "between memories"
        if not codes <= _MOVES:
            return ELEMENTWISE
        if any(_reorders(j, within) for j, within in inside):
            return "transpose"
        # A reshape that is left after layouts were chosen moves its elements.
        for kind in ("reshape", "copy"):
            if kind in codes:
                return kind
        return "slice, pad, concatenate"

    # -------------------------------------------------------------------- the bytes
    def _traffic(
        self, computation: str, i: Instruction
    ) -> tuple[list[Array], list[Array]]:
        """What one run of an instruction reads and writes."""
        names = self.named[computation]
        if i.code.endswith("-start") or i.code in ("send", "recv"):
            reads = [a for o in i.operands for a in _results(names, o)]
            ends = [
                j
                for j in names.values()
                if j.operands == (i.name,) and j.code.endswith("-done")
            ]
            taken = _part(reads, ends) if i.code == "slice-start" else reads
            return taken, [a for j in ends for a in j.results]
        if i.code == "dynamic-update-slice":  # in place
            update = list(_results(names, i.operands[1]))
            return update, update
        if i.code == "fusion":
            return self._fused_traffic(i, names)
        reads = []
        for n, operand in enumerate(i.operands):
            whole = _results(names, operand)
            reads += _part(whole, [i]) if n == 0 and i.code in _PARTS else whole
        return reads, list(i.results)

    def _fused_traffic(
        self, i: Instruction, names: Mapping[str, Instruction]
    ) -> tuple[list[Array], list[Array]]:
        ((called, _),) = i.called
        body = self.program.computations.get(called, ())
        reads, writes, replaced = [], list(i.results), set()
        for j in body:
            if j.code == "dynamic-update-slice" and j.root:
                writes = list(_results(self.named[called], j.operands[1]))
                replaced.add(j.operands[0])
        parameters = {int(j.operands[0]): j for j in body if j.code == "parameter"}
        for n, operand in enumerate(i.operands):
            whole = _results(names, operand)
            name = parameters[n].name if n in parameters else ""
            users = [j for j in body if name in j.operands]
            if name in replaced and len(users) == 1:
                continue
            partly = users and all(
                j.code in _PARTS and name not in j.operands[1:] for j in users
            )
            reads += _part(whole, users) if partly else whole
        return reads, writes

    # -------------------------------------------------------------------- the source
    def _source(self, i: Instruction, names: Mapping[str, Instruction]) -> str:
        """Of an instruction; without one of the compiler's own, of what it follows."""
        before = ""
        while True:
            if name := i.attribute("op_name"):
                if "/" not in name:  # of no operation
                    return before + "an argument"
                function = self.program.functions.get(i.attribute("stack_frame_id"))
                tail = name.rsplit("/", 1)[-1]
                return before + (f"{tail} in {function}" if function else tail)
            following = [names[o] for o in i.operands if o in names]
            if not following:
                return ""
            i, before = following[0], "after "


def _results(names: Mapping[str, Instruction], name: str) -> tuple[Array, ...]:
    return names[name].results if name in names else ()


def _part(whole: Sequence[Array], users: Sequence[Instruction]) -> Sequence[Array]:
    """What is read of an array by those that take parts of it; not more than all."""
    space = whole[0].space if whole else MAIN_MEMORY
    parts = [dataclasses.replace(a, space=space) for j in users for a in j.results]
    less = sum(a.padded for a in parts) < sum(a.padded for a in whole)
    return parts if less else whole


def _reorders(i: Instruction, names: Mapping[str, Instruction]) -> bool:
    """Whether elements that were side by side no longer are."""
    if i.code not in ("copy", "transpose") or not i.operands:
        return False
    before, after = _results(names, i.operands[0]), i.results
    if not before or not after:
        return False
    moved = i.numbers("dimensions") or tuple(range(len(after[0].sides)))
    return before[0].long_order != tuple(moved[d] for d in after[0].long_order)


# ------------------------------------------------------------------------ FLOPs
def _flops(i: Instruction, names: Mapping[str, Instruction]) -> int:
    """Of a convolution or dot: two for each product that is added."""
    if i.code not in ("convolution", "dot"):
        return 0
    (left,), (right,), (out,) = (
        *(_results(names, o) for o in i.operands[:2]),
        i.results,
    )
    if i.code == "dot":
        added = math.prod(left.sides[d] for d in i.numbers("lhs_contracting_dims"))
        return 2 * math.prod(out.sides) * added
    images, kernel, results = re.split("_|->", i.attribute("dim_labels"))
    window = dict(
        field.split("=") for field in i.attribute("window").split() if "=" in field
    )
    products = 1
    for d in sorted(set(images) - {"b", "f"}):
        n = int(d)
        products *= _products(
            left.sides[images.index(d)],
            right.sides[kernel.index(d)],
            out.sides[results.index(d)],
            int(_of_window(window, "stride", n, "1")),
            int(_of_window(window, "pad", n, "0").split("_")[0]),
            int(_of_window(window, "lhs_dilate", n, "1")),
            int(_of_window(window, "rhs_dilate", n, "1")),
        )
    batches = int(i.attribute("batch_group_count") or 1)
    return (
        2
        * products
        * right.sides[kernel.index("i")]
        * out.sides[results.index("f")]
        * left.sides[images.index("b")]
        // batches
    )


def _of_window(window: Mapping[str, str], name: str, n: int, default: str) -> str:
    return window[name].split("x")[n] if name in window else default


@functools.cache
def _products(
    size: int, taps: int, out: int, stride: int, low: int, apart: int, spread: int
) -> int:
    """Along one dimension: pairs of a result and a tap that meet an element.

    Not those that meet padding, or the zeros between elements that are `apart`: the TPU
    compiler writes batched dots as such convolutions.
    """
    starts = np.arange(out, dtype=np.int64) * stride - low
    met = 0
    for tap in range(taps):
        places = starts + tap * spread
        inside = (places >= 0) & (places <= (size - 1) * apart)
        met += int(np.count_nonzero(inside & (places % apart == 0)))
    return met


# ------------------------------------------------------------------------ summaries
def by_kind(operations: Iterable[Operation]) -> dict[str, Total]:
    """Totals by kind, most bytes first."""
    groups = collections.defaultdict(list)
    for operation in operations:
        groups[operation.kind].append(operation)
    return _most_first({kind: total(group) for kind, group in groups.items()})


def movers(operations: Iterable[Operation]) -> dict[tuple[str, str], Total]:
    """Totals of what moves arrays about, by kind and source, most bytes first."""
    groups = collections.defaultdict(list)
    for operation in operations:
        if operation.kind in LISTED:
            groups[operation.kind, operation.source].append(operation)
    return _most_first({key: total(group) for key, group in groups.items()})


def _most_first(totals: dict) -> dict:
    return dict(sorted(totals.items(), key=lambda item: -item[1].moved))


def padded_arrays(operations: Iterable[Operation]) -> dict[Array, int]:
    """How often arrays are read or written, those with most padding in all first."""
    times: collections.Counter[Array] = collections.Counter()
    for operation in operations:
        for array in operation.arrays:
            times[dataclasses.replace(array, space=MAIN_MEMORY)] += operation.times
    wasted = {a: n * (a.padded - a.size) for a, n in times.items()}
    return {a: times[a] for a in sorted(wasted, key=lambda a: -wasted[a]) if wasted[a]}
