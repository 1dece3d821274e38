"""Speed and memory of forwards and training steps, beside what a device could do.

A network's floor is the time that its products and convolutions alone would take at the
rate of one large matrix product on the same device. That product is measured between
the calls, because machines that are shared or get warm change their speed.
"""

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import UInt8
from ml_collections import ConfigDict

from cir_jax import codecs, hardware, image_io, optimizers, parallel, photos, weights
from cir_jax.errors import UserError
from cir_jax.estimate import memory_needed
from cir_jax.flops import model_flops
from cir_jax.losses import parse_loss
from cir_jax.models import DTYPES, build_model
from cir_jax.models.layers import RestorationModel
from cir_jax.models.pooling import RecordingPool
from cir_jax.objectives import Restoration
from cir_jax.resize import downscale
from cir_jax.restore import BATCH_AXES
from cir_jax.train_step import initial_state, jit_step

FORWARD, STEP = "forward", "training step"
SIDE = 2048
"""Of the matrices whose product is the measure."""
CHAIN = 64
"""Products behind one another in a program on an accelerator, which does one in less
time than it takes to start a program; on a CPU it is one."""
QUALITY = 10
"""Of the JPEG that networks get, as it is what they are for."""
STEP_FACTOR = 3
"""FLOPs of a training step in those of a forward, as usual: the gradients of the inputs
and of the parameters each take as many once more."""
TRAINING = {
    "ema_decay": 0.999,
    "accumulate": 1,
    "rematerialise": "none",
    "optimizer": {
        "name": "adamw",
        "learning_rate": 2e-4,
        "final_learning_rate": 1e-6,
        "warmup_steps": 0,
        "decay": "cosine",
        "decay_at": (),
        "decay_factor": 1.0,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 1e-4,
        "clip_norm": 0.0,
    },
}
"""What the config of the published PromptCIR has."""

Key = tuple[str, str, int, int, int, str]
"""Model, what, batch, height, width and type."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: FORWARD or STEP, of so many images of a size, in pixels."""

    what: str
    batch: int
    height: int
    width: int

    def __str__(self):
        return f"{self.what} {self.batch}x{self.height}x{self.width}"


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long calls of a program took, and products beside them.

    Attributes:
        seconds: of each call.
        rates: FLOP/s of each product.
    """

    seconds: Sequence[float]
    rates: Sequence[float]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """FLOP/s of the fastest product."""
        return max(self.rates)


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one case.

    Attributes:
        model: name and variant, or what the weights file says.
        dtype: type that the network computes in.
        flops: of the network's products and convolutions, see flops.py.
        seconds: the median of the calls.
        fastest: seconds of the fastest call.
        slowest: and of the slowest.
        compile_seconds: tracing, lowering and compiling.
        temporary: bytes of the program that are neither arguments nor results.
        peak: bytes of the program, arguments (parameters among them) and results too.
        rate: FLOP/s of the fastest of the matrix products between the calls.
        slowest_rate: and of the slowest.
        accessed: bytes that the program reads and writes, as XLA counts them; None
            where it does not.
        bandwidth_floor: seconds that this takes at the bandwidth of the device's memory
            at least; None where that is not known.
        utilisation: share of the device's peak that `flops` come to (MFU); None where
            that is not known.
    """

    model: str
    what: str
    batch: int
    height: int
    width: int
    dtype: str
    flops: int
    seconds: float
    fastest: float
    slowest: float
    compile_seconds: float
    temporary: int
    peak: int
    rate: float
    slowest_rate: float
    accessed: float | None
    bandwidth_floor: float | None
    utilisation: float | None

    @property
    def case(self) -> Case:
        """What was measured."""
        return Case(self.what, self.batch, self.height, self.width)

    @property
    def key(self) -> Key:
        """What tells rows apart that are of different things."""
        return _key(dataclasses.asdict(self))

    @property
    def floor(self) -> float:
        """Seconds that the FLOPs take at the products' rate."""
        return self.flops / self.rate

    @property
    def ratio(self) -> float:
        """How many times as long as the floor it takes."""
        return self.seconds / self.floor

    def to_json(self) -> dict[str, Any]:
        """The attributes, and what follows from them."""
        return dataclasses.asdict(self) | {"floor": self.floor, "ratio": self.ratio}


# ------------------------------------------------------------------------ what is run
def random_model(name: str, precision: str) -> RestorationModel:
    """A network of random parameters, always the same ones.

    Args:
        name: of the network, and after a colon its variant.
        precision: one of `models.DTYPES`.

    Raises:
        UserError: there is no such network or variant.
    """
    return build_model(config_of(name), nnx.Rngs(0), dtype=DTYPES[precision])


