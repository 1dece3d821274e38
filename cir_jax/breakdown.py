"""Where a network's time goes: its parts by kind, each compiled and timed alone.

Parts are the blocks (`layers.Block`), what is in none of them, such as convolutions and
what makes prompts, and inside the blocks what these call: attention, feed-forward
network, norms. Which run, and on what, is seen by tracing the network once.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cir_jax.bench import Product, timed
from cir_jax.flops import model_flops
from cir_jax.models.layers import Block, RestorationModel

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a part while the network was traced.

    Attributes:
        kind: the class.
        shapes: of the maps that go in and come out, in words.
        path: of the module.
        leaves: its arguments: shapes where they are arrays, or what they are.
        structure: how the arguments are made of these.
        inside: the calls of the parts of a block.
    """

    kind: str
    shapes: str
    path: Path
    leaves: tuple[Any, ...]
    structure: Any
    inside: tuple["Call", ...]


@dataclasses.dataclass(frozen=True)
class Part:
    """What was measured of the parts of a kind that see maps of the same shapes.

    Attributes:
        kind: the class.
        shapes: of the maps that go in and come out, in words.
        count: calls in one forward of the network.
        seconds: of all calls: for each the median of its program's.
        floor: seconds that the FLOPs of all calls take at the products' rate.
        temporary: bytes of the program that are neither arguments nor results.
        inside: what is inside, for blocks.
    """

    kind: str
    shapes: str
    count: int
    seconds: float
    floor: float
    temporary: int
    inside: tuple["Part", ...]

    def to_json(self) -> dict[str, Any]:
        """The attributes; those of what is inside too."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _Measured:
    """A program that was timed alone; see `Part`."""

    seconds: float
    floor: float
    temporary: int


# ------------------------------------------------------------------------ what runs
def find_calls(model: RestorationModel, images: jax.ShapeDtypeStruct) -> list[Call]:
    """The calls of parts in one forward, in their order.

    Args:
        model: any; it stays as it is.
        images: their shape.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    found: list[Call] = []

    def trace(params: Any, images: Any) -> Any:
        traced = nnx.merge(graphdef, params)  # which nobody else sees
        _record(traced, found)
        told = {}
        if model.semantic_dim:
            told["semantics"] = jnp.zeros((4, len(images), model.semantic_dim))
        return traced(images, **told)

    jax.eval_shape(trace, nnx.to_pure_dict(params), images)
    return found


def _record(model: nnx.Module, found: list[Call]) -> None:
    """Makes a network's modules note their calls, in place."""
    paths = {id(module): path for path, module in nnx.iter_modules(model) if path}
    around: list[tuple[nnx.Module, list[Call]]] = []

    def is_part(module: nnx.Module) -> bool:
        if not around:
            return isinstance(module, Block) or not _holds_blocks(module)
        return len(around) == 1 and isinstance(around[0][0], Block)

    def noted(kind: type, module: nnx.Module, args: tuple, options: dict) -> Any:
        if not is_part(module):
            return kind.__call__(module, *args, **options)
        outer = around[-1][1] if around else found
        around.append((module, []))
        out = kind.__call__(module, *args, **options)
        _, inside = around.pop()
        leaves, structure = jax.tree.flatten((args, options))
        shapes = f"{_shapes(leaves)} -> {_shapes(jax.tree.leaves(out))}"
        abstract = tuple(map(_abstract, leaves))
        path = paths[id(module)]
        name = _name(kind, module)
        outer.append(Call(name, shapes, path, abstract, structure, tuple(inside)))
        return out

    @functools.cache
    def noting(kind: type) -> type:
        def call(self, *args: Any, **options: Any) -> Any:
            return noted(kind, self, args, options)

        return type(kind.__name__, (kind,), {"__call__": call})

    for path, module in nnx.iter_modules(model):
        if path and callable(module):
            module.__class__ = noting(type(module))


def _holds_blocks(module: nnx.Module) -> bool:
    return any(isinstance(each, Block) for _, each in nnx.iter_modules(module))


