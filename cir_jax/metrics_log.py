"""The training's log: metrics leave the device in bunches and become JSON lines."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from cir_jax.errors import UserError
from cir_jax.files import written_whole
from cir_jax.trackers import Tracker

T = TypeVar("T")


class MetricsLog:
    """Appends to a JSON-lines file; fetches from the device only when flushed.

    Args:
        path: the file. Lines of steps after `start`, left by a run that was killed
            between checkpoints, are dropped: those steps are about to be done again.
        start: the steps done so far.
        trackers: get the same numbers, see trackers.py.
        writes: whether this process writes; of several, one does.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        trackers: Sequence[Tracker] = (),
        *,
        writes: bool = True,
    ):
        self._path = path
        self._trackers = trackers
        self._writes = writes
        self._waited = 0.0
        self._pending: list[tuple[int, float, float, Mapping[str, Any]]] = []
        if writes and path.is_file():
            lines = path.read_text().splitlines(keepends=True)
            kept = (line for line in lines if _step(line) <= start)
            with written_whole(path) as temporary:
                temporary.write_text("".join(kept))

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time that they are waited for is counted."""
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - start
            yield batch

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes a step's metrics without waiting for them.

        Waits for the step before last, though, so that the host stays at most two steps
        ahead and its clock tells the device's speed.
        """
        if len(self._pending) >= 2:
            jax.block_until_ready(self._pending[-2][3])
        self._pending.append((step, time.perf_counter(), self._waited, metrics))

    def flush(self, batch_size: int, utilisation: float = 0) -> dict[str, float] | None:
        """Writes the mean of what was added since the last flush.

        Args:
            batch_size: images of a step.
            utilisation: share of the devices' peak that one step a second would be; 0
                where it is not known.

        Returns:
            The line that was written; None if there was nothing to write.

        Raises:
            UserError: a metric is not finite; names the first such step.
        """
        if not self._pending:
            return None
        steps, times, waited, metrics = zip(*self._pending, strict=True)
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
            seconds = times[-1] - times[0]
            steps_per_second = (len(steps) - 1) / seconds
            means["images_per_second"] = steps_per_second * batch_size
            means["waiting_for_data"] = (waited[-1] - waited[0]) / seconds
            if utilisation:
                means["model_flop_utilisation"] = steps_per_second * utilisation
        self.write(steps[-1], means)
        self.track(steps[-1], means)
        return means

    def track(self, step: int, values: Mapping[str, float]) -> None:
        """Gives numbers to the trackers."""
        for tracker in self._trackers:
            tracker(step, values)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line."""
        if self._writes:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")


def _step(line: str) -> int | float:
    """The step of a line; a line cut off by a kill is later than any."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
