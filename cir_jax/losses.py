"""Training losses: pure functions of restored and clean images, in float32."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from cir_jax import device_metrics
from cir_jax.errors import UserError, unknown

CHARBONNIER_EPSILON = 1e-3
"""As in MPRNet and Restormer's relatives, for images in [0, 1]."""
PSNR_EPSILON = 0.25 / 255
"""Of the root of the mean squared error; a perfect image so has 60 dB."""


def l1(restored: Float[Array, "b h w c"], clean: Float[Array, "b h w c"]):
    """Mean absolute error; a float32 scalar."""
    return jnp.mean(jnp.abs(restored.astype(jnp.float32) - clean))


def mse(restored: Float[Array, "b h w c"], clean: Float[Array, "b h w c"]):
    """Mean squared error, of which PSNR is the logarithm; a float32 scalar."""
    return jnp.mean(jnp.square(restored.astype(jnp.float32) - clean))


def psnr(restored: Float[Array, "b h w c"], clean: Float[Array, "b h w c"]):
    """The mean PSNR over images, dB, with its sign turned; a float32 scalar.

    Each image counts by how much better it became, whether it was good or bad (NAFNet,
    2204.04676). An error of a quarter of a level is added, so that perfect images are
    finite.
    """
    error = jnp.square(restored.astype(jnp.float32) - clean)
    mean = jnp.mean(error, axis=(1, 2, 3)) + PSNR_EPSILON**2
    return 10 * jnp.mean(jnp.log10(mean))


def charbonnier(restored: Float[Array, "b h w c"], clean: Float[Array, "b h w c"]):
    """Mean of sqrt(error^2 + 1e-6), a smooth L1 (Lai et al., LapSRN); a scalar."""
    error = restored.astype(jnp.float32) - clean
    return jnp.mean(jnp.sqrt(error**2 + CHARBONNIER_EPSILON**2))


def fft(restored: Float[Array, "b h w c"], clean: Float[Array, "b h w c"]):
    """Mean absolute error of the 2-D spectra, real and imaginary parts; a scalar.

    The transform is orthonormal, so that the size of patches does not matter (Cho et
    al., MIMO-UNet, 2108.05054, without their scaling).
    """
    error = restored.astype(jnp.float32) - clean
    spectrum = jnp.fft.fft2(error, axes=(1, 2), norm="ortho")
    return jnp.mean(jnp.abs(spectrum.real) + jnp.abs(spectrum.imag)) / 2


def ssim(restored: Float[Array, "b h w c"], clean: Float[Array, "b h w c"]):
    """1 - SSIM, of values as they are, see `device_metrics.ssim`; a float32 scalar."""
    restored = restored.astype(jnp.float32)
    return 1 - jnp.mean(device_metrics.ssim(clean, restored, rounded=False))


LOSSES = {
    "l1": l1,
    "charbonnier": charbonnier,
    "mse": mse,
    "psnr": psnr,
    "fft": fft,
    "ssim": ssim,
}
"""Of restored and clean images, by name."""
CONTRASTIVE, CLIP_QUALITY, DIFFICULTY = "contrastive", "clip_quality", "difficulty"
GUIDED = (CONTRASTIVE, CLIP_QUALITY, DIFFICULTY)
"""Perceive-IR's, which need more than these images, see perception_losses.py."""
ADVERSARIAL = ("hinge", "least_squares")
DECOUPLING = (
    "reconstruction",
    *ADVERSARIAL,
    "alignment",
    "quality",
    "ranking",
    "codec",
)
"""Those of DAGN's first stage, see decoupling.py."""


def parse_loss(text: str) -> tuple[tuple[float, str], ...]:
    """The weights and names that a text such as "l1 + 0.05 fft + 0.1 ssim" holds.

    Raises:
        UserError: an unknown name, a weight that is no positive number, the same name
            twice, or none of `LOSSES`.
    """
    terms = parse_terms(text, (*LOSSES, *GUIDED))
    if all(name in GUIDED for _, name in terms):
        raise UserError(
            f"config.loss={text!r} compares nothing with the clean image: add one of "
            f"{', '.join(LOSSES)}"
        )
    return terms


def parse_terms(text: str, known: Sequence[str]) -> tuple[tuple[float, str], ...]:
    """The weights and names that a text such as "l1 + 0.05 fft" holds.

    Raises:
        UserError: an unknown name, a weight that is no positive number, or the same
            name twice.
    """
    terms: list[tuple[float, str]] = []
    for term in text.split("+"):
        *weight, name = term.split() or [""]
        if name not in known:
            raise unknown("config.loss", name, known)
        try:
            (value,) = map(float, weight or ["1"])
        except ValueError:
            value = 0.0
        if not 0 < value < math.inf or name in (known for _, known in terms):
            raise UserError(
                f"config.loss={text!r}: give each term once, as NAME or WEIGHT NAME, "
                f"with a positive number, such as '{known[0]} + 0.05 {known[-1]}'"
            )
        terms.append((value, name))
    return tuple(terms)
