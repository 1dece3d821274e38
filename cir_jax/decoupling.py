"""DAGN's first stage: what its two auto-encoders and their discriminator minimise.

After 2405.09291, of which the abstract's ideas alone are known: the losses and their
weights in configs/ are guesses. They are terms of `config.loss`:

* `reconstruction`: the mean absolute error of the original, made by the insensitive
  auto-encoder of the compressed image and of the original, and of the compressed image,
  made by the sensitive one;
* `hinge` or `least_squares`: the discriminator's game. It is to tell compressed
  images' codes from originals', and the encoder is to let it not;
* `alignment`: the mean absolute difference of both codes, the original's the target;
* `quality`: the absolute error of the quality that the head tells, 0 to 1;
* `ranking`: of two qualities of one image the better is to be told to be better, by a
  margin, or by their difference where that is less;
* `codec`: the cross-entropy of the codec that the head tells, originals being of none.

Each player's loss reaches its own parameters alone: the discriminator judges codes that
are constants to it, and the encoder is judged by a discriminator that is one. So the
gradient of their sum is that of each player's loss for its own parameters.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32
from ml_collections import ConfigDict

from cir_jax import device_metrics
from cir_jax.errors import UserError
from cir_jax.experiment import FEATURES
from cir_jax.losses import ADVERSARIAL, DECOUPLING, l1, parse_terms
from cir_jax.models.dagn_features import Discriminator, codec_scales
from cir_jax.objectives import Batch, Metrics, Objective

MARGIN = 0.05
"""Of the ranking, in parts of a codec's range."""

Codes = Float[Array, "b h w d"]


@dataclasses.dataclass(frozen=True)
class Decoupling(Objective):
    """What images have in common with their compressed versions, and what not.

    Attributes:
        terms: weights and names.
        codecs: as in `DAGNFeatures`.
    """

    terms: tuple[tuple[float, str], ...]
    codecs: tuple[str, ...]

    @property
    def names(self) -> set[str]:
        """Of the terms."""
        return {name for _, name in self.terms}

    @property
    def adversarial(self) -> str | None:
        """The name of the term that is the discriminator's game, if there is one."""
        return next((name for name in ADVERSARIAL if name in self.names), None)

    def reading(self, model: nnx.Module) -> dict[str, Any]:
        """See `Objective.reading`: the codec, and a version beside."""
        names = tuple(scale.name for scale in codec_scales(self.codecs))
        return {"codecs": names, "other": True}

    def __call__(
        self, model: nnx.Module, batch: Batch, frozen: Any, memory: Any
    ) -> tuple[Float32[Array, ""], Metrics]:
        """The sum of both players' losses; patches are made floats in [0, 1]."""
        compressed, other, original = (
            batch[name][..., : model.channels] / jnp.float32(255)
            for name in ("degraded", "other", "clean")
        )
        # --- the insensitive auto-encoder: compressed images, then their originals
        images = jnp.concatenate([compressed, original])
        codes = model.insensitive.code(images)
        code, target = jnp.split(codes, 2)
        remade = model.insensitive_image(model.insensitive.decode(codes)[0])
        # --- the sensitive one: compressed images, worse or better ones, originals
        maps = model.sensitive(jnp.concatenate([compressed, other, original]))
        told = model.sensitive.head(maps[-1])
        half = maps[-1][: len(compressed)]
        again = model.sensitive_image(model.sensitive_decoder(half)[0])

        originals = jnp.concatenate([original, original])
        values = {
            "reconstruction": l1(remade, originals) + l1(again, compressed),
            "alignment": jnp.mean(jnp.abs(code - jax.lax.stop_gradient(target))),
            **quality_losses(told.logits, told.qualities, self._labels(batch)),
        }
        metrics = {
            "psnr": device_metrics.psnr(original, remade[: len(original)]).mean(),
        }
        total = jnp.float32(0)
        if self.adversarial:
            values[self.adversarial], theirs, judged = self._game(
                model.discriminator, code, target
            )
            metrics |= {"loss_discriminator": theirs, "judged_rightly": judged}
            total += theirs
        for weight, name in self.terms:
            total += weight * values[name]
            metrics[f"loss_{name}"] = values[name]
        return total, metrics

    def _labels(self, batch: Batch) -> "Labels":
        scales = codec_scales(self.codecs)
        worst, best = (
            jnp.array([getattr(scale, end) for scale in scales], jnp.float32)[
                batch["codec"]
            ]
            for end in ("worst", "best")
        )
        quality, other = (
            (batch[name] - worst) / (best - worst)
            for name in ("quality", "other_quality")
        )
        return Labels(batch["codec"], quality, other)

    def _game(
        self, discriminator: Discriminator, code: Codes, target: Codes
    ) -> tuple[Float32[Array, ""], Float32[Array, ""], Float32[Array, ""]]:
        """The encoder's loss, the discriminator's, and the share it judges rightly.

        The encoder moves both codes towards each other: what would move them alike, and
        be of no use, cancels.
        """
        constant = nnx.merge(
            *jax.tree.map(jax.lax.stop_gradient, nnx.split(discriminator))
        )
        real, fake = (
            discriminator(jax.lax.stop_gradient(codes)) for codes in (target, code)
        )
        if self.adversarial == "hinge":
            ours = jnp.mean(constant(target) - constant(code))
            theirs = jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
        else:
            ours, theirs = (
                (jnp.mean(jnp.square(ones - 1)) + jnp.mean(jnp.square(zeros))) / 2
                for ones, zeros in ((constant(code), constant(target)), (real, fake))
            )
        return ours, theirs, jnp.mean(real > fake)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels:
    """What is known of compressed images.

    Attributes:
        codec: its number among those of the head.
        quality: of the first versions, 0 to 1.
        other: of the second versions, which may be the first ones again.
    """

    codec: Int32[Array, " b"]
    quality: Float32[Array, " b"]
    other: Float32[Array, " b"]


