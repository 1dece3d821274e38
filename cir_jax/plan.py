"""Plans past this machine: what training would take of devices that are not here.

    python -m cir_jax.plan
    python -m cir_jax.plan --config=configs/promptcir.py:online --topology=v5e:4x4

Compiles the training step of configs as `cir_jax.main` would, for simulated CPU devices
or, by libtpu (extra tpu), for slices of TPUs. Nothing is run.
"""

import argparse
import ast
import dataclasses
import datetime
import itertools
import math
import os
import re
import runpy
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
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
    hardware,
    parallel,
)
from cir_jax.arguments import named
from cir_jax.cli import INTERRUPTED, WRONG_USE
from cir_jax.data import pairs
from cir_jax.errors import UserError, first_line
from cir_jax.hardware import count
from cir_jax.objectives import REFERENCE
from cir_jax.progress import progress_bar
from cir_jax.tables import markdown
from cir_jax.train_step import abstract_training

CONFIGS = Path("configs")
CHIP, CHIPS = "TPU v5 lite", (8, 64, 256)
"""What compiled steps are extrapolated to; so many can be one slice."""
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is taken from anybody
    "TPU_SKIP_MDS_QUERY": "1",  # nor is Google's metadata server asked
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any; libtpu complains where there is none
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a compiled training step takes.

    Attributes:
        config: its name, and what was changed in it.
        where: the devices, in words.
        mesh: devices by axis.
        batch: images of a step, all devices together.
        note: where the batch comes from, in words.
        memory: bytes of a device.
        temporary: bytes of these that are neither arguments nor results.
        flops: of the model, all devices together.
        collectives: of a device.
        estimated: seconds of a step, as the TPU compiler thinks; 0 where it does not.
    """

    config: str
    where: str
    mesh: Mapping[str, int]
    batch: int
    note: str
    memory: int
    temporary: int
    flops: float
    collectives: collectives.Collectives
    estimated: float

    @property
    def devices(self) -> int:
        """How many there are."""
        return math.prod(self.mesh.values())

    def at_best(self, chips: int) -> tuple[float, float]:
        """Seconds of a step at least, and the share of them in which data is sent.

        Of so many chips with as many images each, where arithmetic and links alone take
        time, at their peaks and beside each other.
        """
        computing = self.flops / self.devices / hardware.PEAK[CHIP]
        sending = self.collectives.sent(chips) / hardware.LINKS[CHIP]
        seconds = max(computing, sending)
        return seconds, sending / seconds


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
) -> Plan:
    """Compiles a config's training step; see `Plan` for the arguments."""
    arguments = training(config, devices)
    lowered, flops = estimate.lowered_step(*arguments)
    # Without it the CPU's instructions are optimised, which takes most of the time.
    plain = {"xla_backend_optimization_level": 0}
    device = arguments[4].devices.flat[0]
    program = lowered.compile(plain if device.platform == "cpu" else None)
    memory, text = program.memory_analysis(), program.as_text()
    cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
    return Plan(
        name,
        where,
        dict(arguments[4].shape),
        config.batch_size,
        note,
        estimate.memory_needed(memory),
        memory.temp_size_in_bytes,
        flops,
        collectives.read(text),
        cycles / hardware.CLOCK.get(device.device_kind, math.inf),
    )


