"""`cir bench`: its options, and what they mean.

Modules are imported when the command runs: JAX takes seconds to load.
"""

import argparse
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cir_jax.arguments import check_can_write
from cir_jax.errors import UserError, first_line, unknown

if TYPE_CHECKING:
    from cir_jax import bench, breakdown

DEFAULT_MODELS = ("promptcir", "ucip")
SIDE, ENLARGED_SIDE = 128, 64
"""Pixels of the forward's images by default, and of networks that enlarge them."""
TRAINED = "2x64x64"


class Subject(NamedTuple):
    """A network and what is measured of it."""

    name: str
    load: Callable[[], Any]
    cases: list["bench.Case"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME[:VARIANT]",
        help="with random parameters; may repeat; default: promptcir and ucip",
    )
    parser.add_argument(
        "--weights", help="instead of --model: a name, file or workdir of trained ones"
    )
    parser.add_argument(
        "--size",
        action="append",
        metavar="SIDE|HxW",
        help="of the forward's images, pixels; may repeat; default: 128, and 64 for "
        "networks that enlarge",
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="images of a forward; default 1"
    )
    parser.add_argument(
        "--train",
        nargs="?",
        const=TRAINED,
        metavar="BxHxW",
        help=f"the training step too, of so many degraded patches; {TRAINED} by itself",
    )
    parser.add_argument(
        "--precision", default="float32", help="float32 (default) or bfloat16"
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help="timed calls of each row; default 7"
    )
    parser.add_argument(
        "--breakdown", action="store_true", help="time each forward's parts by kind"
    )
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--markdown", type=Path, help="write what is printed")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help="what --json wrote earlier: show what changed since",
    )
    parser.add_argument("--device", help="cpu, gpu, tpu or such as gpu:1")


def run(options: argparse.Namespace) -> int:
    """Measures, prints the tables and writes the files that are asked for.

    Returns:
        The exit status.

    Raises:
        UserError: wrong usage or bad input.
    """
    import jax

    from cir_jax import bench, files, models
    from cir_jax.data import manifest
    from cir_jax.restore import find_device

    if min(options.batch, options.repeats) < 1:
        raise UserError("--batch and --repeats must be at least 1")
    if options.precision not in models.DTYPES:
        raise unknown("precision", options.precision, models.DTYPES)
    for flag in ("json", "markdown"):
        check_can_write(f"--{flag}", getattr(options, flag))
    earlier = bench.read_earlier(options.compare) if options.compare else None
    device = find_device(options.device) if options.device else jax.devices()[0]
    rows, parts = _measured(options, _subjects(options), device)
    environment = _environment(device)
    text = report(rows, parts, environment, options.repeats, earlier, options.compare)
    if options.markdown:
        files.write_text(options.markdown, text + "\n")
    if options.json:
        content = {
            "environment": environment,
            "rows": [row.to_json() for row in rows],
            "breakdown": {
                title: [part.to_json() for part in each]
                for title, each in parts.items()
            },
        }
        manifest.write_json(options.json, content)
    print(text)  # last, as whoever reads it may leave early
    return 0


def _measured(
    options: argparse.Namespace, subjects: Sequence[Subject], device: Any
) -> tuple[list["bench.Row"], dict[str, list["breakdown.Part"]]]:
    """The rows, and the parts of forwards by their titles; draws a progress bar."""
    import jax
    from rich.console import Console

    from cir_jax import bench, breakdown
    from cir_jax.progress import progress_bar

    rows: list[bench.Row] = []
    parts: dict[str, list[breakdown.Part]] = {}
    with bench.compiling_afresh(), progress_bar(Console(stderr=True)) as progress:
        product = bench.Product(device, options.precision)
        how: dict[str, Any] = {"device": device, "product": product}
        how["repeats"] = options.repeats
        todo = sum(len(subject.cases) for subject in subjects)
        bar = progress.add_task("measuring", total=todo, note="")

        def parts_of(model: Any, case: bench.Case) -> list[breakdown.Part]:
            found = breakdown.find_calls(model, bench.abstract_images(model, case))
            total = len(breakdown.programs(model, found))
            inner = progress.add_task("its parts", total=total, note="")

            def done(call: breakdown.Call) -> None:
                progress.update(inner, advance=1, note=f"{call.kind} {call.shapes}")

            measured = breakdown.measure(model, found, **how, done=done)
            progress.remove_task(inner)
            return measured

        for name, load, cases in subjects:
            progress.update(bar, note=name)
            model = load()
            for case in cases:
                title = f"{name}, {case}"
                progress.update(bar, note=title)
                try:
                    row = bench.measure(name, model, case, options.precision, **how)
                    rows.append(row)
                    if options.breakdown and case.what == bench.FORWARD:
                        parts[title] = parts_of(model, case)
                except (jax.errors.JaxRuntimeError, MemoryError) as error:
                    raise UserError(
                        f"{title} cannot be measured with this memory or device: "
                        f"{first_line(error)}"
                    ) from error
                progress.advance(bar)
    return rows, parts


