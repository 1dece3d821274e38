"""Published weights: read from a file, checked, and put into a network of theirs."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from cir_jax import state_dicts, weights
from cir_jax.differences import check_fits
from cir_jax.errors import UserError
from cir_jax.hyper_parameters import Shapes
from cir_jax.models import abstract

# Kernels are `in out` and `h w in out` here, `out in` and `out in h w` in PyTorch.
_TO_OURS = {2: (1, 0), 4: (2, 3, 1, 0)}
_TO_OFFICIAL = {2: (1, 0), 4: (3, 2, 0, 1)}
_LEAVES = {"kernel": "weight", "scale": "weight"}
"""What PyTorch calls a layer's parameters, where it is not the same."""


class Encoder(NamedTuple):
    """A published network.

    Attributes:
        name: what it is called.
        advice: which file to get, as an error message ends.
    """

    name: str
    advice: str


def read(
    path: str | os.PathLike, encoder: Encoder, drop: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Reads the tensors of a published file: safetensors, or PyTorch's.

    Args:
        path: the file; nothing in it is executed.
        encoder: what should be in it.
        drop: patterns of names that are left aside.

    Raises:
        UserError: there is no such file, it cannot be read, or a tensor is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; {encoder.advice}")
    tensors = state_dicts.read(path, drop=drop).tensors
    if empty := [name for name, tensor in tensors.items() if not tensor.size]:
        raise UserError(f"{path} has no numbers in {empty[0]}; {encoder.advice}")
    return tensors


def sizes(
    tensors: Mapping[str, np.ndarray],
    read_off: Callable[[Shapes], dict[str, Any]],
    encoder: Encoder,
    path: str | os.PathLike,
) -> dict[str, Any]:
    """The sizes of a network, read off its tensors' shapes.

    Raises:
        UserError: a tensor that tells is missing or has a shape that cannot be.
    """
    try:
        return read_off({name: tensor.shape for name, tensor in tensors.items()})
    except KeyError as missing:
        raise UserError(
            f"{path} is no {encoder.name}, it has no tensor {missing}; {encoder.advice}"
        ) from missing
    except (IndexError, ValueError) as error:
        raise UserError(
            f"{path} is no {encoder.name}, its tensors have odd shapes ({error}); "
            f"{encoder.advice}"
        ) from error


def heads_of(width: int, heads: int | None) -> int:
    """The number of attention heads: 64 channels each, where it was not told.

    Raises:
        UserError: that does not divide the width.
    """
    heads = width // 64 if heads is None else heads
    if heads < 1 or width % heads:
        raise UserError(
            f"{heads} attention heads do not divide a width of {width}: give a number "
            "of heads that does"
        )
    return heads


def filled(
    build: Callable[[nnx.Rngs], nnx.Module],
    tensors: Mapping[str, np.ndarray],
    renamed: Mapping[str, str],
    encoder: Encoder,
    path: str | os.PathLike,
) -> nnx.Module:
    """Builds a network and fills in its parameters.

    Args:
        build: makes the network of the file's sizes.
        tensors: by their published names; every one must be used.
        renamed: what the parts of our parameters' dotted paths are called there, where
            it is not the same.
        encoder: what the file should hold.
        path: where the tensors are from.

    Returns:
        The network, its parameters in float32.

    Raises:
        UserError: tensors are missing, left over, of other shapes or not finite; lists
            the first of each.
    """
    model = abstract(build)
    parameters = weights.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    official = {name: _official(name, renamed) for name in parameters}
    check_fits(
        tensors,
        {official[name]: _turned(x.shape, name) for name, x in parameters.items()},
        {},
        f"{path} does not fit the {encoder.name} of its sizes ({encoder.advice})",
    )
    ours = {name: _ours(tensors[official[name]], name) for name in parameters}
    return weights.filled(model, ours, Path(path))


def _official(name: str, renamed: Mapping[str, str]) -> str:
    *parts, leaf = name.split(".")
    parts = [renamed.get(part, part) for part in parts]
    return ".".join([*parts, renamed.get(leaf, _LEAVES.get(leaf, leaf))])


def _turned(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The published shape of a parameter of ours."""
    if not name.endswith(".kernel"):
        return shape
    return tuple(shape[axis] for axis in _TO_OFFICIAL[len(shape)])


def _ours(tensor: np.ndarray, name: str) -> np.ndarray:
    """A published tensor in our layout."""
    if not name.endswith(".kernel"):
        return tensor
    return tensor.transpose(_TO_OURS[tensor.ndim])
