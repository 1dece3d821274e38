"""Perceive-IR's stage 1: three prompts by which CLIP tells low from high quality.

Of a triplet (degraded, restored by a mediocre network, clean) CLIP's image encoder and
text encoder stay as they are; what is learnt are the vectors of the prompts, by the
cross-entropy of the three cosines times CLIP's scale (2408.15994). `cir tiers` makes
records of such triplets.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float32, Int, UInt8
from ml_collections import ConfigDict

from cir_jax import experiment, image_io, optimizers, parallel, photos
from cir_jax.compression import Degradation, compressions
from cir_jax.data import manifest
from cir_jax.data.tiers import tier_batches
from cir_jax.encoders import clip, prompts
from cir_jax.encoders.words import words
from cir_jax.errors import UserError, unknown
from cir_jax.loop import Scored, Training, run, start
from cir_jax.models import DTYPES
from cir_jax.models.layers import normal
from cir_jax.objectives import Batch, Metrics, Objective
from cir_jax.patches import cut_patches
from cir_jax.restore import Restorer
from cir_jax.tables import markdown
from cir_jax.train_step import TrainState

DEVIATION = 0.02
"""Of the vectors before the first step."""
WEIGHTS, SCORES = "prompts.safetensors", "scores.json"
TOKENIZER = "tokenizer.json"
"""What Hugging Face has beside the weights of CLIP."""
EMBEDDED = 16
"""Triplets that are embedded at a time to be scored."""

Tiers = UInt8[np.ndarray, "3 p p 3"]
"""A patch in low, medium and high quality."""


class QualityPrompts(nnx.Module):
    """The learnt vectors, [3, n, width]: they stand where embedded words do."""

    def __init__(
        self,
        encoder: clip.CLIP,
        count: int,
        last: Sequence[int] = (),
        *,
        rngs: nnx.Rngs,
    ):
        """Draws them; the last of each prompt may start as a word of CLIP's.

        Args:
            encoder: the CLIP that will read them.
            count: vectors of each prompt.
            last: the tokens of three words; none where they are not known.
            rngs: where they are drawn from.
        """
        width = encoder.token_embedding(0).shape[0]
        drawn = normal(DEVIATION)(rngs.params(), (len(prompts.QUALITIES), count, width))
        for number, token in enumerate(last):
            drawn = drawn.at[number, -1].set(encoder.token_embedding(token))
        self.context = nnx.Param(drawn)


@dataclasses.dataclass(frozen=True)
class Perception(Objective):
    """Patches are to be told by their quality.

    Attributes:
        clip: the structure of the frozen encoders.
    """

    clip: nnx.GraphDef

    def __call__(
        self,
        model: QualityPrompts,
        batch: Batch,
        frozen: Mapping[str, Any],
        memory: Any,
    ) -> tuple[Float32[Array, ""], Metrics]:
        """The cross-entropy of the tiers; a batch's "tiers" are [b, 3, p, p, 3]."""
        encoder = nnx.merge(self.clip, frozen["clip"])
        b, tiers, *shape = batch["tiers"].shape
        pixels = batch["tiers"].reshape(b * tiers, *shape) / jnp.float32(255)
        embedded = encoder.image_embedding(pixels).reshape(b, tiers, -1)
        towards = encoder.prompt_embedding(model.context[...])
        logits = jnp.exp(encoder.logit_scale[...]) * (embedded @ towards.T)
        labels = jnp.broadcast_to(jnp.arange(tiers), (b, tiers))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), {"accuracy": jnp.mean(logits.argmax(-1) == labels)}


def train_and_evaluate(
    config: ConfigDict, workdir: Path, *, profile: bool = False
) -> dict[str, Any] | None:
    """Trains prompts as the config says, going on from the workdir's checkpoint.

    Args:
        config: an experiment whose model is "quality_perceiver", see experiment.py;
            its `guidance` names CLIP's file, and the weights that make the held-out
            images' medium tier.
        workdir: where checkpoints/, metrics.jsonl, prompts.safetensors and scores.json
            go; made if it does not exist. All processes must see it.
        profile: write a trace of a few steps to WORKDIR/profile.

    Returns:
        What scores.json holds; None when a signal stopped the training early.

    Raises:
        UserError: the config, the data, a file it names or the workdir's checkpoint is
            wrong, or the loss is no longer finite.
    """
    # ---------------------------------------------------------------- the experiment
    mesh = start(config, workdir)
    context = _check_model(config)

    # ---------------------------------------------------------------- data
    records, contents = manifest.open_records(
        experiment.records_folder(config, workdir),
        experiment.encode_command(config, workdir),
    )
    batches_from = functools.partial(
        tier_batches,
        records,
        contents,
        seed=config.seed,
        batch_size=config.batch_size,
        patch=config.data.patch,
        qualities=tuple(config.data.qualities),
        tasks=tuple(config.data.tasks),
        damaged=config.data.damaged,
        process=jax.process_index(),
        processes=jax.process_count(),
    )

    # ---------------------------------------------------------------- model and CLIP
    encoder = clip.load(config.guidance.clip, dtype=DTYPES[config.dtype])
    last = first_words(Path(config.guidance.clip))
    model = QualityPrompts(encoder, context, last, rngs=nnx.Rngs(config.seed))
    graphdef, params = nnx.split(model, nnx.Param)
    structure, frozen = nnx.split(encoder, nnx.Param)

    # ---------------------------------------------------------------- evaluation
    medium = Restorer(config.guidance.medium, tile=None)
    images = image_io.find_images(photos.resolve(config.evaluation.images))
    tests = compressions(config.evaluation.codec, config.evaluation.qualities)
    held_out = embed(encoder, held_out_tiers(images, tests, medium, config.data.patch))

    def evaluate_now(step: int, state: TrainState) -> Scored:
        """Writes the prompts, and scores them on the held-out images."""
        average = np.asarray(parallel.whole(state.ema, mesh)["context"])
        if parallel.is_first():
            provenance = {"step": str(step), "config": config.to_json_best_effort()}
            prompts.write_prompts(workdir / WEIGHTS, average, provenance)
        cosines = held_out @ clip.embed_prompts(encoder, average).T
        scores = confusion(cosines.argmax(-1))
        accuracy = scores["accuracy"]
        text = f"{accuracy:.1%} of {3 * len(held_out)} held-out patches are right"
        return Scored("accuracy", accuracy, text, scores["rows"], scores)

    # ---------------------------------------------------------------- the loop
    finished = run(
        Training(
            config,
            workdir,
            mesh,
            graphdef,
            jax.tree.map(np.asarray, nnx.to_pure_dict(params)),
            Perception(structure),
            {"clip": nnx.to_pure_dict(frozen)},
            optimizers.turns(config),
            batches_from,
            f"{len(records)} records",
        ),
        evaluate_now,
        profile=profile,
    )
    if finished is None:
        return None

    # ---------------------------------------------------------------- the results
    _, scored = finished
    if parallel.is_first():
        manifest.write_json(workdir / SCORES, scored.report)
        print(table(scored.report))
        print(f"\nprompts: {workdir / WEIGHTS}")
    parallel.wait_for_all("results")
    return scored.report


