"""How well DAGN's two kinds of features are apart, on images not trained on.

    python -m cir_jax.feature_scores runs/dagn_stage1_quickstart

* Of the insensitive code, for a linear probe: how often a logistic regression on its
  mean over a patch tells compressed patches from their originals. It is fitted on one
  folder of images and tested on another; 50 % is chance, and what an adversary is for.
* Of the sensitive code: the rank correlation of the told quality with the true one over
  all images and qualities, its mean error, and how often the codec is told rightly.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float64, Int64, UInt8
from rich.console import Console

from cir_jax import cli, image_io, photos, weights
from cir_jax.arguments import check_can_write
from cir_jax.compression import Degradation, compressions
from cir_jax.codecs import parse_qualities
from cir_jax.data import manifest
from cir_jax.errors import UserError
from cir_jax.models.dagn_features import DAGNFeatures, codec_scales
from cir_jax.progress import progress_bar
from cir_jax.tables import markdown

EMBEDDED = 32
"""Patches that are put through the networks at a time."""
RIDGE = 1e-3
"""Of the probe, for each patch it is fitted on: keeps separable codes finite."""
NEWTON_STEPS = 30

Patches = UInt8[np.ndarray, "n p p 3"]
Codes = Float64[np.ndarray, "n d"]


class Seen(NamedTuple):
    """What the networks make of the patches of a picture.

    Attributes:
        codes: the insensitive code of each, its mean over the patch.
        codec: the number of the codec that the whole picture is told to be of, 0 for
            none.
        qualities: of the whole picture, were it each codec, 0 to 1.
    """

    codes: Codes
    codec: int
    qualities: Float64[np.ndarray, " k"]


class Encoders:
    """Both encoders, compiled once."""

    def __init__(self, model: DAGNFeatures):
        graphdef, self._params = nnx.split(model, nnx.Param)

        @jax.jit
        def seen(params: Any, pixels: jax.Array) -> tuple[jax.Array, ...]:
            model = nnx.merge(graphdef, params)
            images = pixels[..., : model.channels] / np.float32(255)
            code = model.insensitive.encoder(images)[-1]
            told = model.sensitive.identify(images)
            return code.mean((1, 2)), jax.nn.softmax(told.logits), told.qualities

        self._seen = seen

    def __call__(self, patches: Patches) -> Seen:
        """What they make of the patches of one picture."""
        parts = []
        for start in range(0, len(patches), EMBEDDED):
            some = patches[start : start + EMBEDDED]
            full = np.resize(some, (EMBEDDED, *some.shape[1:]))  # one program
            told = self._seen(self._params, full)
            parts.append([np.asarray(x, np.float64)[: len(some)] for x in told])
        codes, shares, qualities = map(np.concatenate, zip(*parts, strict=True))
        return Seen(codes, int(shares.mean(0).argmax()), qualities.mean(0))


def scores(
    model: DAGNFeatures,
    fitted: Sequence[Path],
    tested: Sequence[Path],
    degradations: Sequence[Degradation],
    patch: int,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measures a network; deterministic.

    Args:
        model: the first stage's network.
        fitted: images that the probe is fitted on.
        tested: images that all is measured on.
        degradations: what each is compressed by; of codecs that the model knows.
        patch: side of the patches, pixels, a multiple of 8.
        console: where the progress is shown, if anywhere.

    Returns:
        "probe", the share of patches that the probe tells rightly; "codecs", for each
        one "spearman", "error" (in the codec's own scale) and "right", the share of
        pictures whose codec is told rightly.

    Raises:
        UserError: an image is smaller than a patch, or a codec is unknown to the model.
    """
    encoders = Encoders(model)
    scales = {scale.name: scale for scale in codec_scales(model.codecs)}
    for each in degradations:
        if each.codec_name not in scales:
            raise UserError(
                f"--codec {each.codec_name}: these weights know {', '.join(scales)}"
            )
    names = list(scales)
    told: dict[str, list[tuple[float, float, bool]]] = {}
    probed: dict[str, list[tuple[Codes, Codes]]] = {"fit": [], "test": []}
    with progress_bar(console or Console(quiet=True)) as bar:
        task = bar.add_task("measuring", total=len(fitted) + len(tested), note="")
        for index, path in enumerate([*fitted, *tested]):
            held_out = index >= len(fitted)
            clean = image_io.read_rgb(path)
            original = encoders(cut(clean, patch, path)).codes
            # One quality of each photograph is enough to fit the probe on.
            some = (
                degradations
                if held_out
                else degradations[index % len(degradations) :][:1]
            )
            for each in some:
                seen = encoders(cut(each(clean, 1, index).degraded, patch, path))
                probed["test" if held_out else "fit"].append((seen.codes, original))
                if held_out:
                    scale = scales[each.codec_name]
                    number = names.index(each.codec_name)
                    quality = scale.worst + seen.qualities[number] * (
                        scale.best - scale.worst
                    )
                    told.setdefault(each.codec_name, []).append(
                        (each.quality_name, quality, seen.codec == number + 1)
                    )
            bar.update(task, advance=1)
    (fit, fit_labels), (test, test_labels) = map(_stacked, probed.values())
    right = probe(fit, fit_labels)(test) == test_labels
    return {
        "probe": float(right.mean()),
        "codecs": {name: _told(np.array(rows)) for name, rows in told.items()},
        "images": len(tested),
        "patches": len(test),
    }


def cut(image: UInt8[np.ndarray, "h w 3"], patch: int, path: Path) -> Patches:
    """All patches of an image, side by side; what is left at the borders is left out.

    Raises:
        UserError: the image is smaller than a patch.
    """
    rows, columns = (side // patch for side in image.shape[:2])
    if not rows * columns:
        height, width, _ = image.shape
        raise UserError(f"{path} is {width}x{height} pixels, smaller than a patch")
    whole = image[: rows * patch, : columns * patch]
    tiles = whole.reshape(rows, patch, columns, patch, 3).swapaxes(1, 2)
    return tiles.reshape(-1, patch, patch, 3)


def _stacked(
    pairs: Sequence[tuple[Codes, Codes]],
) -> tuple[Codes, Bool[np.ndarray, " n"]]:
    """All codes, and which of them are of compressed patches: half of them."""
    compressed, original = (np.concatenate(side) for side in zip(*pairs, strict=True))
    labels = np.arange(2 * len(compressed)) < len(compressed)
    return np.concatenate([compressed, original]), labels
