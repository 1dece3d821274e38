"""The frozen networks that guide a training, read from the files that the config names.

They are other people's work and not part of this package; encoders/ says where each is
to be had.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from cir_jax import weights
from cir_jax.encoders import clip, dinov2, prompts, vgg16
from cir_jax.errors import UserError
from cir_jax.losses import CLIP_QUALITY, CONTRASTIVE, DIFFICULTY
from cir_jax.models import DTYPES
from cir_jax.models.layers import RestorationModel
from cir_jax.objectives import REFERENCE, Objective, parse_proxies

REFERENCE_PATCHES = 24
"""Of each task, as released."""
MOST_BATCHES = 1000
"""That are looked through for these."""


def load(
    config: ConfigDict, model: RestorationModel, objective: Objective
) -> tuple[Objective, dict[str, Any]]:
    """Reads what an experiment's objective needs beside the batch.

    Args:
        config: the experiment.
        model: the network that is trained; an abstract one will do.
        objective: of the config, see `train_step.objective_of`.

    Returns:
        The objective with the structure of its frozen networks, and their parameters:
        a dict of arrays that may be empty.

    Raises:
        UserError: a file is missing or of another network, is named but not needed, or
            the network or the config lacks what a term of the loss asks for.
    """
    _check(config, model, objective)
    dtype = DTYPES[config.dtype]
    files = config.guidance
    networks: dict[str, nnx.Module] = {}
    frozen: dict[str, Any] = {}
    if files.dinov2:
        networks["dinov2"] = dinov2.load(files.dinov2, dtype=dtype)
        check_semantics(networks["dinov2"], model, files.dinov2)
    if files.clip:
        # Of its two towers a step needs one: the prompts' embeddings do not change.
        networks["clip"] = clip.load(files.clip, dtype=dtype)
        context = prompts.read_prompts(files.prompts)
        frozen["prompts"] = clip.embed_prompts(networks["clip"], context)
        # These do not change, so that of its two towers a step needs one.
        del networks["clip"].text, networks["clip"].text_projection
    if files.vgg16:
        networks["vgg16"] = vgg16.load(files.vgg16, dtype=dtype)
    for number, (name, _) in enumerate(parse_proxies(files.proxies, config.data.tasks)):
        networks[f"proxy{number}"] = _proxy(name, model, dtype)
    guides = {}
    for name, network in networks.items():
        guides[name], params = nnx.split(network, nnx.Param)
        frozen[name] = jax.tree.map(np.asarray, nnx.to_pure_dict(params))
    if guides:
        objective = dataclasses.replace(objective, guides=guides)
    return objective, frozen


def check_semantics(
    encoder: dinov2.DINOv2, model: RestorationModel, origin: Any
) -> None:
    """Refuses a DINOv2 whose class tokens are not as long as a network wants them.

    Raises:
        UserError: names both lengths.
    """
    if not model.semantic_dim:
        raise UserError(
            f"{origin}: the network wants no semantics (its config has semantics "
            "'none'): leave DINOv2 out"
        )
    if encoder.width != model.semantic_dim:
        raise UserError(
            f"{origin} has class tokens of {encoder.width}, and the network is guided "
            f"by {model.semantic_dim}: give the DINOv2 of that size (S 384, B 768, L "
            "1024)"
        )


def _check(config: ConfigDict, model: RestorationModel, objective: Objective) -> None:
    files, names = config.guidance, objective.names
    asked = {
        "dinov2": (model.semantic_dim > 0, "config.model.semantics='dinov2'"),
        "clip": (CLIP_QUALITY in names, f"{CLIP_QUALITY} in config.loss"),
        "prompts": (CLIP_QUALITY in names, f"{CLIP_QUALITY} in config.loss"),
        "vgg16": (DIFFICULTY in names, f"{DIFFICULTY} in config.loss"),
    }
    for name, (wanted, by) in asked.items():
        if wanted and not files[name]:
            raise UserError(
                f"{by} needs config.guidance.{name}, the path of a file that is not "
                "part of this package: see README.md, or train the reduced form "
                "without it"
            )
        if files[name] and not wanted:
            raise UserError(
                f"config.guidance.{name}={files[name]} is for {by}: add that, or leave "
                "the file out"
            )
    if files.proxies and DIFFICULTY not in names:
        raise UserError(f"config.guidance.proxies are for {DIFFICULTY} in config.loss")
    if files.proxies and not objective.tasks:
        raise UserError("config.guidance.proxies need config.data.tasks: name them")
    if CONTRASTIVE in names and not hasattr(model, "cfe"):
        raise UserError(
            f"{CONTRASTIVE} in config.loss compares CFE's vectors, which "
            f"{config.model.name} has not: take perceive_ir or guided"
        )
    if CONTRASTIVE in names and len(objective.tasks) < 2:
        raise UserError(
            f"{CONTRASTIVE} in config.loss tells tasks apart: name at least two in "
            "config.data.tasks"
        )


def _proxy(name: str, model: RestorationModel, dtype: Any) -> RestorationModel:
    """A restorer that the trained one is to do better than."""
    proxy = weights.load(name, dtype=dtype)
    alike = (proxy.scale, proxy.channels) == (model.scale, model.channels)
    if not alike or proxy.known_codecs or proxy.semantic_dim:
        raise UserError(
            f"config.guidance.proxies: {name} holds a {proxy.config['name']} of scale "
            f"{proxy.scale} and {proxy.channels} channels: give restorers like the "
            "trained one, that are told neither codec nor semantics"
        )
    return proxy


def reference_patches(
    batches: Callable[..., Iterator[Mapping[str, np.ndarray]]],
    seed: int,
    tasks: tuple[str, ...],
) -> dict[str, Any]:
    """The patches that the network's PSNR on each task is measured on.

    Args:
        batches: training batches of a seed, from `start` on.
        seed: of the training, whose own batches are others.
        tasks: their names.

    Returns:
        {"reference": arrays as in a batch, but t 24 ...}: a function of the seed.

    Raises:
        UserError: a task is so rare that 1000 batches do not hold enough of it.
    """
    found: list[list[dict[str, np.ndarray]]] = [[] for _ in tasks]
    # No seed of another training's, as long as those are small numbers.
    for batch in itertools.islice(batches(seed=seed + 2**30, start=0), MOST_BATCHES):
        for i, task in enumerate(batch["task"]):
            if len(found[task]) < REFERENCE_PATCHES:
                found[task].append({name: x[i] for name, x in batch.items()})
        if min(map(len, found)) == REFERENCE_PATCHES:
            stacked = jax.tree.map(lambda *x: np.stack(x), *map(_stacked, found))
            return {REFERENCE: stacked}
    rarest = min(range(len(tasks)), key=lambda task: len(found[task]))
    raise UserError(
        f"{MOST_BATCHES} batches hold {len(found[rarest])} patches of the task "
        f"{tasks[rarest]!r}, and {REFERENCE_PATCHES} are needed: repeat its records, "
        "see cir mix"
    )


def _stacked(patches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return jax.tree.map(lambda *x: np.stack(x), *patches)
