"""How well DAGN's two kinds of features are apart, on images not trained on.

    python -m cir_jax.feature_scores runs/dagn_stage1_quickstart

* Of the insensitive code, for a linear probe: how often a logistic regression on its
  mean over a patch tells compressed patches from their originals. One for each quality
  is fitted on one folder of images and tested on another; 50 % is chance, and what an
  adversary is for.
* Of the sensitive code: the rank correlation of the told quality with the true one over
  all images and qualities, its mean error, and how often the codec is told rightly.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float64, UInt8
from rich.console import Console

from cir_jax import image_io, photos, weights
from cir_jax.arguments import check_can_write
from cir_jax.cli import DONE, INTERRUPTED, WRONG_USE
from cir_jax.compression import Degradation, parse_compressions
from cir_jax.data import manifest
from cir_jax.errors import UserError
from cir_jax.models.dagn_features import DAGNFeatures, codec_scales
from cir_jax.patches import cut_patches
from cir_jax.progress import progress_bar
from cir_jax.tables import markdown

EMBEDDED = 32
"""Patches that are put through the networks at a time."""
RIDGE = 1e-2
"""Of the probe, for each patch it is fitted on: keeps separable codes finite."""
NEWTON_STEPS = 30
ORIGINAL = -1
"""Stands for the number of a degradation where there is none."""

Patches = UInt8[np.ndarray, "n p p 3"]
Codes = Float64[np.ndarray, "n d"]
Ranked = Sequence[float] | Float64[np.ndarray, " n"]


class Encoders:
    """Both encoders, compiled once each."""

    def __init__(self, model: DAGNFeatures):
        graphdef, self._params = nnx.split(model, nnx.Param)

        def compiled(apply: Callable[[DAGNFeatures, jax.Array], Any]) -> Any:
            @jax.jit
            def program(params: Any, pixels: jax.Array) -> Any:
                model = nnx.merge(graphdef, params)
                return apply(model, pixels[..., : model.channels] / np.float32(255))

            return program

        def told(model: DAGNFeatures, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            told = model.sensitive.identify(images)
            return jax.nn.softmax(told.logits), told.qualities

        self._codes = compiled(lambda m, x: (m.insensitive.code(x).mean((1, 2)),))
        self._told = compiled(told)

    def codes(self, patches: Patches) -> Codes:
        """The insensitive code of each patch, its mean over the patch."""
        (codes,) = self._over(self._codes, patches)
        return codes

    def told(self, patches: Patches) -> tuple[int, Float64[np.ndarray, " k"]]:
        """What the patches of one picture tell of it, in the mean.

        Returns:
            The number of the codec that it is told to be of, 0 for none; and its
            quality, were it each codec, 0 to 1.
        """
        shares, qualities = self._over(self._told, patches)
        return int(shares.mean(0).argmax()), qualities.mean(0)

    def _over(self, program: Any, patches: Patches) -> list[Codes]:
        parts = []
        for start in range(0, len(patches), EMBEDDED):
            some = patches[start : start + EMBEDDED]
            full = np.resize(some, (EMBEDDED, *some.shape[1:]))  # one program
            found = program(self._params, full)
            parts.append([np.asarray(x, np.float64)[: len(some)] for x in found])
        return [np.concatenate(part) for part in zip(*parts, strict=True)]


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
        "rows", for each degradation its "codec" and "quality", the mean quality that is
        "told" of the pictures and its mean "error", both in the codec's own scale, the
        share of pictures whose codec is told "right"ly, and the share of patches that
        a "probe" tells rightly; "probe", the mean of these; "spearman" by codec, over
        all its qualities; and the number of "images" and of "patches".

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
    codes: dict[tuple[bool, int], list[Codes]] = {}
    told: dict[int, list[tuple[float, bool]]] = {}
    with progress_bar(console or Console(quiet=True)) as bar:
        task = bar.add_task("measuring", total=len(fitted) + len(tested), note="")
        for index, path in enumerate([*fitted, *tested]):
            held_out = index >= len(fitted)
            clean = image_io.read_rgb(path)
            original = encoders.codes(cut_patches(clean, patch, path))
            codes.setdefault((held_out, ORIGINAL), []).append(original)
            for number, each in enumerate(degradations):
                seen = cut_patches(each(clean, 1, index).degraded, patch, path)
                codes.setdefault((held_out, number), []).append(encoders.codes(seen))
                if held_out:
                    codec, qualities = encoders.told(seen)
                    expected = list(scales).index(each.codec_name)
                    own = scales[each.codec_name].own(qualities[expected])
                    told.setdefault(number, []).append((own, codec == expected + 1))
            bar.update(task, advance=1)

    stacked = {key: np.concatenate(parts) for key, parts in codes.items()}
    rows = []
    for number, each in enumerate(degradations):
        own, right = map(np.array, zip(*told[number], strict=True))
        (fit, labels), (test, expected) = (
            _both(stacked[held_out, number], stacked[held_out, ORIGINAL])
            for held_out in (False, True)
        )
        rows.append(
            {
                "codec": each.codec_name,
                "quality": each.quality_name,
                "told": float(own.mean()),
                "error": float(np.abs(own - each.quality_name).mean()),
                "right": float(right.mean()),
                "probe": float(np.mean(probe(fit, labels)(test) == expected)),
            }
        )
    pairs: dict[str, list[tuple[float, float]]] = {}
    for number, each in enumerate(degradations):
        mine = [(float(each.quality_name), own) for own, _ in told[number]]
        pairs.setdefault(each.codec_name, []).extend(mine)
    return {
        "rows": rows,
        "probe": float(np.mean([row["probe"] for row in rows])),
        "spearman": {
            name: spearman(*zip(*some, strict=True)) for name, some in pairs.items()
        },
        "images": len(tested),
        "patches": len(stacked[True, ORIGINAL]),
    }


def _both(
    compressed: Codes, original: Codes
) -> tuple[Float64[np.ndarray, "m d"], Bool[np.ndarray, " m"]]:
    """All codes, and which of them are of compressed patches."""
    codes = np.concatenate([compressed, original])
    return codes, np.arange(len(codes)) < len(compressed)


def probe(codes: Codes, labels: Bool[np.ndarray, " n"]) -> Callable[[Codes], Any]:
    """A logistic regression, fitted by Newton's method: what tells codes by labels.

    Each channel is scaled to mean 0 and deviation 1 first, as of the fitted codes.
    """
    mean, deviation = codes.mean(0), codes.std(0) + 1e-8

    def inputs(x: Codes) -> Float64[np.ndarray, "n _"]:
        return np.column_stack([(x - mean) / deviation, np.ones(len(x))])

    x = inputs(codes)
    weights, ridge = np.zeros(x.shape[1]), RIDGE * len(x) * np.eye(x.shape[1])
    for _ in range(NEWTON_STEPS):
        shares = 1 / (1 + np.exp(-(x @ weights)))
        slope = x.T @ (shares - labels) + ridge @ weights
        curvature = (x.T * (shares * (1 - shares))) @ x + ridge
        weights -= np.linalg.solve(curvature, slope)
    return lambda other: inputs(other) @ weights > 0


def spearman(left: Ranked, right: Ranked) -> float:
    """The correlation of ranks, equal values sharing the mean of theirs; -1 to 1."""
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: Ranked) -> Float64[np.ndarray, " n"]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def table(found: dict[str, Any]) -> str:
    """What `scores` gives, as text."""
    heads = ("codec", "quality", "quality told", "mean error", "codec told rightly")
    rows = [[*heads, "probe tells rightly"]]
    for row in found["rows"]:
        numbers = (f"{row['told']:.1f}", f"{row['error']:.1f}", f"{row['right']:.1%}")
        rows.append(
            [row["codec"], str(row["quality"]), *numbers, f"{row['probe']:.1%}"]
        )
    ranks = ", ".join(
        f"{name} {value:.3f}" for name, value in found["spearman"].items()
    )
    return (
        f"{markdown(rows)}\n\nsensitive code: rank correlation of the quality told of "
        f"{found['images']} images: {ranks}\ninsensitive code: a linear probe tells "
        f"{found['probe']:.1%} of {found['patches']} patches from their originals, by "
        "chance 50%"
    )


def main(arguments: Sequence[str]) -> int:
    """The command; bad input gives 2 and one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m cir_jax.feature_scores",
        description="Measure how well DAGN's two kinds of features are apart.",
    )
    parser.add_argument("weights", help="of dagn_features: a file or a workdir")
    parser.add_argument(
        "--images", default="photos:validation", help="folder; default: what ships"
    )
    parser.add_argument(
        "--fit", default="photos:train", help="folder that the probe is fitted on"
    )
    parser.add_argument("--codec", default="jpeg", help="by commas; default: jpeg")
    parser.add_argument(
        "--quality", action="append", help="as for cir evaluate; default: 5,10:90:10"
    )
    parser.add_argument("--patch", type=int, default=64, help="side; default: 64")
    parser.add_argument("--json", type=Path, help="write the scores")
    options = parser.parse_args(arguments)
    try:
        check_can_write("--json", options.json)
        model = weights.load(options.weights)
        if not isinstance(model, DAGNFeatures):
            raise UserError(
                f"{options.weights} holds a {model.config['name']}: give weights of "
                "dagn_features"
            )
        if options.patch < 1 or options.patch % model.multiple:
            raise UserError(
                f"--patch {options.patch}: give a multiple of {model.multiple}"
            )
        degradations = parse_compressions(
            options.codec, options.quality or ["5,10:90:10"]
        )
        fitted, tested = (
            image_io.find_images(photos.resolve(folder))
            for folder in (options.fit, options.images)
        )
        console = Console(stderr=True)
        found = scores(model, fitted, tested, degradations, options.patch, console)
        if options.json:
            manifest.write_json(options.json, found)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    print(table(found))
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
