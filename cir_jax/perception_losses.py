"""Perceive-IR's losses (2408.15994), as released: pure functions, in float32.

They compare vectors and feature maps that networks made; objectives.py runs those.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

CONTRASTIVE_TEMPERATURE = 0.1
LOW, MEDIUM, HIGH = range(3)
"""The tiers of quality, in the order of the perceiver's prompts."""
LAYER_WEIGHTS = (1 / 12, 1 / 6, 1 / 3, 1.0)
"""Of VGG16's relu1_2, relu2_2, relu3_1 and relu3_3."""
DEGRADED_WEIGHT = 2.0
HARD, VERY_HARD = 1.25, 0.75
"""Weights of proxies: those that restore a patch no better than the network's mean on
their task, and those that restore it better."""
LEAST_DISTANCE = 1e-6


def contrastive(
    anchors: Float[Array, "b d"],
    positives: Float[Array, "b d"],
    tasks: Int32[Array, " b"],
) -> Float32[Array, ""]:
    """InfoNCE: the content of two crops of an image is alike, of other tasks' is not.

    Of each image the mean of -log(p / (p + sum n)), where p = exp(anchor . positive /
    0.1) and n the same of the anchors of all images of other tasks, which get no
    gradient by that. Images without such others are left out.

    Args:
        anchors: vectors of length 1.
        positives: of other crops of the same degraded images, of length 1.
        tasks: each image's number.

    Returns:
        The loss, at least 0; 0 if all images are of one task.
    """
    anchors, positives = (x.astype(jnp.float32) for x in (anchors, positives))
    near = jnp.sum(anchors * positives, axis=-1) / CONTRASTIVE_TEMPERATURE
    far = anchors @ jax.lax.stop_gradient(anchors).T / CONTRASTIVE_TEMPERATURE
    others = tasks[:, None] != tasks[None, :]
    logits = jnp.concatenate([near[:, None], jnp.where(others, far, -jnp.inf)], axis=1)
    each = jax.nn.logsumexp(logits, axis=1) - near
    counted = others.any(axis=1)
    return jnp.sum(jnp.where(counted, each, 0)) / jnp.maximum(counted.sum(), 1)


def clip_quality(cosines: Float[Array, "b 3"]) -> Float32[Array, ""]:
    """How far restored images are from looking excellent to the quality perceiver.

    Args:
        cosines: of CLIP's embedding of each image with those of the low, medium and
            high prompt; not scaled, as released.

    Returns:
        The mean of 1 - softmax(cosines)[high], in 0..1.
    """
    chances = jax.nn.softmax(cosines.astype(jnp.float32), axis=-1)
    return jnp.mean(1 - chances[:, HIGH])


def proxy_weights(
    proxy_psnr: Float[Array, " b"],
    reference_psnr: Float[Array, " b"],
    applies: Bool[Array, " b"],
) -> Float32[Array, " b"]:
    """How much a proxy's output pushes each restored patch away.

    Args:
        proxy_psnr: of the proxy's output, dB.
        reference_psnr: the mean that the network itself reaches on each patch's task.
        applies: whether the proxy is one for the patch's task.

    Returns:
        1.25 for a hard negative, 0.75 for a very hard one, 0 where it does not apply.
    """
    weights = jnp.where(proxy_psnr <= reference_psnr, HARD, VERY_HARD)
    return jnp.where(applies, weights, 0).astype(jnp.float32)


def difficulty(
    restored: Sequence[Float[Array, "b _ _ _"]],
    clean: Sequence[Float[Array, "b _ _ _"]],
    degraded: Sequence[Float[Array, "b _ _ _"]],
    proxies: Sequence[Sequence[Float[Array, "b _ _ _"]]],
    weights: Sequence[Float[Array, " b"]],
) -> Float32[Array, ""]:
    """Difficulty-adaptive perceptual loss: near the clean image, far from the others.

    Args:
        restored: feature maps of the restored images, one for each of `LAYER_WEIGHTS`.
        clean: the clean images'.
        degraded: the degraded images'.
        proxies: of each proxy's outputs.
        weights: each proxy's, see `proxy_weights`.

    Returns:
        The mean over images of the sum over layers of w d(restored, clean) / max(1e-6,
        2 d(restored, degraded) + sum of weight d(restored, proxy)), where d is the mean
        absolute difference of an image's map.
    """
    total = jnp.float32(0)
    for layer, layer_weight in enumerate(LAYER_WEIGHTS):
        ours = restored[layer]
        away = DEGRADED_WEIGHT * _distance(ours, degraded[layer])
        for proxy, weight in zip(proxies, weights, strict=True):
            away += weight * _distance(ours, proxy[layer])
        towards = _distance(ours, clean[layer])
        total += layer_weight * jnp.mean(towards / jnp.maximum(away, LEAST_DISTANCE))
    return total


def _distance(
    x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]
) -> Float32[Array, " b"]:
    difference = x.astype(jnp.float32) - y.astype(jnp.float32)
    return jnp.mean(jnp.abs(difference), axis=(1, 2, 3))