def quality_losses(
    logits: Float32[Array, "n _"],
    qualities: Float32[Array, "n _"],
    labels: Labels,
) -> dict[str, Float32[Array, ""]]:
    """The losses of the head: `quality`, `ranking` and `codec`.

    Args:
        logits: of first versions, second versions, originals.
        qualities: of the same.
        labels: what is true.
    """
    first, second, _ = (
        jnp.take_along_axis(part, labels.codec[:, None], axis=1)[:, 0]
        for part in jnp.split(qualities, 3)
    )
    error = jnp.abs(first - labels.quality) + jnp.abs(second - labels.other)
    difference = labels.quality - labels.other
    margin = jnp.minimum(MARGIN, jnp.abs(difference))
    wrong = jax.nn.relu(margin - jnp.sign(difference) * (first - second))
    families = jnp.concatenate(
        [labels.codec + 1, labels.codec + 1, jnp.zeros_like(labels.codec)]
    )
    told = optax.softmax_cross_entropy_with_integer_labels(logits, families)
    return {
        "quality": jnp.mean(error) / 2,
        "ranking": jnp.mean(jnp.where(difference == 0, 0.0, wrong)),
        "codec": told.mean(),
    }


def from_config(config: ConfigDict, model: nnx.Module) -> Decoupling:
    """The objective of an experiment that trains `DAGNFeatures`.

    Args:
        config: the experiment.
        model: its network; an abstract one will do.

    Raises:
        UserError: an unknown term, no reconstruction, or an adversary by halves.
    """
    terms = parse_terms(config.loss, DECOUPLING)
    objective = Decoupling(terms, model.codecs)
    if "reconstruction" not in objective.names:
        raise UserError(
            f"config.loss={config.loss!r} has no reconstruction: codes that need not "
            "tell the image collapse"
        )
    if len([name for name in ADVERSARIAL if name in objective.names]) > 1:
        raise UserError(
            f"config.loss={config.loss!r} has two games for one discriminator: give "
            f"{' or '.join(ADVERSARIAL)}"
        )
    if config.data.tasks:
        raise UserError(
            f"config.data.tasks={tuple(config.data.tasks)}: {FEATURES} tells codecs, "
            "which config.model.codecs names: set it to ()"
        )
    halves = {
        f"config.model.adversarial={model.adversarial}": model.adversarial,
        f"config.loss={config.loss!r}": objective.adversarial is not None,
        f"config.adversary.updates={config.adversary.updates!r}": (
            config.adversary.updates != "none"
        ),
    }
    if len(set(halves.values())) > 1:
        raise UserError(
            f"{', '.join(halves)}: an adversary needs all three, a discriminator, "
            f"{' or '.join(ADVERSARIAL)} in the loss, and updates; without one leave "
            "all three out"
        )
    return objective