# ------------------------------------------------------------------------ the options
def _subjects(options: argparse.Namespace) -> list[Subject]:
    """The networks and what is measured of each; all that can be checked first is."""
    from cir_jax import bench
    from cir_jax.models import abstract_model

    if options.model and options.weights:
        raise UserError("--model and --weights: give one of them")
    expected = "a side such as 128, or a height and width such as 96x160"
    given = [_numbers("--size", text, (1, 2), expected) for text in options.size or ()]
    sizes = [*dict.fromkeys((size[0], size[-1]) for size in given)]
    step = []
    if options.train:
        shape = _numbers("--train", options.train, (3,), f"it as {TRAINED}")
        step.append(bench.Case(bench.STEP, *shape))

    def cases(name: str, model: Any) -> list[bench.Case]:
        side = SIDE if model.scale == 1 else ENLARGED_SIDE
        forwards = [
            bench.Case(bench.FORWARD, options.batch, *size)
            for size in sizes or [(side, side)]
        ]
        for case in (*forwards, *step):
            bench.check_fits(name, model, case)
        return [*forwards, *step]

    if options.weights:
        name, model = bench.trained_model(options.weights, options.precision)
        return [Subject(name, lambda: model, cases(name, model))]
    names = dict.fromkeys(options.model or DEFAULT_MODELS)
    return [
        Subject(
            name,
            lambda name=name: bench.random_model(name, options.precision),
            cases(name, abstract_model(bench.config_of(name))),
        )
        for name in names
    ]


def _numbers(
    flag: str, text: str, counts: Sequence[int], expected: str
) -> tuple[int, ...]:
    """The numbers of such as 96x160, of which there may be so many."""
    parts = text.split("x")
    fit = all(re.fullmatch("0*[1-9][0-9]*", part) for part in parts)
    if not fit or len(parts) not in counts:
        raise UserError(f"{flag} {text}: give {expected}, of numbers above 0")
    return tuple(map(int, parts))


def _environment(device: Any) -> dict[str, Any]:
    """Versions, command and machine; of the device that was measured."""
    from cir_jax.run_info import run_info

    return run_info() | {
        "device": device.device_kind,
        "cpus": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", "").strip(),
    }


# ------------------------------------------------------------------------ the tables
def report(
    rows: Sequence["bench.Row"],
    parts: Mapping[str, Sequence["breakdown.Part"]],
    environment: Mapping[str, Any],
    repeats: int,
    earlier: Mapping["bench.Key", "bench.Earlier"] | None = None,
    compared: Path | None = None,
) -> str:
    """All that is printed.

    Args:
        rows: what was measured.
        parts: of forwards, by their titles.
        environment: versions and machine.
        repeats: calls of each row.
        earlier: what an earlier run measured.
        compared: the file that this is from.
    """
    from cir_jax import bench
    from cir_jax.hardware import count

    slowest = min(row.slowest_rate for row in rows)
    fastest = max(row.rate for row in rows)
    flags = environment["xla_flags"]
    lines = [
        _table([_columns(row, rows, earlier) for row in rows]),
        *_alone(rows, earlier, compared),
        "",
        f"jax {environment['packages']['jax']}, {environment['device']}, "
        f"{environment['cpus']} CPUs" + (f", XLA_FLAGS={flags}" if flags else ""),
        f"matrix product of {bench.SIDE} x {bench.SIDE}: {count(slowest, 'FLOP/s')} to "
        f"{count(fastest, 'FLOP/s')} in the course of it",
        "",
        "FLOP: two a multiply-add of products and convolutions, nothing elementwise; "
        f"a training step's are {bench.STEP_FACTOR} times the forward's.",
        "Floor: what these take at the rate of the fastest matrix product between the "
        f"row's {repeats} calls; ratio: median / floor; spread: fastest to slowest.",
        "Temp: bytes of the program beside arguments and results, peak with them, "
        "parameters too; compile: tracing, lowering and compiling, nothing cached.",
    ]
    if any(row.utilisation is not None for row in rows):
        lines.append(
            "Memory floor: bytes that the program accesses, as XLA counts, at the "
            "bandwidth of the data sheet; MFU: share of its peak in half precision."
        )
    for title, each in parts.items():
        (whole,) = (row for row in rows if title == f"{row.model}, {row.case}")
        lines += ["", f"Parts of {title}:", "", *_breakdown(each, whole)]
    return "\n".join(lines)


