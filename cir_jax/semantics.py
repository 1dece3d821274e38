"""What a picture shows, for networks that are guided by it: DINOv2's class tokens."""

import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32

from cir_jax.encoders import dinov2
from cir_jax.guidance import check_semantics
from cir_jax.models.layers import RestorationModel
from cir_jax.ops.bicubic import resize_bicubic


class SemanticEncoder:
    """Class tokens of whole images of any size, in memory that does not grow with them.

    Args:
        encoder: a DINOv2, or the path of its weights.
        model: the network that is guided.

    Raises:
        UserError: see `dinov2.load` and `guidance.check_semantics`.
    """

    def __init__(
        self, encoder: str | os.PathLike | dinov2.DINOv2, model: RestorationModel
    ):
        origin = "the DINOv2" if isinstance(encoder, nnx.Module) else encoder
        if not isinstance(encoder, nnx.Module):
            encoder = dinov2.load(encoder)
        check_semantics(encoder, model, origin)
        graphdef, params = nnx.split(encoder, nnx.Param)
        self._params = jax.tree.map(jnp.asarray, params)  # on the device, once

        @jax.jit
        def tokens(params, image):
            return nnx.merge(graphdef, params).semantics(image)

        self._tokens = tokens

    def __call__(self, image: np.ndarray) -> Float32[np.ndarray, "4 1 d"]:
        """Class tokens of an image.

        Args:
            image: [h, w, 3] or [h, w, 1]: integers of their type's whole range, or
                floats in [0, 1].
        """
        side = dinov2.SIDE
        # Its own resizing would compile once for every size, and copy the whole image.
        small = np.asarray(resize_bicubic(image[None], side, side), np.float32)
        if image.dtype != np.float32:
            small = small / np.float32(np.iinfo(image.dtype).max)
        small = np.broadcast_to(small, (1, side, side, 3))
        return np.asarray(self._tokens(self._params, small))
