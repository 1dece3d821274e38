"""The fields of an experiment's config: every one is read, every one is there."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax.compression import compressions
from cir_jax.errors import UserError, unknown

PERCEIVER, CROSS_ENTROPY = "quality_perceiver", "cross_entropy"
"""The model and the loss of Perceive-IR's stage 1."""
FEATURES = "dagn_features"
"""The model of DAGN's first stage, which may have an adversary."""
ANY = object()
"""Stands for a sub-config that its own reader checks."""

FIELDS: dict[str, Any] = {
    # of initialisation and of every random choice in the data
    "seed": int,
    # name, variant and overrides of hyper-parameters, see models.build_model
    "model": ANY,
    # weights to start from: a name, a file or a workdir; "" for a fresh start
    "init_from": str,
    # compute dtype of the network; parameters and optimizer state are float32
    "dtype": str,
    # global batches to train on, and images in each
    "steps": int,
    "batch_size": int,
    # passes that a step's batch is computed in, one after another, to save memory
    "accumulate": int,
    # what blocks keep for the gradient: "none" is computed again, all but the
    # "products", or whole "blocks", see rematerialise.py
    "rematerialise": str,
    # terms of losses.py by plus signs, with weights: "charbonnier + 0.05 fft"; of the
    # quality perceiver "cross_entropy", of dagn_features those of decoupling.py
    "loss": str,
    # of the exponential moving average that is evaluated and exported
    "ema_decay": float,
    # which parameters are trained, as regular expressions found in their paths; ()
    # for all
    "trainable": tuple,
    # see optimizers.py
    "optimizer": {
        "name": str,
        "learning_rate": float,
        "final_learning_rate": float,
        "warmup_steps": int,
        "decay": str,
        "decay_at": tuple,
        "decay_factor": float,
        "b1": float,
        "b2": float,
        "weight_decay": float,
        "clip_norm": float,
    },
    # a second player, the discriminator of dagn_features: whether its "updates" are
    # "none", "alternating" with the others' or "simultaneous", and its learning rate,
    # all else being as for the others, see optimizers.turns
    "adversary": {"updates": str, "learning_rate": float},
    "data": {
        # the records folder; {workdir} stands for the workdir
        "records": str,
        # the command that makes it; {records} stands for the folder
        "encode": str,
        # whether training runs that command where the folder is missing
        "encode_if_missing": bool,
        # what degrades the clean crops for each batch: "online:" and the name of a
        # recipe; "" for what the records were made for
        "recipe": str,
        # how many records may be damaged before training stops
        "damaged": int,
        # see data/pairs.py
        "patch": int,
        "grid_phase": str,
        "qualities": tuple,
        # what degraded the patches, by a version's codec ("jpeg") or codec and quality
        # ("jpeg 10"), for losses that tell such tasks apart; () for none
        "tasks": tuple,
        "workers": int,
    },
    # frozen networks that guide Perceive-IR, paths of files; "" and () for none, see
    # guidance.py
    "guidance": {
        # Hugging Face's model.safetensors of DINOv2 and of CLIP
        "dinov2": str,
        "clip": str,
        # what stage 1 wrote
        "prompts": str,
        # torchvision's, or ours for LPIPS
        "vgg16": str,
        # weights of restorers to do better than: "WEIGHTS", "WEIGHTS for TASK, TASK"
        "proxies": tuple,
        # weights of the restorer that stage 1 makes medium images with, to be tested on
        "medium": str,
    },
    "evaluation": {
        # a folder of clean images, or photos:validation
        "images": str,
        "codec": str,
        "qualities": tuple,
        # steps between evaluations; a multiple of checkpoint.every
        "every": int,
    },
    "checkpoint": {
        # steps between checkpoints, and how many of the last are kept
        "every": int,
        "keep": int,
    },
    # steps between lines of metrics.jsonl
    "log_every": int,
    # beside metrics.jsonl: TensorBoard's files (extra tensorboard), and the project in
    # Weights & Biases (its package must be there); "" for none
    "tensorboard": bool,
    "wandb": str,
    # devices that share one copy of parameters, optimizer state and average; -1 for all
    "mesh": {"fsdp": int},
}


CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "rematerialise": ("none", "products", "blocks"),
    "optimizer.name": ("adamw", "adam", "lion"),
    "adversary.updates": ("none", "alternating", "simultaneous"),
    "optimizer.decay": ("cosine", "step", "constant"),
    "data.grid_phase": ("aligned", "random"),
}