def config_of(name: str) -> dict[str, str]:
    """The config of a network that is named as in `random_model`."""
    name, colon, variant = name.partition(":")
    return {"name": name} | ({"variant": variant} if colon else {})


def trained_model(name: str, precision: str) -> tuple[str, RestorationModel]:
    """The network of a weights file and what to call it; see `weights.load`."""
    model = weights.load(name, dtype=DTYPES[precision])
    return weights.title(name), model


def check_fits(name: str, model: RestorationModel, case: Case) -> None:
    """Refuses a size that a network does not take.

    Raises:
        UserError: names both.
    """
    if case.height % model.multiple or case.width % model.multiple:
        raise UserError(
            f"{name} takes images whose sides are multiples of {model.multiple}, not "
            f"{case.height}x{case.width}: give such a size"
        )


def photographs(count: int, height: int, width: int) -> UInt8[np.ndarray, "n h w 3"]:
    """Crops of the photographs that ship, always the same ones; mirrored if large."""
    paths = image_io.find_images(photos.folder("validation"))
    images = [image_io.read_rgb(path) for path in paths]
    crops = []
    for i in range(count):
        again, number = divmod(i, len(images))
        image = np.roll(images[number], -16 * again, axis=(0, 1))
        missing = [
            (0, max(0, wanted - side))
            for side, wanted in zip(image.shape, (height, width), strict=False)
        ]
        image = np.pad(image, [*missing, (0, 0)], mode="symmetric")
        crops.append(image[:height, :width])
    return np.stack(crops)


