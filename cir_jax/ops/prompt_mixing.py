"""Mixing a bank of prompts, pixel by pixel."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def mix_prompts(
    task_weights: Float[Array, "b h w t"],
    basis_weights: Float[Array, "b h w n"],
    prompts: Float[Array, "t n c"],
) -> Float[Array, "b h w c"]:
    """Sums every task's bases, weighted per pixel by two factors (PromptCIR).

    `bhwt,bhwn,tnc->bhwc`, the products of the two weights first. Each order of
    contraction costs the same b h w t n c multiply-adds; this one is a single matrix
    product and leaves only b h w (t n) numbers in between, where the prompts first
    would leave b h w (t c) or (n c), and a prompt is wider than there are bases.

    Args:
        task_weights: weights over the t tasks, which sum to 1.
        basis_weights: weights over the n bases, which sum to 1.
        prompts: a prompt of width c for each task and basis.

    Returns:
        The prompt of each pixel.
    """
    t, n, c = prompts.shape
    weights = task_weights[..., :, None] * basis_weights[..., None, :]  # b h w t n
    weights = weights.reshape(*weights.shape[:3], t * n)
    return jnp.einsum("bhwk,kc->bhwc", weights, prompts.reshape(t * n, c))
