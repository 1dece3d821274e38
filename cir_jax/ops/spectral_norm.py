"""The largest singular value of a convolution's kernel, by power iteration.

As in Miyato et al., "Spectral Normalization for GANs" (1802.05957): the kernel is read
as the matrix of its outputs by all its inputs, and one iteration a training step is
enough, because the kernel changes little between them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

TINY = 1e-12


def spectral_norm(
    kernel: Float32[Array, "*k o"], direction: Float32[Array, " o"]
) -> Float32[Array, ""]:
    """The singular value that belongs to a direction in the outputs' space.

    Its gradient reaches the kernel alone.

    Args:
        kernel: inputs first, outputs last.
        direction: of length 1, see `turned`; the largest value's after enough turns.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    inputs = _unit(matrix @ direction)
    return jax.lax.stop_gradient(inputs) @ matrix @ jax.lax.stop_gradient(direction)


def turned(
    kernel: Float32[Array, "*k o"], direction: Float32[Array, " o"]
) -> Float32[Array, " o"]:
    """The direction after one more power iteration."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return _unit(_unit(matrix @ direction) @ matrix)


def _unit(x: Float32[Array, " n"]) -> Float32[Array, " n"]:
    return x / jnp.maximum(jnp.linalg.norm(x), TINY)
