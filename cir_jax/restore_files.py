"""The folder job: restores image files, each whole or not at all, whatever happens."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from cir_jax import image_files, image_io, image_out, tiling
from cir_jax.errors import UserError, first_line
from cir_jax.identify import Identifier
from cir_jax.image_headers import read_header
from cir_jax.progress import progress_bar
from cir_jax.restore import Restorer, severity

AHEAD = 32_000_000
"""Pixels: a larger image is read, restored and written alone, to save memory."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How files are read and written; the defaults are the command's.

    Attributes:
        format: of the outputs, see `image_out.output_suffix`.
        quality: of lossy outputs, 1 to 100; the format's default when None.
        overwrite: write outputs that exist already again.
        max_pixels: refuse larger inputs.
        allow_truncated: restore what there is of files that break off.

    Raises:
        UserError: the quality is out of range.
    """

    format: str | None = None
    quality: int | None = None
    overwrite: bool = False
    max_pixels: int = image_files.MAX_PIXELS
    allow_truncated: bool = False

    def __post_init__(self):
        image_out.check_quality(self.quality)

    def skips(self, output: Path) -> bool:
        """Whether an output is left as it is."""
        there = os.path.lexists(output) and not os.path.isdir(output)  # never raise
        return there and not self.overwrite


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one input file.

    Attributes:
        input: the file.
        output: what it is restored to.
        status: "restored", "skipped" (the output was there) or "failed".
        reason: why it failed.
        width: of the input, pixels.
        height: of the input, pixels.
        severity: how much it was corrected, in levels, see `restore.severity`.
        tile: side of the tiles that it was cut into; None if it was not cut.
        seconds: of restoring, without reading and writing.
        identified: how it was compressed: what its header says, and the estimate from
            its pixels or the reason why there is none.
    """

    input: Path
    output: Path
    status: str
    reason: str | None = None
    width: int | None = None
    height: int | None = None
    severity: float | None = None
    tile: int | None = None
    seconds: float | None = None
    identified: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that are known."""
        fields = dataclasses.asdict(self)
        fields |= {"input": str(self.input), "output": str(self.output)}
        return {name: value for name, value in fields.items() if value is not None}


def plan(inputs: Sequence[Path], out: Path, format: str | None) -> dict[Path, Path]:
    """Every output and the input that it is made of; folders keep their tree.

    Args:
        inputs: image files, and folders that are searched through.
        out: the output folder.
        format: of the outputs, see `image_out.output_suffix`.

    Raises:
        UserError: an input does not exist, a folder holds no image, the output is a
            file, lies inside an input folder or would overwrite an input, two inputs
            would share an output, or there is no such format.
    """
    if out.is_file() or (out.suffix.lower() in image_io.SUFFIXES and not out.is_dir()):
        raise UserError(
            f"the output {out} would be a file: give a folder, in which the restored "
            "images have the inputs' names"
        )
    jobs: dict[Path, Path] = {}
    for start in inputs:
        if start.is_dir() and out.resolve().is_relative_to(start.resolve()):
            raise UserError(
                f"the output folder {out} lies inside the input folder {start}: give "
                "one outside"
            )
        for source, name in image_io.find_inputs(start).items():
            suffix = image_out.output_suffix(format, source.suffix)
            target = out / name.with_suffix(suffix)
            if target in jobs:
                raise UserError(
                    f"{jobs[target]} and {source} would both be written to {target}: "
                    "restore them into different folders, or give --format same"
                )
            jobs[target] = source
    sources = {os.path.realpath(source): source for source in jobs.values()}
    for target, source in jobs.items():
        if lost := sources.get(os.path.realpath(target)):
            raise UserError(
                f"{lost} would be overwritten by what {source} is restored to: give "
                "another output folder"
            )
    return jobs


def restore_files(
    restorer: Restorer,
    jobs: Mapping[Path, Path],
    options: Options,
    console: Console,
    report: Callable[[Outcome], None],
    identifier: Identifier | None = None,
) -> None:
    """Restores files; one bad file does not stop the others.

    While one image is restored, the next is read and the last is written. Outputs that
    exist are left alone, so an interrupted job goes on where it stopped. Ctrl-C lets
    the file that is being written finish.

    Args:
        restorer: what restores them.
        jobs: inputs by output, see `plan`.
        options: how they are read and written.
        console: where the tile and the progress are shown.
        report: is told what became of each file, as soon as it is known.
        identifier: tells how each image was compressed, if wanted.
    """
    todo = {}
    for target, source in jobs.items():
        if options.skips(target):
            report(Outcome(source, target, "skipped"))
        else:
            todo[target] = source
    sizes = {}
    for target, source in todo.items():
        try:
            sizes[target] = image_io.read_size(source, max_pixels=options.max_pixels)
        except UserError as error:
            report(Outcome(source, target, "failed", str(error)))
    if not sizes:
        return
    side = max(map(max, sizes.values()))  # square: pictures may be stored turned
    grid = restorer.common_grid(side, side)
    console.print(f"tiles: {grid}", highlight=False)
    with _progress(console, len(sizes)) as advance:
        for outcome in _outcomes(restorer, grid, sizes, todo, options, identifier):
            report(outcome)
            advance(outcome)


def _outcomes(
    restorer: Restorer,
    grid: tiling.Grid,
    sizes: Mapping[Path, tuple[int, int]],
    todo: Mapping[Path, Path],
    options: Options,
    identifier: Identifier | None,
) -> Iterator[Outcome]:
    """Reads, restores and writes, all three at a time."""
    with (
        contextlib.closing(_pictures(sizes, todo, options)) as pictures,
        ThreadPoolExecutor(1) as writer,
    ):
        writing: Future[Outcome] | None = None
        for target, reading in pictures:
            found = Outcome(todo[target], target, "failed")
            try:
                picture = reading.result()
                if identifier:
                    facts = _identified(identifier, todo[target], picture, options)
                    found = dataclasses.replace(found, identified=facts)
                image_out.check_format(target, picture, options.format)
                start = time.perf_counter()
                restored, grid = _restored(restorer, picture.pixels, grid)
            except (UserError, jax.errors.JaxRuntimeError, MemoryError) as error:
                yield dataclasses.replace(found, reason=_reason(todo[target], error))
                continue
            height, width, _ = picture.pixels.shape
            found = dataclasses.replace(
                found,
                width=width,
                height=height,
                severity=round(severity(picture.pixels, restored), 3),
                tile=grid.side(height, width),
                seconds=round(time.perf_counter() - start, 3),
            )
            # The pixels' memory is free while this is written, and their shape stays.
            no_pixels = np.broadcast_to(
                picture.pixels.dtype.type(0), (height, width, 3)
            )
            like = dataclasses.replace(picture, pixels=no_pixels)
            del picture, reading
            if writing:
                yield writing.result()
            writing = writer.submit(_written, found, restored, like, options)
            del restored
            if height * width > AHEAD:
                writing.exception()  # waits
        if writing:
            yield writing.result()


def _pictures(
    sizes: Mapping[Path, tuple[int, int]], todo: Mapping[Path, Path], options: Options
) -> Iterator[tuple[Path, Future[image_io.Picture]]]:
    """The pictures by output; the next one is read while one is used, if both fit."""
    with ThreadPoolExecutor(1) as reader:

        def read(target: Path) -> Future[image_io.Picture]:
            return reader.submit(
                image_io.read_picture,
                todo[target],
                max_pixels=options.max_pixels,
                allow_truncated=options.allow_truncated,
            )

        targets = list(sizes)
        reading = [read(targets[0])]
        for target, following in zip(targets, [*targets[1:], None], strict=True):
            pair = [sizes[name] for name in (target, following) if name]
            if following and sum(height * width for height, width in pair) <= AHEAD:
                reading.append(read(following))
            yield target, reading.pop(0)  # kept nowhere, so that its memory goes
            if following and not reading:
                reading.append(read(following))


def _identified(
    identifier: Identifier, source: Path, picture: image_io.Picture, options: Options
) -> dict[str, Any]:
    """How an image was compressed; what goes wrong stops no restoration."""
    facts: dict[str, Any] = {}
    try:
        facts |= read_header(source, max_pixels=options.max_pixels).to_json()
        facts["estimate"] = identifier(picture.pixels).to_json()
    except (UserError, jax.errors.JaxRuntimeError, MemoryError) as error:
        facts["reason"] = _reason(source, error, "identified")
    return facts


def _restored(
    restorer: Restorer, pixels: Any, grid: tiling.Grid
) -> tuple[Any, tiling.Grid]:
    """The restored pixels and the grid, a smaller one where memory runs out."""
    while True:
        try:
            return restorer(pixels, grid), grid
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or not restorer.shrink():
                raise
            grid = restorer.common_grid(grid.height, grid.width)


def _written(
    found: Outcome, restored: Any, like: image_io.Picture, options: Options
) -> Outcome:
    """Writes a restored picture; what came of it."""
    try:
        image_out.write_picture(
            found.output, restored, like, options.format, options.quality
        )
    except (UserError, MemoryError) as error:
        return dataclasses.replace(found, reason=_reason(found.input, error))
    return dataclasses.replace(found, status="restored")


def _reason(source: Path, error: Exception, done: str = "restored") -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"{source} cannot be {done} with this memory or device: {first_line(error)}"


@contextlib.contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[Outcome], None]]:
    """A progress bar over files, with images/s and MP/s; gives what advances it."""
    start, pixels, images = time.monotonic(), 0, 0
    with progress_bar(console) as bar:
        task = bar.add_task("restoring", total=total, note="")

        def advance(outcome: Outcome) -> None:
            nonlocal pixels, images
            if outcome.status == "restored":
                images += 1
                pixels += outcome.width * outcome.height
            seconds = time.monotonic() - start
            note = f"{images / seconds:.2f} images/s, {pixels / seconds / 1e6:.2f} MP/s"
            bar.update(task, advance=1, note=note)

        yield advance
