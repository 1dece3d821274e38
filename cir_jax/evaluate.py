"""Evaluation: clean images x compression x method -> scores with their protocol."""

import contextlib
import itertools
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from cir_jax import image_io, parallel
from cir_jax.benchmarks import find_benchmark
from cir_jax.compression import Compressed, Degradation, Noise
from cir_jax.downstream import Downstream, Scorer
from cir_jax.errors import UserError
from cir_jax.image_sets import Images, PairedFolder
from cir_jax.peers import Peer
from cir_jax.progress import progress_bar
from cir_jax.protocols import COLOUR, CSR, Metric, Protocol, get_protocol
from cir_jax.restore import Restorer
from cir_jax.scores import BICUBIC, NONE, Report, Score

Method = Restorer | Peer


class Place(NamedTuple):
    """Where an image is, and what is done to it."""

    set: str
    image: str
    index: int
    degradation: Degradation


def evaluate(
    methods: Mapping[str, Method],
    sets: Mapping[str, Images],
    compressions: Sequence[Degradation],
    protocol: str | None = None,
    provenance: Mapping[str, str] | None = None,
    scale: int | None = None,
    *,
    tell_codec: bool = False,
    further: Mapping[str, Metric] | None = None,
    scorers: Sequence[Scorer] = (),
    warnings: Sequence[str] = (),
    console: Console | None = None,
) -> Report:
    """Compresses, restores and measures every image of every set.

    Every device of every process takes its share of the images, each one whole, so
    that the numbers are the same whatever their count. Each process returns all scores.

    Args:
        methods: by name; the baseline is always measured too: the codec alone or, with
            a scale, bicubic upscaling of what it gives.
        sets: clean images by set name.
        compressions: what is done to each, but for those of a `PairedFolder`, whose
            degraded images are there already.
        protocol: a name in `protocols.PROTOCOLS`; when None the set's usual one if it
            is a known benchmark, or else "colour", with a scale "csr".
        provenance: further lines of the protocol, such as the weights' sha256.
        scale: by how much images are downscaled before they are compressed; the
            methods' when None.
        tell_codec: tell the restorers which codec it is; those that can be told.
        further: metrics beside the protocol's, by name.
        scorers: of whole rows' images as files, see `downstream`; in one process.
        warnings: what the report warns of.
        console: where the progress is shown, if anywhere.

    Raises:
        UserError: unknown protocol, restorers of different scales, none that can be
            told the codec, pairs at another scale than 1, a codec, a peer or a scorer
            fails, or there are scorers and several processes.
    """
    restorers = {name: m for name, m in methods.items() if isinstance(m, Restorer)}
    if tell_codec and not any(r.known_codecs for r in restorers.values()):
        raise UserError(
            "--tell-codec: the weights know no codecs, they find out themselves: leave "
            "it out"
        )
    if scorers and jax.process_count() > 1:
        raise UserError(
            f"--downstream wants one process, and there are {jax.process_count()}: run "
            "one, or leave it out"
        )
    scale = _common_scale(restorers, scale)
    baseline = NONE if scale == 1 else BICUBIC
    names = {name: protocol or usual_protocol(name, scale) for name in sets}
    protocols = {name: get_protocol(each) for name, each in names.items()}
    texts = {name: f"{each}: {protocols[name].text}" for name, each in names.items()}
    degradations = {
        name: degradations_of(images, compressions, scale)
        for name, images in sets.items()
    }
    parts = [
        [Place(set_name, image, index, each) for index, image in enumerate(images)]
        for set_name, images in sets.items()
        for each in degradations[set_name]
    ]
    if not scorers:  # no row has to be whole before the next begins
        parts = [[*itertools.chain.from_iterable(parts)]]
    encoders = {
        each.codec_name: each.version for some in degradations.values() for each in some
    }
    failed = _failing_peers(methods, sets, degradations, protocols, scale)
    replicas, scores = _replicas(methods), []

    def score(place: Place, methods: Mapping[str, Method]) -> list[Score]:
        """The scores of the baseline and every method on one image at one setting."""
        image, protocol = sets[place.set][place.image], protocols[place.set]
        each, found = place.degradation, []
        pair = each(image, scale, place.index, protocol)
        versions = {baseline: None} | _fit(methods, each, tell_codec, failed)
        for name, method in versions.items():
            pixels, seconds = pair.baseline, 0.0
            if method:
                pixels, seconds = restored(method, pair, scale)
            row = place.set, each.codec_name, each.quality_name, name
            downstream.add(row, place.image, pixels)
            values = protocol.measure(pair.clean, pixels, further or {})
            found.append(
                Score(row[0], place.image, *row[1:], values, pair.bpp, seconds)
            )
        return found

    with Downstream(scorers) as downstream:
        for name, images in sets.items():
            downstream.add_set(name, images, protocols[name], scale)
        with _progress(console, sum(map(len, parts))) as advance:
            for part in parts:
                scores += _shared_out(part, score, replicas, advance)
                downstream.score()
    return Report(
        {
            "protocol": _in_front(texts),
            "scale": scale,
            "encoder": _in_front(encoders),
            **_seeding(degradations, protocols),
            **_settings(restorers, tell_codec),
            **downstream.notes(),
            "images": ", ".join(f"{name} {len(each)}" for name, each in sets.items()),
            **(provenance or {}),
        },
        scores,
        names,
        encoders,
        baseline,
        [*warnings, *(f"left out of {codec}: {e}" for (_, codec), e in failed.items())],
        downstream.numbers,
    )