LEAST = {
    "seed": 0,
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "log_every": 1,
    "ema_decay": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip_norm": 0,
    "data.patch": 1,
    "data.workers": 0,
    "data.damaged": 0,
    "evaluation.every": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "mesh.fsdp": -1,
}


def file_and_form(text: str) -> tuple[Path, str]:
    """A config's file, and the form behind its colon: configs/ucip.py:oracle; or ""."""
    stem, colon, form = text.partition(".py:")
    return (Path(f"{stem}.py"), form) if colon else (Path(text), "")


def check(config: ConfigDict) -> None:
    """Checks that a config has just the fields that the code reads, with fit values.

    Raises:
        UserError: a field is unknown, missing, of another type, or out of range.
    """
    _check_fields(config, FIELDS, "config")
    values = flatten(config)
    for name, least in LEAST.items():
        if values[name] < least:
            raise UserError(f"config.{name} is {values[name]}: give at least {least}")
    for name, choices in CHOICES.items():
        if values[name] not in choices:
            raise unknown(f"config.{name}", values[name], choices)
    if config.optimizer.learning_rate <= 0 or config.ema_decay >= 1:
        raise UserError(
            "config.optimizer.learning_rate must be above 0 and config.ema_decay below "
            f"1: they are {config.optimizer.learning_rate} and {config.ema_decay}"
        )
    if config.evaluation.every % config.checkpoint.every:
        raise UserError(
            f"config.evaluation.every={config.evaluation.every} is no multiple of "
            f"config.checkpoint.every={config.checkpoint.every}: an evaluation belongs "
            "to a checkpoint, so make it one"
        )
    _check_adversary(config)
    if trains_prompts(config):
        if config.loss != CROSS_ENTROPY:
            raise unknown(f"config.loss of {PERCEIVER}", config.loss, [CROSS_ENTROPY])
    else:
        from cir_jax import losses  # here, because JAX takes seconds to load

        if config.model.get("name") == FEATURES:
            losses.parse_terms(config.loss, losses.DECOUPLING)
        else:
            losses.parse_loss(config.loss)
    if not config.evaluation.qualities:
        raise UserError("config.evaluation.qualities is empty: give one at least")
    compressions(config.evaluation.codec, config.evaluation.qualities)


def _check_adversary(config: ConfigDict) -> None:
    """Refuses a second player for a network that has none, or one that cannot move."""
    if config.adversary.updates == "none":
        return
    if config.model.get("name") != FEATURES:
        raise UserError(
            f"config.adversary.updates={config.adversary.updates!r} is for "
            f"config.model.name={FEATURES!r}: set it to 'none'"
        )
    if config.adversary.learning_rate <= 0:
        raise UserError(
            "config.adversary.learning_rate must be above 0: it is "
            f"{config.adversary.learning_rate}"
        )


def trains_prompts(config: ConfigDict) -> bool:
    """Whether it is the quality perceiver that is trained, see perceiver.py."""
    return config.model.get("name") == PERCEIVER


def flatten(config: ConfigDict) -> dict[str, Any]:
    """The fields by dotted name: {"optimizer.b1": 0.9, …}."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{below}": v for below, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def records_folder(config: ConfigDict, workdir: Path) -> Path:
    """Where the training's records are."""
    return Path(config.data.records.replace("{workdir}", str(workdir)))


def encode_command(config: ConfigDict, workdir: Path) -> str:
    """The command that makes the training's records."""
    folder = shlex.quote(str(records_folder(config, workdir)))
    return config.data.encode.replace("{records}", folder)


def _check_fields(config: ConfigDict, fields: Mapping[str, Any], path: str) -> None:
    for name in config:
        if name not in fields:
            raise unknown(
                "config field", f"{path}.{name}", (f"{path}.{f}" for f in fields)
            )
    for name, kind in fields.items():
        if name not in config:
            raise UserError(f"the config lacks the field {path}.{name}: add it")
        value = config[name]
        if kind is ANY:
            continue
        if isinstance(kind, dict):
            if not isinstance(value, ConfigDict):
                raise UserError(f"{path}.{name} is {value!r}: expected fields below it")
            _check_fields(value, kind, f"{path}.{name}")
        elif not (type(value) is kind or (kind is float and type(value) is int)):
            raise UserError(
                f"{path}.{name} is {value!r}: expected a value of type {kind.__name__}"
            )
