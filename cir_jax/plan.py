"""Plans past this machine: what training would take of devices that are not here.

    python -m cir_jax.plan
    python -m cir_jax.plan --config=configs/promptcir.py:online --topology=v5e:4x4
    python -m cir_jax.plan --model=promptcir:XT --forward=128x128 --topology=v5e:2x2

Compiles the training step of configs as `cir_jax.main` would, for simulated CPU devices
or, by libtpu (extra tpu), for slices of TPUs; or with --forward what restores images on
one of these. Nothing is run.
"""

import argparse
import ast
import itertools
import math
import os
import re
import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.experimental import topologies
from ml_collections import ConfigDict
from rich.console import Console

from cir_jax import (
    collectives,
    estimate,
    experiment,
    guidance,
    parallel,
    plan_forward,
    plan_report,
)
from cir_jax.arguments import named
from cir_jax.cli import INTERRUPTED, WRONG_USE
from cir_jax.data import pairs
from cir_jax.errors import UserError, first_line
from cir_jax.models import DTYPES, abstract_model
from cir_jax.objectives import REFERENCE
from cir_jax.plan_report import Footprint, Plan, memory, report
from cir_jax.progress import progress_bar
from cir_jax.train_step import abstract_training

CONFIGS = Path("configs")
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is taken from anybody
    "TPU_SKIP_MDS_QUERY": "1",  # nor is Google's metadata server asked
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any; libtpu complains where there is none
    "TPU_WORKER_HOSTNAMES": "localhost",
}


# ------------------------------------------------------------------------ the configs
def shipped() -> list[str]:
    """A clone's configs, each in the stages that its docstring has a command for.

    Raises:
        UserError: this is no clone's folder.
    """
    if not CONFIGS.is_dir():
        raise UserError(f"there is no folder {CONFIGS} here: run it in a clone's")
    return [
        f"{path}{stage}"
        for path in sorted(CONFIGS.glob("*.py"))
        for stage in re.findall(rf"--config=configs/{path.name}(\S*)", _docstring(path))
    ]


def load(name: str, changes: Sequence[str] = ()) -> tuple[ConfigDict, int | None]:
    """A config, and the number of devices that its docstring says it is for.

    Args:
        name: of its file, and after a colon its stage.
        changes: FIELD=VALUE.

    Raises:
        UserError: there is no such file or stage, or a field is wrong.
    """
    path, stage = experiment.file_and_form(name)
    if not path.is_file():
        raise UserError(f"config file {path} does not exist")
    fields = dict(named(text, "--set", "FIELD=VALUE") for text in changes)
    try:
        config = runpy.run_path(str(path))["get_config"](*filter(None, [stage]))
        config.update_from_flattened_dict(
            {field: _value(text) for field, text in fields.items()}
        )
    except Exception as error:  # a config is a program and can raise anything
        raise UserError(f"{' '.join([name, *changes])}: {error}") from error
    experiment.check(config)
    meant = re.search(r"Hardware: (one|\d+) GPU", _docstring(path))
    return config, meant and int(meant[1].replace("one", "1"))