def usual_protocol(name: str, scale: int) -> str:
    """The protocol of a set by its name, where none is asked for."""
    benchmark = find_benchmark(name)
    if benchmark:
        return benchmark.protocol(scale)
    return COLOUR if scale == 1 else CSR


def degradations_of(
    images: Images, compressions: Sequence[Degradation], scale: int
) -> Sequence[Degradation]:
    """What is done to a set: what is asked for, unless its degraded images are given.

    Raises:
        UserError: they are given, and are to be smaller than the clean ones.
    """
    if not isinstance(images, PairedFolder):
        return compressions
    if scale != 1:
        raise UserError(
            f"degraded images ({images.degradation.codec_name}) are as large as the "
            f"clean ones, but the scale is {scale}: take weights of scale 1"
        )
    return [images.degradation]


def _seeding(
    degradations: Mapping[str, Sequence[Degradation]],
    protocols: Mapping[str, Protocol],
) -> dict[str, str]:
    """The line of the protocol about the seeds of noise, if there is any."""
    noisy = {
        name: protocols[name].seeding
        for name, some in degradations.items()
        if any(isinstance(each, Noise) for each in some)
    }
    return {"noise": _in_front(noisy)} if noisy else {}


def _in_front(texts: Mapping[str, str]) -> str:
    """The texts with their names in front; one alone where all are the same."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name}: {text}" for name, text in texts.items())


def _common_scale(restorers: Mapping[str, Restorer], scale: int | None) -> int:
    scales = {restorer.scale for restorer in restorers.values()} or {scale or 1}
    if len(scales | {scale or max(scales)}) > 1:
        found = ", ".join(f"{name} {r.scale}" for name, r in restorers.items())
        raise UserError(
            f"the weights are of different scales ({found}; --scale {scale}): evaluate "
            "those of one scale at a time"
        )
    (scale,) = scales
    return scale


def _settings(restorers: Mapping[str, Restorer], tell_codec: bool) -> dict[str, str]:
    """The lines of the protocol about how restorers were used."""
    settings = {name: restorer.settings for name, restorer in restorers.items()}
    told = [
        name
        for name, restorer in restorers.items()
        if (tell_codec and restorer.known_codecs) or restorer.codec is not None
    ]
    lines = dict.fromkeys(line for each in settings.values() for line in each)
    return {
        line: _in_front(
            {name: each[line] for name, each in settings.items() if line in each}
        )
        for line in lines
    } | ({"told the codec": ", ".join(told)} if told else {})


def _failing_peers(
    methods: Mapping[str, Method],
    sets: Mapping[str, Images],
    degradations: Mapping[str, Sequence[Degradation]],
    protocols: Mapping[str, Protocol],
    scale: int,
) -> dict[tuple[str, str], str]:
    """Why peers cannot restore what a codec gives, by the names of peer and codec.

    Tried on one image before any time is spent on the others: many programs take JPEG
    files alone.
    """
    peers = {name: m for name, m in methods.items() if isinstance(m, Peer)}
    reasons: dict[tuple[str, str], str] = {}
    if not peers:
        return reasons
    firsts: dict[str, tuple[str, Degradation]] = {}
    for set_name, some in degradations.items():
        for each in some:
            firsts.setdefault(each.codec_name, (set_name, each))
    for codec, (set_name, degradation) in firsts.items():
        image = next(iter(sets[set_name].values()))
        pair = degradation(image, scale, 0, protocols[set_name])
        for name, peer in peers.items():
            try:
                restored(peer, pair, scale)
            except UserError as error:
                reasons[name, codec] = str(error)
    return reasons


def _fit(
    methods: Mapping[str, Method],
    degradation: Degradation,
    tell_codec: bool,
    failed: Mapping[tuple[str, str], str],
) -> dict[str, Method]:
    """The methods for a codec: those that do not fail, told it if they can be."""
    fit = {}
    for name, method in methods.items():
        if (name, degradation.codec_name) in failed:
            continue
        can_be_told = isinstance(method, Restorer) and method.known_codecs
        if tell_codec and can_be_told:
            method = method.telling(degradation.kind)
        fit[name] = method
    return fit


def restored(
    method: Method, pair: Compressed, scale: int
) -> tuple[UInt8[np.ndarray, "h w c"], float]:
    """What a method makes of a compressed image, and its seconds without compiling.

    Of a grey image, networks for colour get three channels and theirs are averaged.
    """
    if isinstance(method, Peer):
        return method.restore(pair.bitstream, pair.suffix, pair.degraded, scale)
    image = pair.degraded
    averaged = image.shape[-1] < method.channels
    if averaged:
        image = np.float32(image.repeat(3, axis=-1)) / 255
    method.compile(*image.shape)
    start = time.perf_counter()
    result = method(image)
    if averaged:
        result = image_io.to_uint8(result.mean(axis=-1, keepdims=True))
    return result, time.perf_counter() - start


def _replicas(methods: Mapping[str, Method]) -> list[Mapping[str, Method]]:
    """The methods once for each device of this process."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return [methods]
    return [
        {
            name: method.on(device) if isinstance(method, Restorer) else method
            for name, method in methods.items()
        }
        for device in devices
    ]