# ------------------------------------------------------------------------ tables
def report(plans: Sequence[Plan], failures: Sequence[str] = ()) -> str:
    """What was compiled, and what that would be at best on other numbers of chips."""
    names, places = ([getattr(p, name) for p in plans] for name in ("config", "where"))
    first = {
        "config": names,
        "devices": places,
        "mesh": [" x ".join(map(str, plan.mesh.values())) for plan in plans],
        "batch": [f"{plan.batch} (config: {plan.note})" for plan in plans],
        "memory of a device": [_memory(plan) for plan in plans],
        "FLOP": [count(plan.flops) for plan in plans],
        "collectives of a device": [_sizes(plan.collectives) for plan in plans],
        "compiler's estimate": [
            f"{1000 * plan.estimated:.3g} ms" if plan.estimated else ""
            for plan in plans
        ],
    }
    second = {
        "config": names,
        "compiled for": places,
        "images a chip": [str(plan.batch // plan.devices) for plan in plans],
    } | {f"{chips} chips": [_at_best(plan, chips) for plan in plans] for chips in CHIPS}
    peak, links = (count(n[CHIP]) for n in (hardware.PEAK, hardware.LINKS))
    return f"""\
Compiled, not run ({_versions()}): what a training step takes.

{_table(first)}
{"".join(f"{chr(10)}Not compiled: {failure}{chr(10)}" for failure in failures)}
Memory: arguments and temporaries, less the arguments that results take the place of.
FLOP: of the model and the whole batch, as XLA counts them before it compiles.
Collectives: bytes of the arrays that they put together or take apart, in one piece.
The compiler's estimate: the cycles of all operations, one after another, at the
{count(hardware.CLOCK[CHIP], "Hz")} that a TPU v5e has at its peak.

Extrapolated, not run: TPU v5e, data parallel, as many images a chip. A step takes
FLOP / {peak}FLOP/s or, if that is longer, what a chip sends / {links}B/s, over all its
links: of n chips in a ring 2 (n - 1) / n of an all-reduce's bytes, (n - 1) / n of other
collectives'. Nothing else takes time, so no step is faster. Shown are that time,
images/s, and the share of it in which data is sent.

{_table(second)}"""


def _memory(plan: Plan) -> str:
    return f"{count(plan.memory, 'B')}, {count(plan.temporary, 'B')} temporary"


def _sizes(found: collectives.Collectives) -> str:
    sizes = ", ".join(f"{kind} {count(n, 'B')}" for kind, n in found.sizes.items())
    return ("" if found.exact else "at least ") + (sizes or "none")


def _at_best(plan: Plan, chips: int) -> str:
    seconds, share = plan.at_best(chips)
    images = chips * plan.batch / plan.devices / seconds
    return f"{1000 * seconds:.3g} ms, {count(images)}/s, {share:.1%}"


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    return markdown([list(columns), *zip(*columns.values(), strict=True)])


def _versions() -> str:
    today = datetime.date.today().isoformat()
    try:
        return f"jax {jax.__version__}, libtpu {metadata.version('libtpu')}, {today}"
    except metadata.PackageNotFoundError:
        return f"jax {jax.__version__}, {today}"


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
    names = options.config or shipped()
    if min(options.devices, options.slices) < 1:
        raise UserError("--devices and --slices must be at least 1")
    for name in names:  # before the first is compiled
        load(name, options.set)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1 if options.topology else options.devices)
    jax.config.update("jax_enable_compilation_cache", False)  # figures from compiling
    several = f" x {options.slices}" if options.slices > 1 else ""
    places = {
        name + several: topology(name, options.slices) for name in options.topology
    } or {f"{options.devices} simulated CPUs": jax.devices()}

    plans, failures = [], []
    console = Console(stderr=True)
    with progress_bar(console) as progress:
        todo = list(itertools.product(names, places.items()))
        bar = progress.add_task("compiling", total=len(todo), note="")
        for name, (where, devices) in todo:
            progress.update(bar, note=f"{name}, {where}")
            config, meant = load(name, options.set)
            if options.fsdp is not None:
                config.mesh.fsdp = options.fsdp
            note = fit_batch(config, meant, len(devices))
            path, *stage = name.split(":")
            title = " ".join([":".join([Path(path).stem, *stage]), *options.set])
            try:
                plans.append(compiled(title, config, note, where, devices))
                told = f"{title}, {where}: {_memory(plans[-1])}"
            except Exception as error:  # the others took hours to compile
                told = f"{title}, {where}: {first_line(error)}"
                failures.append(told)
            progress.console.print(told, soft_wrap=True, highlight=False)
            jax.clear_caches()
            progress.advance(bar)
    print(report(plans, failures))
    return int(bool(failures))


def main(arguments: Sequence[str]) -> int:
    """The command; bad input gives 2 and one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m cir_jax.plan",
        description="Compile training steps for devices that are not here.",
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
