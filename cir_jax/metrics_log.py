"""The training's log: metrics leave the device in bunches and become JSON lines."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from cir_jax.errors import UserError
from cir_jax.files import written_whole


class MetricsLog:
    """Appends to a JSON-lines file; fetches from the device only when flushed.

    Args:
        path: the file. Lines of steps after `start`, left by a run that was killed
            between checkpoints, are dropped: those steps are about to be done again.
        start: the steps done so far.
    """

    def __init__(self, path: Path, start: int):
        self._path = path
        self._pending: list[tuple[int, float, Mapping[str, jax.Array]]] = []
        if path.is_file():
            lines = path.read_text().splitlines(keepends=True)
            kept = (line for line in lines if _step(line) <= start)
            with written_whole(path) as temporary:
                temporary.write_text("".join(kept))

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes a step's metrics without waiting for them.

        Waits for the step before last, though, so that the host stays at most two steps
        ahead and its clock tells the device's speed.
        """
        if len(self._pending) >= 2:
            jax.block_until_ready(self._pending[-2][2])
        self._pending.append((step, time.perf_counter(), metrics))

    def flush(self, batch_size: int) -> dict[str, float] | None:
        """Writes the mean of what was added since the last flush.

        Returns:
            The line that was written; None if there was nothing to write.

        Raises:
            UserError: a metric is not finite; names the first such step.
        """
        if not self._pending:
            return None
        steps, times, metrics = zip(*self._pending, strict=True)
        self._pending = []
        metrics = jax.device_get(metrics)
        for step, values in zip(steps, metrics, strict=True):
            wrong = {n: float(v) for n, v in values.items() if not math.isfinite(v)}
            if wrong:
                name, value = next(iter(wrong.items()))
                raise UserError(
                    f"{name.replace('_', ' ')} is {value} at step {step}, and no "
                    "checkpoint holds what came of it: lower "
                    "config.optimizer.learning_rate, set config.optimizer.clip_norm "
                    "or use float32; the same command goes on from the newest one"
                )
        means = {
            name: float(sum(values[name] for values in metrics) / len(metrics))
            for name in metrics[0]
        }
        # Between the first step and the last, so that compiling does not count.
        if len(steps) > 1:
            means["images_per_second"] = (
                (len(steps) - 1) * batch_size / (times[-1] - times[0])
            )
        self.write(steps[-1], means)
        return means

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def _step(line: str) -> int | float:
    """The step of a line; a line cut off by a kill is later than any."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