def _check_model(config: ConfigDict) -> int:
    """The number of vectors of each prompt."""
    for name in config.model:
        if name not in ("name", "context"):
            raise unknown("hyper-parameter of config.model", name, ("context",))
    if "context" not in config.model or config.model.context < 1:
        raise UserError(
            "config.model.context, how many vectors each prompt has, is missing or not "
            "above 0: it is 16 as released"
        )
    for name in ("clip", "medium"):
        if not config.guidance[name]:
            raise UserError(
                f"config.guidance.{name} is empty, and {experiment.PERCEIVER} needs "
                "that file: see README.md"
            )
    return config.model.context


def first_words(weights_file: Path) -> list[int]:
    """The tokens of the words that the prompts' last vectors start as.

    None, if no tokenizer.json is beside the weights.

    Raises:
        UserError: it cannot be read, or has no single token for one of the words.
    """
    file = weights_file.with_name(TOKENIZER)
    if not file.is_file():
        return []
    found = words(file, prompts.QUALITIES)
    for word, tokens in zip(prompts.QUALITIES, found, strict=True):
        if len(tokens) != 1:
            raise UserError(f"{file} has no single token for {word!r}: not CLIP's")
    return [tokens[0] for tokens in found]


# --- held-out images -----------------------------------------------------------------


def held_out_tiers(
    images: Sequence[Path],
    degradations: Sequence[Degradation],
    medium: Restorer,
    patch: int,
) -> Iterator[Tiers]:
    """All patches of images, side by side, in three qualities.

    Args:
        images: clean ones.
        degradations: what makes the low tier; each is a triplet of its own.
        medium: restores the low tier.
        patch: side of the patches, pixels; what is left at the borders is left out.

    Raises:
        UserError: an image is smaller than a patch.
    """
    for index, path in enumerate(images):
        clean = image_io.read_rgb(path)
        best = cut_patches(clean, patch, path)
        for degradation in degradations:
            low = degradation(clean, 1, index).degraded
            worse = (cut_patches(image, patch, path) for image in (low, medium(low)))
            yield from map(np.stack, zip(*worse, best, strict=True))


def embed(encoder: clip.CLIP, tiers: Iterator[Tiers]) -> Float32[np.ndarray, "n 3 d"]:
    """CLIP's embeddings of patches, which do not change while prompts are learnt."""
    graphdef, params = nnx.split(encoder, nnx.Param)

    @jax.jit
    def embedding(params: Any, pixels: Array) -> Array:
        return nnx.merge(graphdef, params).image_embedding(pixels / jnp.float32(255))

    parts = []
    while patches := list(itertools.islice(tiers, EMBEDDED)):
        pixels = np.concatenate(patches)  # 3n p p 3
        # One program: the last part is filled up.
        full = np.resize(pixels, (3 * EMBEDDED, *pixels.shape[1:]))
        parts.append(np.asarray(embedding(params, full))[: len(pixels)])
    embedded = np.concatenate(parts)
    return embedded.reshape(len(embedded) // 3, 3, -1)


def confusion(told: Int[np.ndarray, "n 3"]) -> dict[str, Any]:
    """How often patches of each tier are told to be of each.

    Args:
        told: the number of the tier that each was told to be.
    """
    counts = [np.bincount(column, minlength=3).tolist() for column in told.T]
    rows = [
        {"tier": tier, "patches": len(told)}
        | dict(zip(prompts.QUALITIES, count, strict=True))
        for tier, count in zip(prompts.QUALITIES, counts, strict=True)
    ]
    return {"accuracy": float(np.mean(told == np.arange(3))), "rows": rows}


def table(scores: Mapping[str, Any]) -> str:
    """The confusion as text: what patches of each tier were told to be."""
    names = ("tier", *prompts.QUALITIES)
    rows = [names, *([str(row[name]) for name in names] for row in scores["rows"])]
    return f"{markdown(rows)}\n\ntold rightly: {scores['accuracy']:.1%}, by chance 33%"
