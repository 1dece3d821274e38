"""The training loop: from a state to the last step, whatever is trained on what."""

import contextlib
import functools
import itertools
import json
import operator
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from cir_jax import estimate, experiment, hardware, optimizers, parallel
from cir_jax.checkpoints import Checkpoints
from cir_jax.data import manifest
from cir_jax.errors import UserError
from cir_jax.metrics_log import MetricsLog
from cir_jax.objectives import Objective
from cir_jax.progress import progress_bar
from cir_jax.run_info import run_info
from cir_jax.trackers import check_installed, trackers
from cir_jax.train_step import TrainState, initial_state

CONFIG = "config.json"
PROFILED = range(3, 6)
"""Steps after the first of a run that `profile` traces: warm, and few."""


class Training(NamedTuple):
    """What is trained, on what.

    Attributes:
        config: the experiment.
        workdir: of the run.
        mesh: see `parallel.make_mesh`.
        graphdef: of the model.
        params: its parameters before the first step, a nested dict.
        objective: see objectives.py.
        frozen: the objective's arrays, see guidance.py.
        turns: who moves in a step, see `optimizers.turns`.
        batches_from: the batches from a `start` on, read by so many `workers`.
        contents: what they are made of, in words.
    """

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    graphdef: nnx.GraphDef
    params: Mapping[str, Any]
    objective: Objective
    frozen: Mapping[str, Any]
    turns: Sequence[optimizers.Turn]
    batches_from: Callable[..., Iterator[Mapping[str, np.ndarray]]]
    contents: str


class Scored(NamedTuple):
    """An evaluation's result.

    Attributes:
        name: what the score is.
        score: the larger, the better; what the best checkpoint is chosen by.
        text: the same, with its unit.
        rows: for metrics.jsonl.
        report: whatever the caller makes of it in the end.
    """

    name: str
    score: float
    text: str
    rows: Sequence[Mapping[str, Any]]
    report: Any


def start(config: ConfigDict, workdir: Path) -> Mesh:
    """Checks an experiment before any work, and makes the mesh that it runs on.

    Raises:
        UserError: the config, or what it asks of the devices, is wrong.
    """
    experiment.check(config)
    check_installed(config)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file: give a folder")
    mesh = parallel.make_mesh(config.mesh.fsdp)
    parallel.batch_sharding(mesh, config.batch_size)
    if config.batch_size // mesh.size % config.accumulate:
        raise UserError(
            f"config.accumulate={config.accumulate} does not divide the "
            f"{config.batch_size // mesh.size} images of each device: give a divisor"
        )
    return mesh


def run(
    training: Training,
    evaluate: Callable[[int, TrainState], Scored],
    *,
    profile: bool = False,
) -> tuple[TrainState, Scored] | None:
    """Trains to the last step, going on from the workdir's newest checkpoint.

    Args:
        training: what is trained.
        evaluate: exports and scores a state, of which so many steps are done.
        profile: write a trace of a few steps to WORKDIR/profile.

    Returns:
        The last state and its scores; None when a signal stopped the training early.

    Raises:
        UserError: the workdir's checkpoint is of another experiment or damaged, or the
            loss is no longer finite.
    """
    config, workdir, mesh = training.config, training.workdir, training.mesh
    first = parallel.is_first()
    console = Console(stderr=True, quiet=not first)
    split = parallel.batch_sharding(mesh, config.batch_size)
    # Options that do not fit the records show here, before the workdir is touched.
    with contextlib.closing(training.batches_from(start=0)) as probe:
        example = next(probe)

    # ---------------------------------------------------------------- state, or resume
    state = initial_state(
        training.params, training.turns, mesh, training.objective.memory
    )
    size, moving = _sizes(training.params, config.trainable)
    frozen = parallel.on_all(training.frozen, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    if checkpoints.steps:
        _check_same_experiment(workdir, config)
        state = checkpoints.restore(
            state, functools.partial(console.print, soft_wrap=True)
        )
    if first:
        manifest.write_json(workdir / CONFIG, json.loads(config.to_json_best_effort()))
        with (workdir / "runs.jsonl").open("a") as file:
            file.write(json.dumps(run_info()) + "\n")
    start = int(state.step)

    # ---------------------------------------------------------------- the program
    console.print(
        f"{config.model.name}: {size:,} parameters, {moving:,} of them trained, "
        f"{training.contents}, {start} of {config.steps} steps done",
        soft_wrap=True,  # one line, also in a log
    )
    shapes = {
        name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype)
        for name, x in example.items()
    }
    lowered, flops = estimate.lowered_step(
        config,
        training.graphdef,
        training.objective,
        training.turns,
        mesh,
        state,
        shapes,
        frozen,
    )
    program = lowered.compile()
    memory = program.memory_analysis()
    for line in estimate.describe(
        mesh, state, frozen, config.batch_size, config.accumulate, memory, flops
    ):
        console.print(line, soft_wrap=True, highlight=False)
    peak = hardware.peak(mesh.devices.flat[0])
    utilisation = flops / (mesh.size * peak) if peak else 0.0

    # ---------------------------------------------------------------- the loop
    scored = None
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(trackers(config, workdir)) if first else []
        log = MetricsLog(workdir / "metrics.jsonl", start, opened, writes=first)
        batches = training.batches_from(start=start, workers=config.data.workers)
        stack.enter_context(contextlib.closing(batches))
        stack.enter_context(contextlib.closing(checkpoints))
        trace = stack.enter_context(_profiler(workdir / "profile", profile and first))
        stopped = stack.enter_context(_stop_signals())
        progress = stack.enter_context(progress_bar(console))
        bar = progress.add_task(
            "training", total=config.steps, completed=start, note=""
        )
        left = range(start + 1, config.steps + 1)
        ready = parallel.on_devices(
            itertools.islice(log.timed(batches), len(left)), split
        )
        for step, batch in zip(left, ready, strict=True):
            trace(step - start)
            state, metrics = program(state, batch, frozen)
            log.add(step, metrics)
            progress.update(bar, completed=step)

            done, stop = step == config.steps, stopped(step)
            save = done or stop or step % config.checkpoint.every == 0
            if save or step % config.log_every == 0:
                # Before a save above all: what is not finite is refused here.
                means = log.flush(config.batch_size, utilisation)
                progress.update(bar, note=_note(means))
            score = None
            if done or step % config.evaluation.every == 0:
                scored = evaluate(step, state)
                score = scored.score
                log.write(step, {"evaluation": scored.rows})
                log.track(step, {f"evaluation_{scored.name}": score})
                progress.console.print(f"step {step}: {scored.text}")
            if save:
                checkpoints.save(step, state, score)
            if stop and not done:
                progress.console.print(
                    f"stopped by {stop}; step {step} is saved, and the same "
                    "command goes on from there"
                )
                return None
    return state, scored or evaluate(start, state)


