"""Codec and quality of an image from its pixels, by a trained sensitive encoder."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32

from cir_jax import weights
from cir_jax.device_metrics import luma
from cir_jax.errors import UserError
from cir_jax.models.dagn_features import NO_CODEC, codec_scales
from cir_jax.models.layers import RestorationModel
from cir_jax.restore import Image, check_image, find_device

PATCH = 128
"""Pixels a side of what the encoder sees of an image at a time."""
ROWS = 4
"""Of patches, at most, and as many columns."""
BATCH = 4
"""Of patches, which bounds memory; a small image is but one."""
ALIGNED = 16
"""Pixels: patches start where a block of JPEG does, its halved chroma's included."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """How an image was compressed, as its pixels show it.

    Attributes:
        codec: the most probable one; "none" for an image that was not compressed.
        probability: of that, 0 to 1.
        quality: on the codec's own scale, between `worst` and `best`; None where there
            is no codec.
        worst: the quality of the codec's worst pictures, such as 51 for HEVC.
        best: of its best, such as 0.
        probabilities: of "none" and of each codec that the encoder knows.
    """

    codec: str
    probability: float
    quality: float | None
    worst: int | None
    best: int | None
    probabilities: Mapping[str, float]

    def __str__(self):
        percent = f"{self.probability:.0%}"
        if self.quality is None:
            return f"no codec {percent}"
        scale = f"{self.worst} to {self.best}"
        return f"{self.codec} {percent}, quality {self.quality:.0f} ({scale})"

    def to_json(self) -> dict[str, Any]:
        """The fields that are known, in four digits behind the point."""
        fields = dataclasses.asdict(self)
        fields["probability"] = round(self.probability, 4)
        fields["probabilities"] = {
            name: round(value, 4) for name, value in self.probabilities.items()
        }
        if self.quality is not None:
            fields["quality"] = round(self.quality, 4)
        return {name: value for name, value in fields.items() if value is not None}


class Identifier:
    """A function from images to how they were compressed.

    It looks at up to 16 patches of 128 x 128 pixels, spread evenly over the image, and
    takes the means of what the encoder tells of each: one program and one amount of
    memory for images of all sizes. Images that are smaller are mirrored at the bottom
    and right. Threads may share an identifier.

    Args:
        model: a weights file, a workdir, or a model, of a DAGN training.
        device: "cpu", "gpu" or "tpu", or one of several such as "gpu:1"; JAX's default
            when None.

    Raises:
        UserError: there is no such model or device, or the model has no sensitive
            encoder.
    """

    def __init__(
        self,
        model: str | os.PathLike | RestorationModel,
        *,
        device: str | None = None,
    ):
        name = "these weights"
        if not isinstance(model, nnx.Module):
            name, model = f"the weights {model}", weights.load(model)
        if getattr(model, "sensitive", None) is None:
            raise UserError(
                f"{name} have no sensitive encoder, which tells codec and quality: "
                "give those of a DAGN training, dagn_features or a dagn that is guided "
                "by it"
            )
        self.channels, self.scales = model.channels, codec_scales(model.codecs)
        graphdef, params = nnx.split(model.sensitive, nnx.Param)
        self._params = nnx.to_pure_dict(params)
        if device is not None:
            self._params = jax.device_put(self._params, find_device(device))

        def apply(params, patches, shares):
            encoder = nnx.merge(graphdef, params)
            grey = patches.shape[-1] > model.channels
            told = encoder.identify(luma(patches, rounded=False) if grey else patches)

            def weighted(values):  # no matrix product, which may take fewer bits
                return (values * shares[:, None]).sum(axis=0)

            return weighted(jax.nn.softmax(told.logits)), weighted(told.qualities)

        self._apply = jax.jit(apply)

    def __call__(self, image: Image) -> Estimate:
        """Looks at one image.

        Args:
            image: uint8, uint16, or float32 in [0, 1]; [h, w, 3], RGB, of which a grey
                encoder sees the luma (BT.601); or [h, w, 1] for a grey encoder.

        Raises:
            UserError: the array is no such image.
            jax.errors.JaxRuntimeError: the device's memory is too small.
        """
        check_image(image, self.channels)
        told = [self._apply(self._params, *batch) for batch in _batches(image)]
        known, qualities = (
            np.sum(values, axis=0).tolist() for values in zip(*told, strict=True)
        )
        names = (NO_CODEC, *(scale.name for scale in self.scales))
        probabilities = dict(zip(names, known, strict=True))
        codec = max(probabilities, key=probabilities.__getitem__)
        probability = probabilities[codec]
        if codec == NO_CODEC:
            return Estimate(codec, probability, None, None, None, probabilities)
        number = names.index(codec) - 1
        scale = self.scales[number]
        quality = scale.own(min(max(qualities[number], 0.0), 1.0))
        return Estimate(
            codec, probability, quality, scale.worst, scale.best, probabilities
        )


def _batches(
    image: Image,
) -> Iterator[tuple[Float32[np.ndarray, "n p p c"], Float32[np.ndarray, " n"]]]:
    """The patches of an image, and each one's share in their mean.

    What is left over of the last batch is black and has no share.
    """
    height, width, channels = image.shape
    corners = [(y, x) for y in _starts(height) for x in _starts(width)]
    for start in range(0, len(corners), BATCH):
        patches = np.zeros((BATCH, PATCH, PATCH, channels), np.float32)
        shares = np.zeros(BATCH, np.float32)
        for i, (y, x) in enumerate(corners[start : start + BATCH]):
            seen = image[y : y + PATCH, x : x + PATCH]
            padding = [(0, PATCH - size) for size in seen.shape[:2]]
            patches[i] = np.pad(seen, [*padding, (0, 0)], mode="symmetric")
            shares[i] = 1 / len(corners)
        if image.dtype != np.float32:
            patches /= np.float32(np.iinfo(image.dtype).max)
        yield patches, shares


def _starts(size: int) -> list[int]:
    """Where patches start along a side: in the middle of equal parts of it."""
    count = min(max(size // PATCH, 1), ROWS)
    middles = ((2 * i + 1) * size // (2 * count) for i in range(count))
    return [max(middle - PATCH // 2, 0) // ALIGNED * ALIGNED for middle in middles]
