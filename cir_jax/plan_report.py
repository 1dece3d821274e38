"""Tables of what compiled programs take, move and compute, and of what that makes."""

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from importlib import metadata

import jax

from cir_jax import collectives, estimate, hardware, hlo_costs
from cir_jax.hardware import count
from cir_jax.hlo_costs import Operation
from cir_jax.tables import markdown

CHIP, CHIPS = "TPU v5 lite", (8, 64, 256)
"""What compiled steps are extrapolated to; so many can be one slice."""
SOURCES, ARRAYS = 15, 10
"""Rows of the lists of what moves arrays, and of padded arrays."""
LEGEND = """\
Memory: arguments and temporaries, less the arguments that results take the place of.
Accessed: bytes as XLA tells them of the compiled program. All else is counted in its
text, of one device: what each operation reads and writes, in whole tiles, as if each
did so once, and what of that pads the tiles; main memory is what of it is in HBM and
not on the chip. FLOP: of convolutions and dots as compiled, two for each product; per
byte moved. "At least" where a loop does not tell how often it runs: it counts once. The
compiler's estimate: the cycles of all operations, one after another, at the clock that
makes the peak; of some that move arrays it has none, or a round 100 cycles."""


# ------------------------------------------------------------------------ training
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


def report(plans: Sequence[Plan], failures: Sequence[str] = ()) -> str:
    """What was compiled, and what that would be at best on other numbers of chips."""
    names, places = ([getattr(p, name) for p in plans] for name in ("config", "where"))
    first = {
        "config": names,
        "devices": places,
        "mesh": [" x ".join(map(str, plan.mesh.values())) for plan in plans],
        "batch": [f"{plan.batch} (config: {plan.note})" for plan in plans],
        "memory of a device": [memory(plan.memory, plan.temporary) for plan in plans],
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
Compiled, not run ({versions()}): what a training step takes.

{table(first)}
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

{table(second)}"""


def _sizes(found: collectives.Collectives) -> str:
    sizes = ", ".join(f"{kind} {count(n, 'B')}" for kind, n in found.sizes.items())
    return ("" if found.exact else "at least ") + (sizes or "none")


def _at_best(plan: Plan, chips: int) -> str:
    seconds, share = plan.at_best(chips)
    images = chips * plan.batch / plan.devices / seconds
    return f"{1000 * seconds:.3g} ms, {count(images)}/s, {share:.1%}"


# ------------------------------------------------------------------------ programs
@dataclasses.dataclass(frozen=True)
class Footprint:
    """A compiled program.

    Attributes:
        name: of the config or network.
        what: it does, in words, such as "forward, 1 x 128x128".
        where: the devices, in words.
        memory: bytes of a device.
        temporary: bytes of these that are neither arguments nor results.
        accessed: bytes, as XLA tells them; 0 where it does not.
        operations: of a device.
        clock: cycles/s of the device; infinite where it is not known.
    """

    name: str
    what: str
    where: str
    memory: int
    temporary: int
    accessed: float
    operations: Sequence[Operation]
    clock: float


def footprint(
    name: str,
    what: str,
    where: str,
    program: jax.stages.Compiled,
    text: str,
    device: jax.Device,
) -> Footprint:
    """Reads what there is to know of a compiled program.

    Args:
        name: see `Footprint`.
        what: see `Footprint`.
        where: see `Footprint`.
        program: the compiled one.
        text: of the program.
        device: one of those that it is for.
    """
    memory, costs = program.memory_analysis(), program.cost_analysis()
    return Footprint(
        name,
        what,
        where,
        estimate.memory_needed(memory),
        memory.temp_size_in_bytes,
        (costs or {}).get("bytes accessed", 0.0),
        hlo_costs.operations(text),
        hardware.CLOCK.get(device.device_kind, math.inf),
    )


def operations_report(
    programs: Sequence[Footprint],
    failures: Sequence[str] = (),
    operations: bool = False,
) -> str:
    """The programs one a row, and then each by its operations if these are wanted.

    Args:
        programs: what was compiled.
        failures: what was not, in words.
        operations: whether to list them.
    """
    failed = "".join(f"\nNot compiled: {failure}\n" for failure in failures)
    head = f"Compiled, not run ({versions()}): what programs take and move."
    parts = [f"{head}\n\n{_overview(programs)}\n{failed}\n{LEGEND}"]
    if operations:
        parts += map(_details, programs)
    return "\n\n".join(parts)


def _overview(programs: Sequence[Footprint]) -> str:
    totals = [hlo_costs.total(p.operations) for p in programs]
    least = ["" if t.exact else "at least " for t in totals]
    return table(
        {
            "program": [p.name for p in programs],
            "what": [p.what for p in programs],
            "devices": [p.where for p in programs],
            "memory": [memory(p.memory, p.temporary) for p in programs],
            "accessed": [
                count(p.accessed, "B") if p.accessed else "" for p in programs
            ],
            "moved": [
                f"{words}{count(t.moved, 'B')}, {t.padding:.0%} padding"
                for words, t in zip(least, totals, strict=True)
            ],
            "main memory": [count(t.main, "B") for t in totals],
            "FLOP": [
                words + count(t.flops) for words, t in zip(least, totals, strict=True)
            ],
            "FLOP/B": [f"{t.intensity:.3g}" for t in totals],
            "compiler's estimate": [
                _milliseconds(t.cycles, p.clock)
                for t, p in zip(totals, programs, strict=True)
            ],
        }
    )


def _details(program: Footprint) -> str:
    """One program by kind of operation, by what moves arrays, and by arrays."""
    title = f"{program.name}, {program.what}, {program.where}"
    kinds = hlo_costs.by_kind(program.operations)
    by_kind = _totals(kinds, ["operations of kind"], program.clock)
    movers = hlo_costs.movers(program.operations)
    shown = dict(list(movers.items())[:SOURCES])
    left = sum(t.moved for t in movers.values()) - sum(t.moved for t in shown.values())
    by_source = _totals(shown, ["moved by", "source"], program.clock)
    padded = list(hlo_costs.padded_arrays(program.operations).items())[:ARRAYS]
    by_array = table(
        {
            "array": [str(a) for a, _ in padded],
            "read or written": [f"{n} times" for _, n in padded],
            "bytes": [count(n * a.size, "B") for a, n in padded],
            "in tiles": [count(n * a.padded, "B") for a, n in padded],
        }
    )
    more = f"\n{len(movers) - len(shown)} more sources: {count(left, 'B')}."
    return f"""\
{title}, by kind:

{by_kind}

{title}, what moves arrays about, and the operation and function it is of:

{by_source}{more if len(movers) > len(shown) else ""}

{title}, arrays with most padding (in brackets the side that lies along the lanes):

{by_array}"""


def _totals(
    totals: Mapping[str | tuple[str, ...], hlo_costs.Total],
    names: Sequence[str],
    clock: float,
) -> str:
    rows = list(totals.values())
    keys = [key if isinstance(key, tuple) else (key,) for key in totals]
    products = {
        "FLOP": [count(t.flops) for t in rows],
        "FLOP/B": [f"{t.intensity:.3g}" for t in rows],
    }
    return table(
        {name: [key[n] for key in keys] for n, name in enumerate(names)}
        | {
            "number": [str(t.operations) for t in rows],
            "read": [count(t.read, "B") for t in rows],
            "written": [count(t.written, "B") for t in rows],
            "padding": [f"{t.padding:.0%}" for t in rows],
            "main memory": [count(t.main, "B") for t in rows],
        }
        | (products if any(t.flops for t in rows) else {})
        | {"estimate": [_milliseconds(t.cycles, clock) for t in rows]}
    )


def _milliseconds(cycles: int, clock: float) -> str:
    return f"{1000 * cycles / clock:.3g} ms" if cycles / clock else ""


# ------------------------------------------------------------------------ cells
def memory(needed: int, temporary: int) -> str:
    """What a program takes of a device, in words."""
    return f"{count(needed, 'B')}, {count(temporary, 'B')} temporary"


def table(columns: Mapping[str, Sequence[str]]) -> str:
    """Columns under their names."""
    return markdown([list(columns), *zip(*columns.values(), strict=True)])


def versions() -> str:
    """Of what compiled, and the day."""
    today = datetime.date.today().isoformat()
    try:
        return f"jax {jax.__version__}, libtpu {metadata.version('libtpu')}, {today}"
    except metadata.PackageNotFoundError:
        return f"jax {jax.__version__}, {today}"
