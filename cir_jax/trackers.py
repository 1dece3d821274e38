"""A training's numbers beside its JSON lines: TensorBoard, Weights & Biases."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from cir_jax.errors import UserError

Tracker = Callable[[int, Mapping[str, float]], None]
"""Takes a step and numbers by name."""


@contextlib.contextmanager
def trackers(config: ConfigDict, workdir: Path) -> Iterator[list[Tracker]]:
    """Opens what `config.tensorboard` and `config.wandb` ask for.

    TensorBoard's files lie in WORKDIR/tensorboard. A resumed training goes on in the
    same run of Weights & Biases.

    Raises:
        UserError: the package for it is not installed.
    """
    with contextlib.ExitStack() as stack:
        found: list[Tracker] = []
        if config.tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise UserError(
                    "config.tensorboard needs tensorboardX: pip install "
                    "'cir_jax[tensorboard]'"
                ) from error
            writer = stack.enter_context(SummaryWriter(str(workdir / "tensorboard")))

            def to_tensorboard(step: int, values: Mapping[str, float]) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)
                writer.flush()

            found.append(to_tensorboard)
        if config.wandb:
            try:
                import wandb
            except ImportError as error:
                raise UserError(
                    f"config.wandb={config.wandb!r} needs wandb: pip install wandb"
                ) from error
            name = workdir.resolve().name
            run = wandb.init(
                project=config.wandb,
                name=name,
                id=name,
                resume="allow",
                dir=workdir,
                config=config.to_dict(),
            )
            stack.callback(run.finish)
            found.append(lambda step, values: run.log(dict(values), step=step))
        yield found
