"""A training's numbers beside its JSON lines: TensorBoard, Weights & Biases."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from cir_jax.errors import UserError

Tracker = Callable[[int, Mapping[str, float]], None]
"""Takes a step and numbers by name."""

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""What each field of the config needs."""


def check_installed(config: ConfigDict) -> None:
    """Refuses trackers whose package is missing, before long work.

    Raises:
        UserError: names the field and the package.
    """
    for field, package in PACKAGES.items():
        if config[field] and importlib.util.find_spec(package) is None:
            raise UserError(
                f"config.{field}={config[field]!r} needs {package}: pip install "
                f"{package}"
            )


@contextlib.contextmanager
def trackers(config: ConfigDict, workdir: Path) -> Iterator[list[Tracker]]:
    """Opens what `config.tensorboard` and `config.wandb` ask for.

    TensorBoard's files lie in WORKDIR/tensorboard. A resumed training goes on in the
    same run of Weights & Biases.
    """
    with contextlib.ExitStack() as stack:
        found: list[Tracker] = []
        if config.tensorboard:
            from tensorboardX import SummaryWriter

            writer = stack.enter_context(SummaryWriter(str(workdir / "tensorboard")))

            def to_tensorboard(step: int, values: Mapping[str, float]) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)

            found.append(to_tensorboard)
        if config.wandb:
            import wandb

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