def _sizes(params: Mapping[str, Any], trainable: Sequence[str]) -> tuple[int, int]:
    """How many parameters there are, and how many of them are trained."""
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    moves = jax.tree.leaves(optimizers.trained(params, trainable))
    return sum(sizes), sum(itertools.compress(sizes, moves))


def _check_same_experiment(workdir: Path, config: ConfigDict) -> None:
    """Refuses to go on from checkpoints whose data or model would not be the same.

    Other fields, such as the learning rate or the number of workers, may change.
    """
    theirs = json.loads((workdir / CONFIG).read_text())
    ours = json.loads(config.to_json_best_effort())
    fields = ("model", "seed", "batch_size", "loss", "ema_decay", "init_from")
    fields += ("trainable", "adversary.updates")
    fields += ("data.records", "data.recipe", "data.patch", "data.grid_phase")
    fields += ("data.qualities", "data.tasks", "guidance")
    for field in fields:
        try:
            before, now = (
                functools.reduce(operator.getitem, field.split("."), fields_of)
                for fields_of in (theirs, ours)
            )
        except KeyError as error:
            raise UserError(
                f"workdir {workdir} was made by an older version, which had no "
                f"config.{field}: give another --workdir"
            ) from error
        if before != now:
            raise UserError(
                f"workdir {workdir} holds a training with config.{field}={before}, not "
                f"{now}: give another --workdir, or go on with that config"
            )


def _note(means: Mapping[str, float] | None) -> str:
    names = {
        "loss": "loss {:.4f}",
        "psnr": "{:.2f} dB",
        "accuracy": "{:.0%} right",
        "images_per_second": "{:.1f} images/s",
        "model_flop_utilisation": "MFU {:.1%}",
        "waiting_for_data": "{:.1%} waiting for data",
    }
    means = means or {}
    return ", ".join(text.format(means[n]) for n, text in names.items() if n in means)


@contextlib.contextmanager
def _profiler(folder: Path, wanted: bool) -> Iterator[Callable[[int], None]]:
    """Asks before each step of a run for its number, and traces the `PROFILED` ones."""
    with contextlib.ExitStack() as trace:

        def profile(number: int) -> None:
            if wanted and number == PROFILED.start:
                trace.enter_context(jax.profiler.trace(folder))
            elif number == PROFILED.stop:
                trace.close()

        yield profile


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[int], str]]:
    """Asks after each step for the signal to stop at, instead of dying of it; or "".

    Clusters send SIGTERM before they take a machine away; the loop saves and returns.
    Of several processes all must stop at the same step, which JAX sees to: it catches
    SIGTERM itself.
    """
    if jax.process_count() > 1:
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda step: "SIGTERM" if reached(step) else ""
        return
    received: list[str] = []
    handlers = {
        number: signal.signal(
            number, lambda n, _: received.append(signal.Signals(n).name)
        )
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda step: received[0] if received else ""
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
