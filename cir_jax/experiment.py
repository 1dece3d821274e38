"""The fields of an experiment's config: every one is read, every one is there."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax.errors import UserError, unknown

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
    # "l1" or "charbonnier"
    "loss": str,
    # of the exponential moving average that is evaluated and exported
    "ema_decay": float,
    # see optimizers.py
    "optimizer": {
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
    "data": {
        # the records folder; {workdir} stands for the workdir
        "records": str,
        # the command that makes it; {records} stands for the folder
        "encode": str,
        # whether training runs that command where the folder is missing
        "encode_if_missing": bool,
        # see data/pairs.py
        "patch": int,
        "grid_phase": str,
        "qualities": tuple,
        "workers": int,
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
    # devices that share one copy of the parameters
    "mesh": {"fsdp": int},
}


def check(config: ConfigDict) -> None:
    """Checks that a config has just the fields that the code reads, with their types.

    Raises:
        UserError: a field is unknown, missing, of another type, or out of range.
    """
    _check_fields(config, FIELDS, "config")
    for name, value in _positive(config):
        if value < 1:
            raise UserError(f"config.{name} is {value}: give at least 1")
    if config.evaluation.every % config.checkpoint.every:
        raise UserError(
            f"config.evaluation.every={config.evaluation.every} is no multiple of "
            f"config.checkpoint.every={config.checkpoint.every}: an evaluation belongs "
            "to a checkpoint, so make it one"
        )


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


def _positive(config: ConfigDict) -> Iterator[tuple[str, int]]:
    yield "steps", config.steps
    yield "batch_size", config.batch_size
    yield "log_every", config.log_every
    yield "data.patch", config.data.patch
    yield "evaluation.every", config.evaluation.every
    yield "checkpoint.every", config.checkpoint.every
    yield "checkpoint.keep", config.checkpoint.keep