def _compressed(images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h w 3"]:
    jpeg = codecs.get_codec("jpeg")
    return np.stack([jpeg.decode(jpeg.encode(image, QUALITY)) for image in images])


def forward(model: RestorationModel) -> tuple[Callable, tuple[Any, Any]]:
    """The pure function that `Restorer` compiles for images in one piece.

    Returns:
        The function, and its arguments before the images: the parameters, and what the
        network is told of all images.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    told: dict[str, np.ndarray] = {}
    if model.known_codecs:
        told["codec"] = np.zeros(1, np.int32)
    if model.semantic_dim:
        told["semantics"] = np.zeros((4, 1, model.semantic_dim), np.float32)

    def apply(params, told, images):
        model = nnx.merge(graphdef, params)
        known = {
            name: jnp.repeat(value, len(images), axis=BATCH_AXES[name])
            for name, value in told.items()
        }
        pool = RecordingPool()
        pools = {"pool": pool} if model.pools else {}
        return model(images, **known, **pools).astype(jnp.float32), pool.means

    return apply, (nnx.to_pure_dict(params), told)


def abstract_images(model: RestorationModel, case: Case) -> jax.ShapeDtypeStruct:
    """The shape and type of a case's images."""
    shape = (case.batch, case.height, case.width, model.channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _ready_forward(
    model: RestorationModel, case: Case, device: jax.Device
) -> tuple[jax.stages.Compiled, Callable[[], Any], float]:
    """A forward's program, what calls it, and the seconds it took to compile."""
    apply, before = forward(model)
    images = _compressed(photographs(case.batch, case.height, case.width))
    images = np.float32(images[..., : model.channels]) / np.float32(255)
    arguments = jax.device_put((*before, images), device)
    start = time.perf_counter()
    program = jax.jit(apply).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return program, lambda: program(*arguments), seconds


def _ready_step(
    model: RestorationModel, case: Case, device: jax.Device
) -> tuple[jax.stages.Compiled, Callable[[], Any], float]:
    """The same of a training step, whose calls go on from each other's state."""
    config = ConfigDict(TRAINING | {"batch_size": case.batch})
    objective = Restoration(parse_loss("l1"))
    turns = (optimizers.Turn(optimizers.optimizer(config.optimizer, 1_000_000)),)
    mesh = parallel.make_mesh(1, [device])
    graphdef, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    clean = photographs(case.batch, model.scale * case.height, model.scale * case.width)
    degraded = np.stack([downscale(image, model.scale) for image in clean])
    batch = {"clean": clean, "degraded": _compressed(degraded)}
    if model.known_codecs:
        batch["codec"] = np.zeros(case.batch, np.int32)
    batch = jax.device_put(batch, parallel.batch_sharding(mesh, case.batch))
    state = initial_state(params, turns, mesh, objective.memory)
    start = time.perf_counter()
    step = jit_step(config, graphdef, objective, turns, mesh, state)
    program = step.lower(state, batch, {}).compile()
    seconds = time.perf_counter() - start
    held = [state]

    def call() -> Any:
        held[0], metrics = program(held[0], batch, {})  # which takes its memory
        return held[0], metrics

    return program, call, seconds


# ------------------------------------------------------------------------ measuring
class Product:
    """The measure: a product of two matrices of SIDE x SIDE.

    Args:
        device: where it is computed.
        precision: of the network that it is beside; on a CPU, which has no fast half
            precision, it is float32 always.
    """

    def __init__(self, device: jax.Device, precision: str):
        on_cpu = device.platform == "cpu"
        self._count = 1 if on_cpu else CHAIN
        dtype = jnp.float32 if on_cpu else DTYPES[precision]
        random = np.random.default_rng(0)
        # Of this size products of products stay as large as the factors.
        values = random.standard_normal((2, SIDE, SIDE), np.float32) / SIDE**0.5
        x, y = jax.device_put(values, device).astype(dtype)

        def run(x, y):
            return jax.lax.fori_loop(0, self._count, lambda _, z: z @ y, x)

        program = jax.jit(run).lower(x, y).compile()
        self._call = lambda: program(x, y)
        self._call()

    def rate(self) -> float:
        """FLOP/s, measured now."""
        return 2 * SIDE**3 * self._count / _seconds(self._call)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def timed(
    call: Callable[[], Any], product: Product, repeats: int, *, between: bool = True
) -> Timing:
    """Times calls, after one that does not count.

    Args:
        call: starts what is timed.
        product: what is measured before the first call and after the last.
        repeats: how many calls.
        between: whether the product is measured between the calls too.
    """
    jax.block_until_ready(call())
    seconds, rates = [], [product.rate()]
    for number in range(1, repeats + 1):
        seconds.append(_seconds(call))
        if between or number == repeats:
            rates.append(product.rate())
    return Timing(seconds, rates)


def measure(
    name: str,
    model: RestorationModel,
    case: Case,
    precision: str,
    *,
    device: jax.Device,
    product: Product,
    repeats: int,
) -> Row:
    """Compiles one case and times it.

    Args:
        name: what tables call the network.
        model: it computes in `precision`.
        case: what to measure; see `check_fits`.
        precision: the name of a type.
        device: where.
        product: on the same device.
        repeats: timed calls.
    """
    apply, before = forward(model)
    flops = model_flops(apply, *before, abstract_images(model, case))
    flops *= STEP_FACTOR if case.what == STEP else 1
    ready = _ready_step if case.what == STEP else _ready_forward
    with jax.default_device(device):
        program, call, compile_seconds = ready(model, case, device)
        timing = timed(call, product, repeats)
    memory = program.memory_analysis()
    accessed = _accessed(program)
    bandwidth, peak = hardware.bandwidth(device), hardware.peak(device)
    return Row(
        name,
        **dataclasses.asdict(case),
        dtype=precision,
        flops=flops,
        seconds=timing.median,
        fastest=min(timing.seconds),
        slowest=max(timing.seconds),
        compile_seconds=compile_seconds,
        temporary=memory.temp_size_in_bytes,
        peak=memory_needed(memory),
        rate=timing.rate,
        slowest_rate=min(timing.rates),
        accessed=accessed,
        bandwidth_floor=accessed / bandwidth if accessed and bandwidth else None,
        utilisation=flops / timing.median / peak if peak else None,
    )


def _accessed(program: jax.stages.Compiled) -> float | None:
    costs = program.cost_analysis()
    if isinstance(costs, Sequence):
        costs = costs[0]
    return (costs or {}).get("bytes accessed")


@contextlib.contextmanager
def compiling_afresh() -> Iterator[None]:
    """Keeps JAX from taking programs from its cache on disk, so that times are true."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # which remembers whether it is used
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


# ------------------------------------------------------------------------ comparing
@dataclasses.dataclass(frozen=True)
class Earlier:
    """What comparing asks of a row of an earlier run."""

    ratio: float
    temporary: float


def _key(row: Mapping[str, Any]) -> Key:
    names = ("model", "what", "batch", "height", "width", "dtype")
    return tuple(row[name] for name in names)


def read_earlier(path: Path) -> dict[Key, Earlier]:
    """The rows of a file that `cir bench --json` wrote.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {
            _key(row): Earlier(float(row["ratio"]), float(row["temporary"]))
            for row in rows
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"--compare {path} is no file that cir bench --json wrote ({error!r}): "
            "give one"
        ) from error
