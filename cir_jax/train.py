"""Training: one readable function from a config to weights, scores and a picture."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from cir_jax import (
    evaluate,
    experiment,
    files,
    guidance,
    image_io,
    optimizers,
    parallel,
    photos,
    showcase,
    weights,
)
from cir_jax.compression import compressions
from cir_jax.data import manifest, pairs, recipes
from cir_jax.data.tasks import check_tasks
from cir_jax.errors import UserError
from cir_jax.image_sets import ImageFolder
from cir_jax.loop import Scored, Training, run, start
from cir_jax.models import DTYPES, abstract_model, build_model
from cir_jax.objectives import REFERENCE
from cir_jax.restore import Restorer
from cir_jax.scores import Report
from cir_jax.train_step import TrainState, objective_of


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
    try:
        return model.adopting(start)
    except UserError as error:
        raise UserError(f"config.init_from={config.init_from} {error}") from error


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
    mesh = start(config, workdir)
    first = parallel.is_first()

    # ---------------------------------------------------------------- data
    records, contents = manifest.open_records(
        experiment.records_folder(config, workdir),
        experiment.encode_command(config, workdir),
    )
    images = ImageFolder(photos.resolve(config.evaluation.images))
    tests = compressions(config.evaluation.codec, config.evaluation.qualities)
    structure = abstract_model(config.model, dtype=DTYPES[config.dtype])
    recipe = recipes.for_reader(config.data.recipe, contents)
    objective = objective_of(config, structure)
    reading = objective.reading(structure)
    _check_codecs(config, reading["codecs"], recipe, contents)
    kinds = recipes.kinds(recipe, contents, config.data.qualities)
    check_tasks(objective.tasks, kinds)
    batches_from = functools.partial(
        pairs.batches,
        records,
        seed=config.seed,
        batch_size=config.batch_size,
        patch=config.data.patch,
        grid_phase=config.data.grid_phase,
        qualities=config.data.qualities,
        recipe=recipe,
        **reading,
        damaged=config.data.damaged,
        process=jax.process_index(),
        processes=jax.process_count(),
    )

    # ---------------------------------------------------------------- model and guides
    model = initial_model(config)
    _check_fits(config, model, contents)
    objective, frozen = guidance.load(config, model, objective)
    if REFERENCE in objective.memory:
        frozen |= guidance.reference_patches(
            functools.partial(batches_from, process=0, processes=1),
            config.seed,
            objective.tasks,
        )
        epoch = max(1, len(records) // config.batch_size)
        objective = dataclasses.replace(objective, renew_every=epoch)
    graphdef, params = nnx.split(model, nnx.Param)
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(params))
    told = config.evaluation.codec if structure.known_codecs else None
    shown = objective.guide("dinov2", frozen) if structure.semantic_dim else None
    restorer = Restorer(structure, told, tile=None, dinov2=shown)

    # ---------------------------------------------------------------- evaluation
    def evaluate_now(step: int, state: TrainState) -> Scored:
        """Exports and scores the averaged weights."""
        average = parallel.whole(state.ema, mesh)
        provenance = {"step": str(step), "config": config.to_json_best_effort()}
        path = workdir / weights.WORKDIR_NAME
        if first:
            weights.save(path, nnx.merge(graphdef, average), provenance)
        parallel.wait_for_all(f"weights of step {step}")
        report = evaluate.evaluate(
            {config.model.name: restorer.with_params(average)},
            {Path(config.evaluation.images).name: images},
            tests,
            "gray" if structure.channels == 1 else None,
            provenance={f"sha256 of {path}": files.sha256(path)},
        )
        psnr = _mean_psnr(report, config.model.name)
        return Scored("psnr", psnr, f"{psnr:.2f} dB", report.to_json()["rows"], report)

    # ---------------------------------------------------------------- the loop
    finished = run(
        Training(
            config,
            workdir,
            mesh,
            graphdef,
            params,
            objective,
            frozen,
            optimizers.turns(config),
            batches_from,
            f"{len(records)} records",
        ),
        evaluate_now,
        profile=profile,
    )
    if finished is None:
        return None

    # ---------------------------------------------------------------- the results
    state, scored = finished
    report = scored.report
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


def _mean_psnr(report: Report, method: str) -> float:
    """Over all qualities; what the best checkpoint is chosen by."""
    rows = [row["psnr"] for row in report.rows() if row["method"] == method]
    return sum(rows) / len(rows)