def _name(kind: type, module: nnx.Module) -> str:
    """The class, or those that a sequence is made of."""
    if isinstance(module, nnx.Sequential):
        return " + ".join(type(layer).__name__ for layer in module.layers)
    return kind.__name__


def _abstract(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _shapes(leaves: Sequence[Any]) -> str:
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    return ", ".join("x".join(map(str, array.shape)) for array in arrays)


# ------------------------------------------------------------------------ measuring
def programs(
    model: RestorationModel, found: Sequence[Call]
) -> dict[Hashable, tuple[nnx.Module, Call]]:
    """What has to be compiled: a module and a call of each program, those inside too.

    Calls have one program where structure, parameters' shapes and arguments are equal.
    """
    modules = dict(nnx.iter_modules(model))
    different = {}
    for call in _all(found):
        module = modules[call.path]
        different.setdefault(_key(module, call), (module, call))
    return different


def _all(found: Sequence[Call]) -> Iterator[Call]:
    for call in found:
        yield call
        yield from call.inside


def _key(module: nnx.Module, call: Call) -> Hashable:
    graphdef, params = nnx.split(module, nnx.Param)
    shapes = tuple(param.shape for param in jax.tree.leaves(params))
    return graphdef, shapes, repr(call.leaves), call.structure


def measure(
    model: RestorationModel,
    found: Sequence[Call],
    *,
    device: jax.Device,
    product: Product,
    repeats: int,
    done: Callable[[Call], None],
) -> list[Part]:
    """Compiles and times the parts of a network, those that take most time first.

    Args:
        model: with parameters.
        found: see `find_calls`.
        device: where.
        product: on the same device.
        repeats: timed calls of each program.
        done: told of each program that was timed.
    """
    measured = {}
    for key, (module, call) in programs(model, found).items():
        measured[key] = _measure(module, call, device, product, repeats)
        done(call)
    modules = dict(nnx.iter_modules(model))
    return _parts(found, lambda call: measured[_key(modules[call.path], call)])


def _measure(
    module: nnx.Module, call: Call, device: jax.Device, product: Product, repeats: int
) -> _Measured:
    graphdef, params = nnx.split(module, nnx.Param)
    places = [
        i
        for i, leaf in enumerate(call.leaves)
        if isinstance(leaf, jax.ShapeDtypeStruct)
    ]

    def run(params, arrays):
        leaves = list(call.leaves)
        for place, array in zip(places, arrays, strict=True):
            leaves[place] = array
        args, options = jax.tree.unflatten(call.structure, leaves)
        return nnx.merge(graphdef, params)(*args, **options)

    random = np.random.default_rng(0)
    arrays = [
        jnp.asarray(random.standard_normal(leaf.shape, np.float32), leaf.dtype)
        for leaf in (call.leaves[place] for place in places)
    ]
    arguments = jax.device_put((nnx.to_pure_dict(params), arrays), device)
    flops = model_flops(run, *arguments)
    with jax.default_device(device):
        program = jax.jit(run).lower(*arguments).compile()
        timing = timed(lambda: program(*arguments), product, repeats, between=False)
    temporary = program.memory_analysis().temp_size_in_bytes
    return _Measured(timing.median, flops / timing.rate, temporary)


def _parts(found: Sequence[Call], measured: Callable[[Call], _Measured]) -> list[Part]:
    groups: dict[tuple[str, str], list[Call]] = {}
    for call in found:
        groups.setdefault((call.kind, call.shapes), []).append(call)
    parts = []
    for (kind, shapes), group in groups.items():
        each = [measured(call) for call in group]
        inside = [call for outer in group for call in outer.inside]
        parts.append(
            Part(
                kind,
                shapes,
                len(group),
                sum(one.seconds for one in each),
                sum(one.floor for one in each),
                max(one.temporary for one in each),
                tuple(_parts(inside, measured)),
            )
        )
    return sorted(parts, key=lambda part: -part.seconds)
