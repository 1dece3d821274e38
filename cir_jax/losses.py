"""Training losses: pure functions of restored and clean images, in float32."""

import jax.numpy as jnp
from jaxtyping import Array, Float

CHARBONNIER_EPSILON = 1e-3
"""As in MPRNet and Restormer's relatives, for images in [0, 1]."""


def l1(restored: Float[Array, "b h w c"], clean: Float[Array, "b h w c"]):
    """Mean absolute error; a float32 scalar."""
    return jnp.mean(jnp.abs(restored.astype(jnp.float32) - clean))


def mse(restored: Float[Array, "b h w c"], clean: Float[Array, "b h w c"]):
    """Mean squared error, of which PSNR is the logarithm; a float32 scalar."""
    return jnp.mean(jnp.square(restored.astype(jnp.float32) - clean))


def charbonnier(restored: Float[Array, "b h w c"], clean: Float[Array, "b h w c"]):
    """Mean of sqrt(error^2 + 1e-6), a smooth L1 (Lai et al., LapSRN); a scalar."""
    error = restored.astype(jnp.float32) - clean
    return jnp.mean(jnp.sqrt(error**2 + CHARBONNIER_EPSILON**2))


LOSSES = {"l1": l1, "charbonnier": charbonnier, "mse": mse}
