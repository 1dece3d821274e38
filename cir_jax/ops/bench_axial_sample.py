"""Time and memory of each implementation of `axial_sample` on this machine.

    python -m cir_jax.ops.bench_axial_sample
    python -m cir_jax.ops.bench_axial_sample --sizes 1x64x64x32 --groups 16 --repeats 3

Memory is what the compiled program asks for beside its arguments and results. Libraries
that XLA calls may take more: "tent" on CPU, seen from outside, three times as much.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cir_jax.ops.axial_sample import IMPLEMENTATIONS, axial_sample

TRAINING, INFERENCE = (16, 64, 64, 128), (1, 270, 480, 128)


def main() -> None:
    """Prints a row for each size, axis, implementation and direction."""
    flags = _flags()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {flags.dtype}")
    print("size axis implementation direction milliseconds temporary_mb")
    for shape, axis, name, direction in itertools.product(
        flags.sizes, (1, 2), flags.implementations, ("forward", "forward+backward")
    ):
        x, offset = _arguments(shape, flags)
        run = _function(axis, None if name == "default" else name, direction)
        compiled = jax.jit(run).lower(x, offset).compile()
        temporary = compiled.memory_analysis().temp_size_in_bytes
        if temporary > flags.memory_gb * 1e9:
            taken = "skipped"
        else:
            taken = f"{1e3 * _seconds(compiled, (x, offset), flags.repeats):.1f}"
        size = "x".join(map(str, shape))
        print(f"{size} {axis} {name} {direction} {taken} {temporary / 1e6:.0f}")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_shape,
        default=[TRAINING, INFERENCE],
        help="batch x height x width x channels, such as 16x64x64x128",
    )
    parser.add_argument("--groups", type=int, default=64, help="offsets per pixel")
    parser.add_argument(
        "--spread", type=float, default=3, help="standard deviation of the offsets"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=["default", *IMPLEMENTATIONS],
        default=[*IMPLEMENTATIONS],
    )
    parser.add_argument("--repeats", type=int, default=5, help="the best one counts")
    parser.add_argument(
        "--memory-gb",
        type=float,
        default=4,
        help="what wants more temporary memory is compiled but not run",
    )
    return parser.parse_args()


def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(size) for size in text.split("x"))
    if len(shape) != 4:
        raise argparse.ArgumentTypeError(f"{text} has not four sizes, as 16x64x64x128")
    return shape


def _arguments(
    shape: tuple[int, ...], flags: argparse.Namespace
) -> tuple[jax.Array, jax.Array]:
    random = np.random.RandomState(0)
    x = jnp.asarray(random.standard_normal(shape), flags.dtype)
    offset = flags.spread * random.standard_normal((*shape[:3], flags.groups))
    return x, jnp.asarray(offset, jnp.float32)


def _function(axis: int, implementation: str | None, direction: str) -> Callable:
    def forward(x: jax.Array, offset: jax.Array) -> jax.Array:
        return axial_sample(x, offset, axis, implementation)

    def both(x: jax.Array, offset: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(forward, x, offset)
        return y, *pull(y)

    return forward if direction == "forward" else both


def _seconds(compiled: Callable, arguments: tuple, repeats: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        return time.perf_counter() - start

    once()  # the first run fetches memory
    return min(once() for _ in range(repeats))


if __name__ == "__main__":
    main()
