"""Training: one readable function from a config to weights, scores and a picture."""

import contextlib
import dataclasses
import functools
import json
import operator
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int32, UInt8
from ml_collections import ConfigDict
from rich.console import Console

from cir_jax import (
    device_metrics,
    evaluate,
    experiment,
    files,
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
from cir_jax.losses import LOSSES
from cir_jax.metrics_log import MetricsLog
from cir_jax.models import DTYPES, abstract_model, build_model
from cir_jax.progress import progress_bar
from cir_jax.restore import Restorer
from cir_jax.scores import Report

CONFIG = "config.json"
HIGHEST = 100.0
"""PSNR of a patch at most, dB, in the mean that training logs."""

Batch = Mapping[str, UInt8[Array, "b _ _ 3"] | Int32[Array, " b"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything that a step changes.

    There is no random state: whatever is random is a function of the config's seed and
    the step, which is also the position in the data (global batches consumed).

    Attributes:
        step: steps done, an int32 scalar.
        params: the model's parameters, a nested dict of float32 arrays.
        opt_state: the optimizer's state.
        ema: exponential moving average of the parameters.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any


def make_step(
    graphdef: nnx.GraphDef,
    loss: Callable,
    transformation: optax.GradientTransformation,
    ema_decay: float,
    trainable: Sequence[str] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The pure training step: a state and a batch to the next state and its metrics.

    A batch's "codec" goes to the model. Parameters that are not `trainable` (see
    `optimizers.trained`) get no gradient, so that the compiler leaves out its making.
    """

    def step(state: TrainState, batch: Batch):
        degraded, clean = (batch[n] / jnp.float32(255) for n in ("degraded", "clean"))
        known = {"codec": batch["codec"]} if "codec" in batch else {}

        def loss_of(params):
            model = nnx.merge(graphdef, params)
            seen = slice(model.channels)  # grey is stored in three channels
            restored = model(degraded[..., seen], **known)
            psnr = device_metrics.psnr(clean[..., seen], restored)
            # A patch without any error would make the mean infinite.
            return loss(restored, clean[..., seen]), jnp.minimum(psnr, HIGHEST).mean()

        (value, psnr), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        gradients = jax.tree.map(
            lambda trained, gradient: gradient if trained else jnp.zeros_like(gradient),
            optimizers.trained(gradients, trainable),
            gradients,
        )
        updates, opt_state = transformation.update(
            gradients, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        # A young average follows quickly, or it would remember the initialisation.
        age = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + age) / (10 + age))
        # In this form an average of what does not change is that, to the last bit.
        ema = jax.tree.map(
            lambda old, p: old + (1 - decay) * (p - old), state.ema, params
        )
        norm = optax.tree.norm(gradients)
        metrics = {"loss": value, "gradient_norm": norm, "psnr": psnr}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return step


def jit_step(
    config: ConfigDict,
    graphdef: nnx.GraphDef,
    transformation: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The step as it runs: compiled for the mesh, the old state's memory reused."""
    on_all = parallel.replicated(mesh)
    return jax.jit(
        make_step(
            graphdef,
            LOSSES[config.loss],
            transformation,
            config.ema_decay,
            config.trainable,
        ),
        in_shardings=(on_all, parallel.batch_sharding(mesh, config.batch_size)),
        out_shardings=(on_all, on_all),
        donate_argnums=0,
    )


def initial_state(
    params: Mapping[str, Any], transformation: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state before the first step, on the mesh, in memory of its own."""

    def initial(params):
        average = jax.tree.map(jnp.copy, params)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, transformation.init(params), average)

    return jax.jit(initial, out_shardings=parallel.replicated(mesh))(params)


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


def train_and_evaluate(config: ConfigDict, workdir: Path) -> Report | None:
    """Trains as the config says, going on from the workdir's newest checkpoint.

    Args:
        config: an experiment, see experiment.py.
        workdir: where checkpoints/, metrics.jsonl, weights.safetensors, pictures and
            scores go; made if it does not exist.

    Returns:
        The final scores; None when a signal stopped the training early.

    Raises:
        UserError: the config, the data or the workdir's checkpoint is wrong, or the
            loss is no longer finite.
    """
    # ---------------------------------------------------------------- the experiment
    experiment.check(config)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file: give a folder")
    console = Console(stderr=True)
    mesh = parallel.make_mesh(config.mesh.fsdp)
    split = parallel.batch_sharding(mesh, config.batch_size)

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
        next(probe)

    # ---------------------------------------------------------------- model and state
    model = initial_model(config)
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
    graphdef, params = nnx.split(model, nnx.Param)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    told = config.evaluation.codec if structure.known_codecs else None
    restorer = Restorer(structure, told, tile=None)
    trained = optimizers.trained(nnx.to_pure_dict(params), config.trainable)
    transformation = optimizers.optimizer(
        config.optimizer, config.steps, config.trainable
    )
    moving = sum(
        leaf.size
        for leaf, moves in zip(
            jax.tree.leaves(params), jax.tree.leaves(trained), strict=True
        )
        if moves
    )
    state = initial_state(nnx.to_pure_dict(params), transformation, mesh)
    del model, params  # the state has its own, and donates them
    step_fn = jit_step(config, graphdef, transformation, mesh)

    # ---------------------------------------------------------------- resume
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    if checkpoints.steps:
        _check_same_experiment(workdir, config)
        state = checkpoints.restore(state)
    manifest.write_json(workdir / CONFIG, json.loads(config.to_json_best_effort()))
    start = int(state.step)
    log = MetricsLog(workdir / "metrics.jsonl", start)
    console.print(
        f"{config.model.name}: {size:,} parameters, {moving:,} of them trained, "
        f"{mesh.size} "
        f"{jax.devices()[0].platform} device(s), {len(records)} records, "
        f"{start} of {config.steps} steps done",
        soft_wrap=True,  # one line, also in a log
    )

    # ---------------------------------------------------------------- evaluation
    def evaluate_now(step: int) -> Report:
        """Exports and scores the averaged weights."""
        exported = nnx.merge(graphdef, state.ema)
        provenance = {"step": str(step), "config": config.to_json_best_effort()}
        path = workdir / weights.WORKDIR_NAME
        weights.save(path, exported, provenance)
        averaged = restorer.with_params(parallel.local(state.ema))
        return evaluate.evaluate(
            {config.model.name: averaged},
            {Path(config.evaluation.images).name: images},
            tests,
            "gray" if structure.channels == 1 else None,
            provenance={f"sha256 of {path}": files.sha256(path)},
        )

    # ---------------------------------------------------------------- the loop
    batches = batches_from(start=start, workers=config.data.workers)
    report = None
    with (
        contextlib.closing(batches),
        contextlib.closing(checkpoints),
        _stop_signals() as stopped,
        progress_bar(console) as progress,
    ):
        bar = progress.add_task(
            "training", total=config.steps, completed=start, note=""
        )
        for step in range(start + 1, config.steps + 1):
            batch = parallel.to_devices(next(batches), split)
            state, metrics = step_fn(state, batch)
            log.add(step, metrics)
            progress.update(bar, completed=step)

            done, stop = step == config.steps, bool(stopped)
            save = done or stop or step % config.checkpoint.every == 0
            if save or step % config.log_every == 0:
                # Before a save above all: what is not finite is refused here.
                means = log.flush(config.batch_size)
                progress.update(bar, note=_note(means))
            psnr = None
            if done or step % config.evaluation.every == 0:
                report = evaluate_now(step)
                log.write(step, {"evaluation": report.to_json()["rows"]})
                psnr = _mean_psnr(report, config.model.name)
                progress.console.print(f"step {step}: {psnr:.2f} dB")
            if save:
                checkpoints.save(step, state, psnr)
            if stop and not done:
                progress.console.print(
                    f"stopped by {stopped[0]}; step {step} is saved, and the same "
                    "command goes on from there"
                )
                return None

    # ---------------------------------------------------------------- the results
    report = report or evaluate_now(start)
    manifest.write_json(workdir / "scores.json", report.to_json())
    averaged = restorer.with_params(parallel.local(state.ema))
    sheet = showcase.before_after({config.model.name: averaged}, images, tests[0])
    image_io.write_png(workdir / "before_after.png", sheet)
    print(report.table())
    print(f"\nbefore and after: {workdir / 'before_after.png'}")
    print(f"weights: {workdir / weights.WORKDIR_NAME}")
    return report


def _check_codecs(
    config: ConfigDict,
    known: Sequence[str],
    recipe: recipes.Recipe | None,
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
    }
    means = means or {}
    return ", ".join(text.format(means[n]) for n, text in names.items() if n in means)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """Collects the names of SIGTERM and SIGINT instead of dying of them.

    Clusters send SIGTERM before they take a machine away; the loop saves and returns.
    """
    received: list[str] = []
    handlers = {
        number: signal.signal(
            number, lambda n, _: received.append(signal.Signals(n).name)
        )
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
