"""Reads the text of compiled programs (HLO): computations, instructions and arrays.

The grammar is what `jax.stages.Compiled.as_text` gives for CPUs, GPUs and TPUs. How
tiles pad an array: https://openxla.org/xla/tiled_layout.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

MAIN_MEMORY = 0
"""The space of arrays that no layout puts elsewhere: HBM, the largest and slowest."""

_COMPUTATION = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?(\S+) = (.*?) ([a-z][a-z\d-]*)\((.*?)\)(.*)")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_TILES = re.compile(r"T((?:\([\d,]+\))+)")
_SPACE = re.compile(r"S\((\d+)\)")
_CALLED = re.compile(r"\b(?:calls|to_apply|\w+_computations?)=(\{.*?\}|[^\s,]+)")
_LOOP = re.compile(r"\bcondition=%?([\w.-]+), body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ROW = re.compile(r'(\d+) (?:"(.*)"|\{(.*)\})$')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array's shape, type and place.

    Attributes:
        bits: of an element.
        sides: its shape.
        order: the dimensions from the one whose elements are side by side outwards.
        tiles: of the physical array, each dividing what the one before left.
        space: number of the memory that it is in, see `MAIN_MEMORY`; of a TPU 1 is the
            vector units' own.
    """

    bits: int
    sides: tuple[int, ...]
    order: tuple[int, ...] = ()
    tiles: tuple[tuple[int, ...], ...] = ()
    space: int = MAIN_MEMORY

    @property
    def size(self) -> int:
        """Bytes of its elements."""
        return -(-math.prod(self.sides) * self.bits // 8)

    @property
    def padded(self) -> int:
        """Bytes that it takes in whole tiles."""
        sides = [self.sides[i] for i in reversed(self.order)]
        for tile in self.tiles:
            sides = [1] * (len(tile) - len(sides)) + sides
            outer, inner = sides[: -len(tile)], sides[-len(tile) :]
            counts = [-(-s // t) for s, t in zip(inner, tile, strict=True)]
            sides = [*outer, *counts, *tile]
        return -(-math.prod(sides) * self.bits // 8)

    @property
    def long_order(self) -> tuple[int, ...]:
        """Its order without the dimensions that are 1 long."""
        return tuple(i for i in self.order if self.sides[i] > 1)

    def __str__(self) -> str:
        """As in 1x64x64x[48]: in brackets the side whose elements are side by side."""
        first = self.order[0] if self.order else None
        sides = (f"[{s}]" if i == first else str(s) for i, s in enumerate(self.sides))
        return f"{'x'.join(sides)} of {self.bits} bits"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in its program.
        code: what it does, such as "fusion" or "copy-start".
        results: its array, or all in its tuple.
        operands: names of instructions; for constants and parameters other words.
        rest: what follows these, such as "kind=kLoop, calls=%fused_computation".
        root: whether its result is the computation's.
    """

    name: str
    code: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool = False

    def attribute(self, name: str) -> str:
        """Of `name=value` or `name={value}` its value; "" where there is none."""
        value = r'=(?:\{(.*?)\}|"(.*?)"|([^\s,}]+))'
        found = re.search(rf"\b{name}{value}", self.rest)
        return next(filter(None, found.groups()), "") if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """Of `name={1,2}` the numbers."""
        return tuple(map(int, re.findall(r"\d+", self.attribute(name))))

    @functools.cached_property
    def called(self) -> Sequence[tuple[str, int | None]]:
        """The computations that it runs, and how often; None is not told."""
        if loop := _LOOP.search(self.rest):
            trips = _TRIPS.search(self.rest)
            times = int(trips[1]) if trips else None
            return [(name, times) for name in loop.groups()]
        called = ",".join(_CALLED.findall(self.rest))
        return [(name, 1) for name in re.findall(r"[\w.-]+", called)]


@dataclasses.dataclass(frozen=True)
class Program:
    """What a program's text says.

    Attributes:
        entry: name of the computation that it starts with.
        computations: instructions by computation, in their order.
        functions: the Python function that an instruction's `stack_frame_id` stands
            for, behind its module's name.
    """

    entry: str
    computations: Mapping[str, Sequence[Instruction]]
    functions: Mapping[str, str]


def read(text: str) -> Program:
    """Takes a compiled program's text apart.

    Args:
        text: as `jax.stages.Compiled.as_text` gives it.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, body = "", []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            body = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif found := _INSTRUCTION.match(line):
            root, name, shape, code, operands, rest = found.groups()
            names = re.findall(r"[^%, ]+", re.sub(r"/\*.*?\*/", "", operands))
            body.append(
                Instruction(name, code, arrays(shape), tuple(names), rest, bool(root))
            )
    return Program(entry, computations, _functions(text))


def arrays(shape: str) -> tuple[Array, ...]:
    """An array, or all in a tuple: "(f32[2,3]{1,0:T(8,128)}, bf16[8])"."""
    return tuple(_array(*found.groups("")) for found in _ARRAY.finditer(shape))


@functools.cache
def _array(bits: str, sides: str, layout: str) -> Array:
    shape = tuple(int(s) for s in sides.split(",") if s)
    order, _, where = layout.partition(":")
    minor_first = tuple(int(i) for i in order.split(",") if i)
    tiles, space = _TILES.search(where), _SPACE.search(where)
    return Array(
        int(bits or 8),
        shape,
        minor_first or tuple(reversed(range(len(shape)))),
        tuple(
            tuple(map(int, tile.split(",")))
            for tile in re.findall(r"\((.*?)\)", tiles[1] if tiles else "")
        ),
        int(space[1]) if space else MAIN_MEMORY,
    )


def _functions(text: str) -> dict[str, str]:
    """Functions by stack frame, of the tables before the first computation."""
    tables: dict[str, dict[str, str]] = {}
    rows: dict[str, str] = {}
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            rows = tables.setdefault(line, {})
        elif row := _ROW.match(line):
            rows[row[1]] = row[2] or row[3]
        elif _COMPUTATION.match(line):
            break
    found = {}
    for frame, row in tables.get("StackFrames", {}).items():
        place = _fields(tables["FileLocations"][_fields(row)["file_location_id"]])
        module = PurePath(tables["FileNames"][place["file_name_id"]]).stem
        function = tables["FunctionNames"][place["function_name_id"]]
        found[frame] = f"{module}.{function}"
    return found


def _fields(row: str) -> dict[str, str]:
    """Of "a=1 b=2"."""
    return dict(field.split("=") for field in row.split())