def _columns(
    row: "bench.Row",
    rows: Sequence["bench.Row"],
    earlier: Mapping["bench.Key", "bench.Earlier"] | None,
) -> dict[str, str]:
    """What the table shows of a row, by the names of the columns."""
    columns = {
        "model": row.model,
        "what": row.what,
        "size": f"{row.batch}x{row.height}x{row.width}",
        "type": row.dtype,
        "GFLOP": _digits(row.flops / 1e9),
        "median ms": _digits(1e3 * row.seconds),
        "spread ms": f"{_digits(1e3 * row.fastest)} to {_digits(1e3 * row.slowest)}",
        "compile s": f"{row.compile_seconds:.1f}",
        "temp MB": _digits(row.temporary / 1e6),
        "peak MB": _digits(row.peak / 1e6),
        "product GFLOP/s": _digits(row.rate / 1e9),
        "floor ms": _digits(1e3 * row.floor),
        "ratio": f"{row.ratio:.2f}",
    }
    if any(each.bandwidth_floor is not None for each in rows):
        known = row.bandwidth_floor is not None
        columns["memory floor ms"] = _digits(1e3 * row.bandwidth_floor) if known else ""
    if any(each.utilisation is not None for each in rows):
        known = row.utilisation is not None
        columns["MFU"] = f"{row.utilisation:.1%}" if known else ""
    if earlier is not None:
        old = earlier.get(row.key)
        columns["old ratio"] = f"{old.ratio:.2f}" if old else ""
        columns["speed-up"] = f"{old.ratio / row.ratio:.2f}" if old else ""
        columns["temp MB old -> new"] = (
            f"{_digits(old.temporary / 1e6)} -> {columns['temp MB']}" if old else ""
        )
    return columns


def _alone(
    rows: Sequence["bench.Row"],
    earlier: Mapping["bench.Key", "bench.Earlier"] | None,
    compared: Path | None,
) -> list[str]:
    """Lines that name the rows which only one of two runs has."""
    if earlier is None:
        return []
    new = [row.key for row in rows]
    missing = [f"not in {compared}: {_words(key)}" for key in new if key not in earlier]
    left = [f"only in {compared}: {_words(key)}" for key in earlier if key not in new]
    lines = [
        "Speed-up: old ratio / ratio, so that a slower or faster machine cancels out.",
        *missing,
        *left,
    ]
    return ["", *lines]


def _words(key: "bench.Key") -> str:
    model, what, batch, height, width, dtype = key
    return f"{model}, {what} {batch}x{height}x{width}, {dtype}"


def _breakdown(parts: Sequence["breakdown.Part"], whole: "bench.Row") -> list[str]:
    """The table of a forward's parts, and what to think of their sum."""
    table = []
    for part in parts:
        table.append(_part_columns(part.kind, part, whole))
        table += [_part_columns(f"- {each.kind}", each, whole) for each in part.inside]
    total = sum(part.seconds for part in parts)
    return [
        _table(table),
        "",
        f"Together {_digits(1e3 * total)} ms, the whole forward takes "
        f"{_digits(1e3 * whole.seconds)} ms: parts alone find other caches and fuse "
        "otherwise.",
        "A dash: inside the blocks above it, in whose row its time is too.",
    ]


def _part_columns(
    name: str, part: "breakdown.Part", whole: "bench.Row"
) -> dict[str, str]:
    return {
        "part": name,
        "in -> out": part.shapes,
        "count": str(part.count),
        "ms each": _digits(1e3 * part.seconds / part.count),
        "ms": _digits(1e3 * part.seconds),
        "share": f"{part.seconds / whole.seconds:.1%}",
        "ratio": f"{part.seconds / part.floor:.2f}" if part.floor else "",
        "temp MB": _digits(part.temporary / 1e6),
    }


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    from cir_jax.tables import markdown

    return markdown([list(rows[0]), *(list(row.values()) for row in rows)])


def _digits(number: float) -> str:
    """A number in four digits, or as many as stand before the point."""
    if not number:
        return "0"
    behind = max(0, 3 - math.floor(math.log10(abs(number))))
    return f"{number:.{behind}f}"
