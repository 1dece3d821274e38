"""`cir export`: the averaged weights of a training's checkpoint, as a weights file."""

import contextlib
import json
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict

from cir_jax import parallel, weights
from cir_jax.arguments import check_can_write
from cir_jax.checkpoints import Checkpoints
from cir_jax.errors import UserError
from cir_jax.loop import CONFIG
from cir_jax.train_step import abstract_training


def export(
    workdir: Path,
    out: Path | None = None,
    step: int | None = None,
    storage: str = "float32",
) -> tuple[int, Path]:
    """Writes the averaged weights of a checkpoint, whatever it was trained on.

    Args:
        workdir: of a training, which may be running.
        out: the weights file, written whole or not at all; step-STEP.safetensors in
            the workdir when None.
        step: of the checkpoint; the newest when None.
        storage: type that the parameters are stored in, see `weights.save`.

    Returns:
        The step, and the file.

    Raises:
        UserError: the folder is no training's, has no such checkpoint, or that is
            damaged; or the output cannot be written; or see `weights.save`.
    """
    check_can_write("-o", out)
    try:
        text = (workdir / CONFIG).read_text()
    except OSError as error:
        raise UserError(
            f"{workdir} holds no {CONFIG}: give the workdir of a training"
        ) from error
    config = ConfigDict(json.loads(text))
    mesh = parallel.make_mesh(1, jax.devices()[:1])
    model, _, _, state = abstract_training(config, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", 1, read_only=True)
    with contextlib.closing(checkpoints):
        step, state = checkpoints.read(step, state)
    provenance = {"step": str(step), "config": text}
    out = out or workdir / f"step-{step}{weights.SUFFIX}"
    averaged = nnx.merge(nnx.graphdef(model), state.ema)
    weights.save(out, averaged, provenance, storage)
    return step, out
