"""What published encoders expect pixels to be."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Pixels(NamedTuple):
    """Mean and standard deviation of the red, green and blue that were trained on."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    def normalised(
        self, image: Float[Array | np.ndarray, "b h w 3"]
    ) -> Float[Array, "b h w 3"]:
        """RGB in [0, 1] at a mean of about 0 and a deviation of about 1."""
        mean, deviation = (jnp.array(x, jnp.float32) for x in self)
        return (jnp.asarray(image) - mean) / deviation


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = Pixels((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