def _shared_out(
    work: Sequence[Place],
    score: Callable[[Place, Mapping[str, Method]], list[Score]],
    replicas: Sequence[Mapping[str, Method]],
    advance: Callable[[], None],
) -> list[Score]:
    """The scores of all images, in their order, from all devices of all processes."""
    idle: queue.SimpleQueue[Mapping[str, Method]] = queue.SimpleQueue()
    for replica in replicas:
        idle.put(replica)

    def task(place: Place) -> list[Score]:
        replica = idle.get()
        try:
            return score(place, replica)
        finally:
            idle.put(replica)
            advance()

    mine = range(jax.process_index(), len(work), jax.process_count())
    with ThreadPoolExecutor(len(replicas)) as pool:
        futures = {number: pool.submit(task, work[number]) for number in mine}
        try:
            found = {
                str(number): [vars(score) for score in future.result()]
                for number, future in futures.items()
            }
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    everything: dict[str, list] = {}
    for part in parallel.gathered(found):
        everything |= part
    return [
        Score(**fields)
        for number in range(len(work))
        for fields in everything[str(number)]
    ]


@contextlib.contextmanager
def _progress(console: Console | None, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar over images; gives what advances it."""
    if console is None:
        yield lambda: None
        return
    start, done = time.monotonic(), 0
    with progress_bar(console) as bar:
        task = bar.add_task("evaluating", total=total, note="")

        def advance() -> None:
            nonlocal done
            done += 1
            note = f"{done / (time.monotonic() - start):.2f} images/s"
            bar.update(task, advance=1, note=note)

        yield advance
