"""Mixing a bank of prompts, pixel by pixel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cir_jax.ops.strips import over_strips, strips_of


@jax.jit
def mix_prompts(
    task_weights: Float[Array, "b h w t"],
    basis_weights: Float[Array, "b h w n"],
    prompts: Float[Array, "t n c"],
) -> Float[Array, "b h w c"]:
    """Sums every task's bases, weighted per pixel by two factors (PromptCIR).

    `bhwt,bhwn,tnc->bhwc`. Each order of contraction costs the same b h w t n c
    multiply-adds. The products of the two weights first is a single matrix product, but
    they are t n numbers a pixel, more than any map around them: on CPU they are made
    strip by strip, elsewhere the tasks are summed one after the other.

    Args:
        task_weights: weights over the t tasks, which sum to 1.
        basis_weights: weights over the n bases, which sum to 1.
        prompts: a prompt of width c for each task and basis.

    Returns:
        The prompt of each pixel.
    """
    return jax.lax.platform_dependent(
        task_weights, basis_weights, prompts, cpu=in_strips, default=task_by_task
    )


def task_by_task(task_weights: Array, basis_weights: Array, prompts: Array) -> Array:
    """The sum over the tasks, of whole maps; nothing in it is kept for the gradient."""

    @jax.checkpoint
    def add(total: Array, task: tuple[Array, Array]) -> tuple[Array, None]:
        weights, bases = task
        return total + weights[..., None] * (basis_weights @ bases), None

    shape = (*basis_weights.shape[:3], prompts.shape[-1])
    total = jnp.zeros(shape, basis_weights.dtype)
    return jax.lax.scan(add, total, (jnp.moveaxis(task_weights, -1, 0), prompts))[0]


def in_strips(task_weights: Array, basis_weights: Array, prompts: Array) -> Array:
    """One product of a strip's weights with the bank."""
    tasks, bases, _ = prompts.shape
    pixel_bytes = tasks * bases * prompts.dtype.itemsize
    strips = strips_of(basis_weights.shape, pixel_bytes)
    return over_strips(_of_strip, strips, (task_weights, basis_weights), prompts)[0]


def _of_strip(
    prompts: Array, strips: tuple[Array, Array], row: int | Array
) -> tuple[Array, tuple]:
    tasks, bases = strips
    weights = tasks[..., :, None] * bases[..., None, :]  # b h w t n
    weights = weights.reshape(*weights.shape[:3], -1)
    return weights @ prompts.reshape(weights.shape[-1], -1), ()
