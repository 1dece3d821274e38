"""Training: one readable function from a config to weights, scores and a picture."""

import contextlib
import functools
import itertools
import json
import operator
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from rich.console import Console

from cir_jax import (
    estimate,
    evaluate,
    experiment,
    files,
    hardware,
    image_io,
    optimizers,
    parallel,
    photos,
    showcase,
    weights,
)
from cir_jax.checkpoints import Checkpoints
from cir_jax.compression import compressions
from cir_jax.data import manifest, pairs, recipes
from cir_jax.errors import UserError
from cir_jax.metrics_log import MetricsLog
from cir_jax.models import DTYPES, abstract_model, build_model
from cir_jax.progress import progress_bar
from cir_jax.restore import Restorer
from cir_jax.run_info import run_info
from cir_jax.scores import Report
from cir_jax.trackers import check_installed, trackers
from cir_jax.train_step import initial_state

CONFIG = "config.json"
PROFILED = range(3, 6)
"""Steps after the first of a run that `profile` traces: warm, and few."""


def initial_model(config: ConfigDict) -> nnx.Module:
    """The model before the first step: drawn from the seed, or `init_from`'s weights.

    Raises:
        UserError: no such model or weights, or weights of another model.
    """
    dtype = DTYPES[config.dtype]
    model = build_model(config.model, nnx.Rngs(config.seed), dtype=dtype)
    if not config.init_from:
        return model
    start = weights.load(config.init_from, dtype=dtype)
    if start.config != model.config:
        raise UserError(
            f"config.init_from={config.init_from} holds a model of config "
            f"{start.config}, but config.model is {model.config}: make them equal"
        )
    return start


def train_and_evaluate(
    config: ConfigDict, workdir: Path, *, profile: bool = False
) -> Report | None:
    """Trains as the config says, going on from the workdir's newest checkpoint.

    Every process of a cluster calls it; the first one writes the files.

    Args:
        config: an experiment, see experiment.py.
        workdir: where checkpoints/, metrics.jsonl, weights.safetensors, pictures and
            scores go; made if it does not exist. All processes must see it.
        profile: write a trace of a few steps to WORKDIR/profile.

    Returns:
        The final scores; None when a signal stopped the training early.

    Raises:
        UserError: the config, the data or the workdir's checkpoint is wrong, or the
            loss is no longer finite.
    """
    # ---------------------------------------------------------------- the experiment
    experiment.check(config)
    check_installed(config)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file: give a folder")
    first = parallel.is_first()
    console = Console(stderr=True, quiet=not first)
    mesh = parallel.make_mesh(config.mesh.fsdp)
    split = parallel.batch_sharding(mesh, config.batch_size)
    if config.batch_size // mesh.size % config.accumulate:
        raise UserError(
            f"config.accumulate={config.accumulate} does not divide the "
            f"{config.batch_size // mesh.size} images of each device: give a divisor"
        )

    # ---------------------------------------------------------------- data
    records, contents = manifest.open_records(
        experiment.records_folder(config, workdir),
        experiment.encode_command(config, workdir),
    )
    images = evaluate.ImageFolder(photos.resolve(config.evaluation.images))
    tests = compressions(config.evaluation.codec, config.evaluation.qualities)
    structure = abstract_model(config.model, dtype=DTYPES[config.dtype])
    recipe = recipes.for_reader(config.data.recipe, contents)
    _check_codecs(config, structure.known_codecs, recipe, contents)
    batches_from = functools.partial(
        pairs.batches,
        records,
        seed=config.seed,
        batch_size=config.batch_size,
        patch=config.data.patch,
        grid_phase=config.data.grid_phase,
        qualities=config.data.qualities,
        recipe=recipe,
        codecs=structure.known_codecs,
        damaged=config.data.damaged,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    # Options that do not fit the records show here, before the workdir is touched.
    with contextlib.closing(batches_from(start=0)) as probe:
        example = next(probe)

    # ---------------------------------------------------------------- model and state
    model = initial_model(config)
    _check_fits(config, model, contents)
    graphdef, params = nnx.split(model, nnx.Param)
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(params))
    told = config.evaluation.codec if structure.known_codecs else None
    restorer = Restorer(structure, told, tile=None)
    transformation = optimizers.optimizer(
        config.optimizer, config.steps, config.trainable
    )
    state = initial_state(params, transformation, mesh)
    size, moving = _sizes(params, config.trainable)
    del model, params  # the state has its own, and donates them

    # ---------------------------------------------------------------- resume
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
        f"{len(records)} records, {start} of {config.steps} steps done",
        soft_wrap=True,  # one line, also in a log
    )
    shapes = {
        name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype)
        for name, x in example.items()
    }
    lowered, flops = estimate.lowered_step(
        config, graphdef, transformation, mesh, state, shapes
    )
    program = lowered.compile()
    memory = program.memory_analysis()
    for line in estimate.describe(
        mesh, state, config.batch_size, config.accumulate, memory, flops
    ):
        console.print(line, soft_wrap=True, highlight=False)
    peak = hardware.peak(mesh.devices.flat[0])
    utilisation = flops / (mesh.size * peak) if peak else 0.0

    # ---------------------------------------------------------------- evaluation
    def evaluate_now(step: int) -> Report:
        """Exports and scores the averaged weights."""
        average = parallel.whole(state.ema, mesh)
        provenance = {"step": str(step), "config": config.to_json_best_effort()}
        path = workdir / weights.WORKDIR_NAME
        if first:
            weights.save(path, nnx.merge(graphdef, average), provenance)
        parallel.wait_for_all(f"weights of step {step}")
        return evaluate.evaluate(
            {config.model.name: restorer.with_params(average)},
            {Path(config.evaluation.images).name: images},
            tests,
            "gray" if structure.channels == 1 else None,
            provenance={f"sha256 of {path}": files.sha256(path)},
        )

    # ---------------------------------------------------------------- the loop
    report = None
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(trackers(config, workdir)) if first else []
        log = MetricsLog(workdir / "metrics.jsonl", start, opened, writes=first)
        batches = batches_from(start=start, workers=config.data.workers)
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
            state, metrics = program(state, batch)
            log.add(step, metrics)
            progress.update(bar, completed=step)

            done, stop = step == config.steps, stopped(step)
            save = done or stop or step % config.checkpoint.every == 0
            if save or step % config.log_every == 0:
                # Before a save above all: what is not finite is refused here.
                means = log.flush(config.batch_size, utilisation)
                progress.update(bar, note=_note(means))
            psnr = None
            if done or step % config.evaluation.every == 0:
                report = evaluate_now(step)
                psnr = _mean_psnr(report, config.model.name)
                log.write(step, {"evaluation": report.to_json()["rows"]})
                log.track(step, {"evaluation_psnr": psnr})
                progress.console.print(f"step {step}: {psnr:.2f} dB")
            if save:
                checkpoints.save(step, state, psnr)
            if stop and not done:
                progress.console.print(
                    f"stopped by {stop}; step {step} is saved, and the same "
                    "command goes on from there"
                )
                return None

    # ---------------------------------------------------------------- the results
    report = report or evaluate_now(start)
    averaged = restorer.with_params(parallel.whole(state.ema, mesh))
    if first:
        manifest.write_json(workdir / "scores.json", report.to_json())
        sheet = showcase.before_after({config.model.name: averaged}, images, tests[0])
        image_io.write_png(workdir / "before_after.png", sheet)
        print(report.table())
        print(f"\nbefore and after: {workdir / 'before_after.png'}")
        print(f"weights: {workdir / weights.WORKDIR_NAME}")
    parallel.wait_for_all("results")  # whoever sees one end finds them
    return report


