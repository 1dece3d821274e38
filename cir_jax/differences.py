"""What does not fit between a state dict and a network, from both sides."""

import difflib
from collections.abc import Callable, Collection, Mapping

import jax.numpy as jnp
import numpy as np

from cir_jax.errors import UserError
from cir_jax.hyper_parameters import Shapes

MOST = 20
"""Differences of a kind that are listed."""


def check_fits(
    tensors: Mapping[str, np.ndarray],
    expected: Shapes,
    buffers: Mapping[str, np.ndarray],
    what: str,
) -> None:
    """Refuses a state dict that is not exactly a network's.

    Args:
        tensors: the state dict.
        expected: shapes of the network's parameters, by official name.
        buffers: what the state dict may hold beside them, with these very values.
        what: what is wrong then, as the message starts.

    Raises:
        UserError: lists what is missing (-), too much (+) and different (!), with
            shapes and the nearest name; numbers that are not finite are different.
    """
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected and name not in buffers]
    different = {
        name: difference
        for name, tensor in tensors.items()
        if (difference := _difference(name, tensor, expected, buffers))
    }
    lines = [
        *_listed(
            missing,
            lambda name: (
                f"- {name} {expected[name]}: not in the state dict"
                + _near(name, expected[name], extra, tensors)
            ),
        ),
        *_listed(
            extra, lambda name: f"+ {name} {tensors[name].shape}: not in the network"
        ),
        *_listed(different, lambda name: f"! {name}: {different[name]}"),
    ]
    if lines:
        raise UserError("\n".join([f"{what}:", *lines]))


def _difference(
    name: str,
    tensor: np.ndarray,
    expected: Shapes,
    buffers: Mapping[str, np.ndarray],
) -> str:
    if name in buffers and not np.array_equal(tensor, buffers[name]):
        return "other values than the official index"
    if name not in expected:
        return ""
    if tensor.shape != expected[name]:
        return f"{tensor.shape}, but {expected[name]} in the network"
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return f"{tensor.dtype} numbers, but floating ones in the network"
    if odd := tensor.size - np.count_nonzero(np.isfinite(tensor)):
        return f"{odd} of {tensor.size} numbers are not finite"
    return ""


def _near(
    name: str,
    shape: tuple[int, ...],
    extra: list[str],
    tensors: Mapping[str, np.ndarray],
) -> str:
    same_shape = [other for other in extra if tensors[other].shape == shape]
    near = difflib.get_close_matches(name, same_shape, n=1, cutoff=0.8)
    return f" (near: {near[0]})" if near else ""


def _listed(names: Collection[str], line: Callable[[str], str]) -> list[str]:
    first, rest = sorted(names)[:MOST], len(names) - MOST
    return [line(name) for name in first] + [f"  ... and {rest} more"] * (rest > 0)