def _value(text: str) -> Any:
    """A number, a tuple, or words as they are."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _docstring(path: str | Path) -> str:
    return ast.get_docstring(ast.parse(Path(path).read_text())) or ""


def fit_batch(config: ConfigDict, meant: int | None, devices: int) -> str:
    """Makes the batch one for so many devices; tells in words what it was.

    Each gets as many images as each of those that the config is meant for. Where that
    is not known, the batch is rounded up.
    """
    before = config.batch_size
    unit = devices * config.accumulate
    wanted = before * devices / meant if meant else before
    config.batch_size = unit * math.ceil(wanted / unit)
    return f"{before} on {meant}" if meant else f"{before} in all"


# ------------------------------------------------------------------------ one plan
def training(config: ConfigDict, devices: Sequence[Any] | None = None) -> tuple:
    """The arguments of `estimate.lowered_step`, without any array.

    Args:
        config: an experiment.
        devices: JAX's by default.
    """
    if experiment.trains_prompts(config):
        raise UserError(f"{config.model.name} trains prompts: plans are of restorers")
    mesh = parallel.make_mesh(config.mesh.fsdp, devices)
    model, objective, turns, state = abstract_training(config, mesh)
    shapes = pairs.batch_shapes(
        config.batch_size, config.data.patch, model.scale, **objective.reading(model)
    )
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    objective, frozen = guidance.load(config, model, objective)
    if REFERENCE in objective.memory:
        count = guidance.REFERENCE_PATCHES
        frozen[REFERENCE] = {
            name: jax.ShapeDtypeStruct(
                (len(objective.tasks), count, *x.shape[1:]), x.dtype
            )
            for name, x in batch.items()
        }
    graphdef = nnx.graphdef(model)
    return config, graphdef, objective, turns, mesh, state, batch, frozen


def compiled(
    name: str, config: ConfigDict, note: str, where: str, devices: Sequence[Any]
) -> tuple[Plan, Footprint]:
    """Compiles a config's training step; see `Plan` for the arguments."""
    arguments = training(config, devices)
    lowered, flops = estimate.lowered_step(*arguments)
    device = arguments[4].devices.flat[0]
    program = _compile(lowered, device)
    text = program.as_text()
    what = f"training step, {config.batch_size} x {config.data.patch}x"
    what += str(config.data.patch)
    found = plan_report.footprint(name, what, where, program, text, device)
    cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
    plan = Plan(
        name,
        where,
        dict(arguments[4].shape),
        config.batch_size,
        note,
        found.memory,
        found.temporary,
        flops,
        collectives.read(text),
        cycles / found.clock,
    )
    return plan, found


def compiled_forward(
    name: str,
    network: Mapping[str, Any],
    dtype: str,
    images: Sequence[int],
    where: str,
    device: Any,
) -> Footprint:
    """Compiles what restores images on one device.

    Args:
        name: of the config or network.
        network: see `models.build_model`.
        dtype: a name in `models.DTYPES`.
        images: how many at once, their height and width.
        where: what the device is of, in words.
        device: that it is for.
    """
    model = abstract_model(network, dtype=DTYPES[dtype])
    program = _compile(plan_forward.lowered(model, *images, device), device)
    number, height, width = images
    what = f"forward, {number} x {height}x{width}, {dtype}"
    text = program.as_text()
    return plan_report.footprint(name, what, f"one of {where}", program, text, device)


def _compile(lowered: jax.stages.Lowered, device: Any) -> jax.stages.Compiled:
    # Without it the CPU's instructions are optimised, which takes most of the time.
    plain = {"xla_backend_optimization_level": 0}
    return lowered.compile(plain if device.platform == "cpu" else None)


# ------------------------------------------------------------------------ the command
def topology(name: str, slices: int) -> Sequence[Any]:
    """The devices of TPU slices that need not exist.

    Args:
        name: such as v5e:2x2.
        slices: how many of them.

    Raises:
        UserError: there is no such slice, or no libtpu.
    """
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        return topologies.get_topology_desc(name, "tpu", **several).devices
    except Exception as error:  # of several kinds, by what is missing
        raise UserError(
            f"--topology {name}: {first_line(error)} (give one such as v5e:4x4; needs "
            "libtpu: pip install 'cir_jax[tpu]')"
        ) from error


def run(options: argparse.Namespace) -> int:
    """Plans every config for all devices asked for, and prints the tables.

    Returns:
        0, or 1 if some could not be compiled.

    Raises:
        UserError: wrong use.
    """
    images = _images(options)
    networks = {} if images is None else _networks(options, *images[1:])
    names = list(networks) or options.config or shipped()
    if min(options.devices, options.slices) < 1:
        raise UserError("--devices and --slices must be at least 1")
    if images is None:
        for name in names:  # before the first is compiled
            load(name, options.set)

    plans, programs, failures = [], [], []
    todo = list(itertools.product(names, _places(options).items()))
    with progress_bar(Console(stderr=True)) as progress:
        bar = progress.add_task("compiling", total=len(todo), note="")
        for name, (where, devices) in todo:
            progress.update(bar, note=f"{name}, {where}")
            title, start = _title(name, options.set), time.perf_counter()
            try:
                if images is None:
                    config, note = _fitted(name, options, len(devices))
                    plan, found = compiled(title, config, note, where, devices)
                    plans.append(plan)
                else:
                    network = networks[name]
                    found = compiled_forward(title, *network, images, where, devices[0])
                programs.append(found)
                took = f"compiled in {time.perf_counter() - start:.0f} s"
                told = f"{memory(found.memory, found.temporary)}, {took}"
            except Exception as error:  # the others took hours to compile
                told = first_line(error)
                failures.append(f"{title}, {where}: {told}")
            told = f"{title}, {where}: {told}"
            progress.console.print(told, soft_wrap=True, highlight=False)
            jax.clear_caches()
            progress.advance(bar)
    if images is None:
        print(report(plans, failures) + "\n")
    untold = [] if images is None else failures
    print(plan_report.operations_report(programs, untold, options.operations))
    return int(bool(failures))