def _check_fits(
    config: ConfigDict, model: nnx.Module, contents: Mapping[str, Any]
) -> None:
    """Refuses patches or records that the model cannot be trained on."""
    if config.data.patch % model.multiple:
        raise UserError(
            f"config.data.patch={config.data.patch} is no multiple of "
            f"{model.multiple}, which {config.model.name} needs"
        )
    if contents["scale"] != model.scale:
        raise UserError(
            f"{config.model.name} restores at scale {model.scale}, the records are of "
            f"scale {contents['scale']}: encode with --scale {model.scale}"
        )
    if model.channels == 1 and not contents["grey"]:
        raise UserError(
            "config.model.channels=1 restores grey images, the records are of colour: "
            "encode with --grey"
        )


def _sizes(params: Mapping[str, Any], trainable: Sequence[str]) -> tuple[int, int]:
    """How many parameters there are, and how many of them are trained."""
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    moves = jax.tree.leaves(optimizers.trained(params, trainable))
    return sum(sizes), sum(itertools.compress(sizes, moves))


def _check_codecs(
    config: ConfigDict,
    known: Sequence[str],
    recipe: recipes.Reading,
    contents: Mapping[str, Any],
) -> None:
    """Refuses codecs that would be known to the weights, but never trained."""
    found = recipes.labels(recipe, contents, config.data.qualities)
    missing = set(known) - found
    if missing and not config.init_from:
        raise UserError(
            f"config.model.codecs names {', '.join(sorted(missing))}, of which the "
            f"data has no version (it has {', '.join(sorted(found))}): name those that "
            "are trained alone"
        )


def _check_same_experiment(workdir: Path, config: ConfigDict) -> None:
    """Refuses to go on from checkpoints whose data or model would not be the same.

    Other fields, such as the learning rate or the number of workers, may change.
    """
    theirs = json.loads((workdir / CONFIG).read_text())
    ours = json.loads(config.to_json_best_effort())
    fields = ("model", "seed", "batch_size", "loss", "ema_decay", "init_from")
    fields += ("trainable",)
    fields += ("data.records", "data.recipe", "data.patch", "data.grid_phase")
    fields += ("data.qualities",)
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


def _mean_psnr(report: Report, method: str) -> float:
    """Over all qualities; what the best checkpoint is chosen by."""
    rows = [row["psnr"] for row in report.rows() if row["method"] == method]
    return sum(rows) / len(rows)


def _note(means: Mapping[str, float] | None) -> str:
    names = {
        "loss": "loss {:.4f}",
        "psnr": "{:.2f} dB",
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
