"""The perceiver's learnt prompts on disk: ours, and those of official checkpoints."""

import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from cir_jax import state_dicts, weights
from cir_jax.errors import UserError

QUALITIES = ("terrible", "mediocre", "excellent")
"""What the prompts stand for, in this order: low, medium and high quality."""
MOST_LISTED = 10
"""Tensors that a message lists."""


def write_prompts(
    path: str | os.PathLike,
    prompts: Float[np.ndarray, "3 n c"],
    provenance: Mapping[str, str],
) -> None:
    """Writes prompts as a `.safetensors` file, whole or not at all.

    Args:
        path: where to.
        prompts: n vectors for each of `QUALITIES`.
        provenance: how they were trained, for the file's metadata.
    """
    about = {"prompts": ", ".join(QUALITIES), **provenance}
    weights.write(Path(path), {"context": np.float32(prompts)}, about)


def read_prompts(path: str | os.PathLike) -> Float32[np.ndarray, "3 n c"]:
    """Reads prompts: those of `write_prompts`, or of an official checkpoint.

    An official one has them as `context`; of any other there must be a single tensor
    that can be meant.

    Args:
        path: a `.safetensors`, `.npz` or PyTorch file; nothing in it is executed.

    Returns:
        n vectors for each of `QUALITIES`.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not clear which of
            its tensors are the prompts.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: there are no prompts; give the file that training them wrote, or "
            "an official quality_prompts_*.pth"
        )
    tensors = state_dicts.read(path).tensors
    found = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.ndim == 3
        and len(tensor) == len(QUALITIES)
        and jnp.issubdtype(tensor.dtype, jnp.floating)
    }
    named = [name for name in found if name.rpartition(".")[2] == "context"]
    meant = named or list(found)
    if len(meant) != 1:
        listed = [
            f"{n!a:.60} {x.shape}" for n, x in list(tensors.items())[:MOST_LISTED]
        ]
        raise UserError(
            f"{path} holds {len(meant)} tensors that could be prompts: expected one of "
            f"shape (3, vectors, width), and there are {', '.join(listed)}"
        )
    return found[meant[0]].astype(np.float32)