def _places(options: argparse.Namespace) -> dict[str, Sequence[Any]]:
    """The devices asked for, by what they are called."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1 if options.topology else options.devices)
    jax.config.update("jax_enable_compilation_cache", False)  # figures from compiling
    several = f" x {options.slices}" if options.slices > 1 else ""
    return {
        name + several: topology(name, options.slices) for name in options.topology
    } or {f"{options.devices} simulated CPUs": jax.devices()}


def _images(options: argparse.Namespace) -> tuple[int, int, int] | None:
    """Number, height and width of what is restored; None where a step is trained."""
    if options.forward is None:
        if options.model or options.batch is not None:
            raise UserError("--model and --batch are for --forward: add it")
        return None
    if options.fsdp is not None or options.slices != 1:
        raise UserError("--forward is of one device: leave out --fsdp and --slices")
    batch = 1 if options.batch is None else options.batch
    if batch < 1:
        raise UserError(f"--batch {batch}: give at least 1")
    return batch, *plan_forward.size(options.forward)


def _networks(
    options: argparse.Namespace, height: int, width: int
) -> dict[str, tuple[Mapping[str, Any], str]]:
    """Networks and the types they compute in, by what the options call them.

    Raises:
        UserError: none is named, or one that there is not or takes no such images.
    """
    if not options.config and not options.model:
        raise UserError("--forward: say of which networks, by --model or --config")
    if options.set and options.model:
        raise UserError("--set changes configs: give --config instead of --model")
    found = {}
    for name in options.config or ():
        config, _ = load(name, options.set)
        if experiment.trains_prompts(config):
            raise UserError(f"--config {name} trains prompts: it has no restorer")
        found[name] = config.model.to_dict(), config.dtype
    for name in options.model:
        found[name] = plan_forward.network(name), "bfloat16"
    for name, (network, _) in found.items():  # before the first is compiled
        plan_forward.check_size(name, abstract_model(network), height, width)
    return found


def _fitted(
    name: str, options: argparse.Namespace, devices: int
) -> tuple[ConfigDict, str]:
    """A config for so many devices, and in words where its batch comes from."""
    config, meant = load(name, options.set)
    if options.fsdp is not None:
        config.mesh.fsdp = options.fsdp
    return config, fit_batch(config, meant, devices)


def _title(name: str, changes: Sequence[str]) -> str:
    path, *stage = name.split(":")
    return " ".join([":".join([Path(path).stem, *stage]), *changes])


def main(arguments: Sequence[str]) -> int:
    """The command; bad input gives 2 and one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m cir_jax.plan",
        description="Compile programs for devices that are not here.",
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE[:STAGE]",
        help="may repeat; by default all that a clone has",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--devices", type=int, default=8, help="simulated CPUs, 8")
    place.add_argument(
        "--topology",
        action="append",
        default=[],
        help="instead: a TPU slice, such as v5e:2x2; may repeat",
    )
    parser.add_argument("--slices", type=int, default=1, help="how many such slices")
    parser.add_argument("--fsdp", type=int, help="in place of config.mesh.fsdp")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="changes a field, such as rematerialise=blocks; may repeat",
    )
    parser.add_argument(
        "--forward",
        metavar="HxW",
        help="instead of a training step: restoring images of that size on one device",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME[:VARIANT]",
        help="with --forward: a network, in bfloat16; may repeat",
    )
    parser.add_argument("--batch", type=int, help="with --forward: images at once, 1")
    parser.add_argument(
        "--operations",
        action="store_true",
        help="list them by kind, what moves arrays about, and padded arrays",
    )
    try:
        return run(parser.parse_args(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
