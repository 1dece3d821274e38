"""The matrix product of every linear layer and 1x1 convolution."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def matmul(
    x: Float[Array, "*b c"], kernel: Float[Array, "c d"]
) -> Float[Array, "*b d"]:
    """The product, with a kernel gradient that suits XLA on CPU.

    Automatic differentiation orders that gradient as (gᵀ x)ᵀ, and XLA then computes
    whatever makes the wide g in transposed order, slowly; xᵀ g is the same product
    without. A feed-forward network gets a quarter faster.

    Args:
        x: channels last.
        kernel: input channels, output channels.

    Returns:
        The product.
    """
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    return g @ kernel.T, over_pixels(x, g).astype(kernel.dtype)


matmul.defvjp(_forward, _backward)


def over_pixels(
    x: Float[Array, "*b c"], y: Float[Array, "*b d"]
) -> Float[Array, "c d"]:
    """Each channel of x times each of y, summed over the pixels, in float32."""
    x, y = (a.reshape(-1, a.shape[-1]) for a in (x, y))
    return jax.lax.dot_general(
        x, y, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
