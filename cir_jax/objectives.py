"""What a training minimises: a function of the network and a batch.

An objective may want frozen networks. Their parameters are an argument of the step,
beside the state: they get no gradient and no place in the optimizer.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32, UInt8
from ml_collections import ConfigDict

from cir_jax import device_metrics, perception_losses
from cir_jax.errors import unknown
from cir_jax.losses import (
    CLIP_QUALITY,
    CONTRASTIVE,
    DIFFICULTY,
    LOSSES,
    parse_loss,
)
from cir_jax.models.layers import RestorationModel

HIGHEST = 100.0
"""PSNR of a patch at most, dB: a patch without any error would make means infinite."""
REFERENCE = "reference"

Batch = Mapping[str, UInt8[Array, "b *_ 3"] | Int32[Array, " b"]]
Metrics = dict[str, Float32[Array, ""]]


class Objective:
    """What training asks of an objective; by itself it remembers nothing.

    Attributes:
        names: of the terms of the loss.
        tasks: names of the tasks that the batch's "task" numbers; () for none.
    """

    names: Set[str] = frozenset()
    tasks: tuple[str, ...] = ()

    @property
    def memory(self) -> dict[str, Array]:
        """What it remembers between steps, before the first one: small arrays."""
        return {}

    def renewed(
        self, memory: Any, step: Int32[Array, ""], model: nnx.Module, frozen: Any
    ) -> Any:
        """The memory for a step, which the steps done so far may ask to renew."""
        return memory

    def alone(self) -> "Objective":
        """Without what frozen networks compute, for counting the model's own FLOPs."""
        return self

    def reading(self, model: nnx.Module) -> dict[str, Any]:
        """What its batches need beside the patches: arguments of `pairs.batches`."""
        return {}

    def __call__(
        self, model: nnx.Module, batch: Batch, frozen: Any, memory: Any
    ) -> tuple[Float32[Array, ""], Metrics]:
        """The loss of a batch, and what is logged beside it."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Restoration(Objective):
    """Restored patches are to be the clean ones: `config.loss`.

    Attributes:
        terms: weights and names, see `losses.parse_loss`.
        tasks: names of the tasks that the batch's "task" numbers.
        guides: the structure of every frozen network by its name in `frozen`, where
            its parameters are; see guidance.py.
        applies: for each proxy the tasks that it restores, as numbers.
        renew_every: steps after which the reference is measured again; 0 for never.
    """

    terms: tuple[tuple[float, str], ...]
    tasks: tuple[str, ...] = ()
    guides: Mapping[str, nnx.GraphDef] = dataclasses.field(default_factory=dict)
    applies: tuple[tuple[int, ...], ...] = ()
    renew_every: int = 1

    @property
    def names(self) -> set[str]:
        """Of the terms."""
        return {name for _, name in self.terms}

    @property
    def memory(self) -> dict[str, Array]:
        """The PSNR that the network reaches on each task, dB, to judge proxies by."""
        if not self.applies:
            return {}
        return {REFERENCE: jnp.zeros(len(self.tasks), jnp.float32)}

    def renewed(
        self,
        memory: dict[str, Array],
        step: Int32[Array, ""],
        model: nnx.Module,
        frozen: Mapping[str, Any],
    ) -> dict[str, Array]:
        """The reference, measured afresh on the same patches once an epoch."""
        if not self.renew_every or REFERENCE not in memory:
            return memory

        def measured(patches: Mapping[str, Array]) -> Float32[Array, ""]:
            degraded, clean = images(patches, model.channels)
            restored = model(degraded, **self._told(model, patches, degraded, frozen))
            return _psnr(clean, restored).mean()

        return jax.lax.cond(
            step % self.renew_every == 0,
            lambda: {REFERENCE: jax.lax.map(measured, frozen[REFERENCE])},
            lambda: memory,
        )

    def reading(self, model: RestorationModel) -> dict[str, Any]:
        """Codecs for a network that knows them, tasks, and a second patch."""
        return {
            "codecs": model.known_codecs,
            "tasks": self.tasks,
            "second": CONTRASTIVE in self.names,
        }

    def __call__(
        self,
        model: RestorationModel,
        batch: Batch,
        frozen: Mapping[str, Any],
        memory: Mapping[str, Array],
    ) -> tuple[Float32[Array, ""], Metrics]:
        """The sum of the terms by their weights; patches are made floats in [0, 1]."""
        degraded, clean = images(batch, model.channels)
        known = self._told(model, batch, degraded, frozen)
        if CONTRASTIVE in self.names:
            known["content"] = model.cfe(degraded)
        restored = model(degraded, **known)

        def contrastive() -> Float32[Array, ""]:
            second = _floats(batch["second"], model.channels)
            return perception_losses.contrastive(
                known["content"], model.cfe(second), batch["task"]
            )

        def clip_quality() -> Float32[Array, ""]:
            clip = self.guide("clip", frozen)
            embedded = clip.image_embedding(_rgb(jnp.clip(restored, 0, 1)))
            return perception_losses.clip_quality(embedded @ frozen["prompts"].T)

        def difficulty() -> Float32[Array, ""]:
            proxies = self._proxied(degraded, frozen)
            weights = [
                perception_losses.proxy_weights(
                    _psnr(clean, image),
                    memory[REFERENCE][batch["task"]],
                    jnp.isin(batch["task"], jnp.array(tasks)),
                )
                for image, tasks in zip(proxies, self.applies, strict=True)
            ]
            features = self.guide("vgg16", frozen).features
            ours, others, worse, *proxied = (
                features(_rgb(jnp.clip(image, 0, 1)))
                for image in (restored, clean, degraded, *proxies)
            )
            return perception_losses.difficulty(ours, others, worse, proxied, weights)

        further: dict[str, Callable[[], Array]] = {
            CONTRASTIVE: contrastive,
            CLIP_QUALITY: clip_quality,
            DIFFICULTY: difficulty,
        }
        values = {
            name: further[name]() if name in further else LOSSES[name](restored, clean)
            for _, name in self.terms
        }
        metrics = {"psnr": _psnr(clean, restored).mean()}
        if len(values) > 1:
            metrics |= {f"loss_{name}": value for name, value in values.items()}
        return sum(weight * values[name] for weight, name in self.terms), metrics

    def alone(self) -> "Restoration":
        """With the terms that ask no frozen networks, and no semantics but zeros."""
        terms = tuple(term for term in self.terms if term[1] in LOSSES)
        if terms == self.terms and not self.guides:
            return self
        return dataclasses.replace(self, terms=terms, guides={}, renew_every=0)

    def guide(self, name: str, frozen: Mapping[str, Any]) -> Any:
        """A frozen network with its parameters."""
        return nnx.merge(self.guides[name], frozen[name])

    def _told(
        self,
        model: RestorationModel,
        batch: Batch,
        degraded: Float[Array, "b h w c"],
        frozen: Mapping[str, Any],
    ) -> dict[str, Array]:
        """What the network is told beside the images."""
        told = {"codec": batch["codec"]} if "codec" in batch else {}
        if model.semantic_dim and not self.guides:  # see `alone`
            told["semantics"] = jnp.zeros((4, len(degraded), model.semantic_dim))
        elif model.semantic_dim:
            dinov2 = self.guide("dinov2", frozen)
            told["semantics"] = dinov2.semantics(_rgb(degraded))
        return told

    def _proxied(
        self, degraded: Float[Array, "b h w c"], frozen: Mapping[str, Any]
    ) -> list[Float[Array, "b h w c"]]:
        """What the proxies make of the patches."""
        names = [f"proxy{i}" for i in range(len(self.applies))]
        return [
            jax.lax.stop_gradient(self.guide(name, frozen)(degraded)) for name in names
        ]


def from_config(config: ConfigDict) -> Restoration:
    """The objective of a restorer's training, without its frozen networks.

    Raises:
        UserError: see `losses.parse_loss` and `parse_proxies`.
    """
    tasks = tuple(config.data.tasks)
    proxies = parse_proxies(config.guidance.proxies, tasks)
    return Restoration(
        parse_loss(config.loss),
        tasks,
        applies=tuple(applies for _, applies in proxies),
    )


def parse_proxies(
    texts: Sequence[str], tasks: Sequence[str]
) -> list[tuple[str, tuple[int, ...]]]:
    """The weights that each text names, and the numbers of the tasks they are for.

    Args:
        texts: "WEIGHTS", or "WEIGHTS for TASK, TASK" for those that do not restore all.
        tasks: names.

    Raises:
        UserError: unknown task.
    """
    proxies = []
    for text in texts:
        name, _, wanted = text.partition(" for ")
        named = [task.strip() for task in wanted.split(",")] if wanted else tasks
        for task in named:
            if task not in tasks:
                raise unknown(f"task in config.guidance.proxies={texts}", task, tasks)
        proxies.append((name, tuple(tasks.index(task) for task in named)))
    return proxies


def images(
    batch: Batch, channels: int
) -> tuple[Float32[Array, "b h w c"], Float32[Array, "b _ _ c"]]:
    """A batch's degraded and clean patches in [0, 1]."""
    return tuple(_floats(batch[name], channels) for name in ("degraded", "clean"))


def _floats(x: UInt8[Array, "b h w 3"], channels: int) -> Float32[Array, "b h w c"]:
    return x[..., :channels] / jnp.float32(255)  # grey is stored in three channels


def _rgb(x: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def _psnr(
    clean: Float[Array, "b h w c"], restored: Float[Array, "b h w c"]
) -> Float32[Array, " b"]:
    return jnp.minimum(device_metrics.psnr(clean, restored), HIGHEST)
