"""What an evaluation looks like: before/after sheets, and rate-distortion plots."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cir_jax import compare, image_io, metrics, pictures
from cir_jax.compression import Compressed, Degradation, title
from cir_jax.errors import UserError
from cir_jax.evaluate import Images, Method, degradations_of, restored
from cir_jax.files import written_whole
from cir_jax.protocols import get_protocol
from cir_jax.restore import Restorer
from cir_jax.scores import NONE, Report

MOST_METHODS = compare.VERSIONS - 2
"""On a sheet, beside the original and the compressed image."""
STYLES = ("o-", "s--", "^:", "d-.", "v-", "x--")
"""Of a plot's lines, by method; their colour tells the codec."""


def before_after(
    restorers: Mapping[str, Restorer],
    images: Images,
    degradation: Degradation,
    *,
    window: int = 128,
    zoom: int = 2,
) -> UInt8[np.ndarray, "h w 3"]:
    """A sheet: per image the compressed, each restored and the clean window.

    The window is where the last method changed most, `window` pixels a side.
    """
    scale = max((restorer.scale for restorer in restorers.values()), default=1)
    rows = []
    for index, (name, image) in enumerate(images.items()):
        pair = degradation(image, scale, index)
        versions = {title(degradation): pair.baseline}
        versions |= {
            method: restorer(pair.degraded) for method, restorer in restorers.items()
        }
        change = pictures.difference(pair.baseline, [*versions.values()][-1])
        (place,) = pictures.most_changed([change], window)
        rows.append(
            [
                (f"{label}  {metrics.psnr(pair.clean, version):.2f} dB", version[place])
                for label, version in versions.items()
            ]
            + [(f"{Path(name).stem}, original", pair.clean[place])]
        )
    return pictures.sheet(rows, zoom)


def write_sheets(
    folder: Path,
    report: Report,
    methods: Mapping[str, Method],
    sets: Mapping[str, Images],
    compressions: Sequence[Degradation],
) -> list[Path]:
    """Writes compare sheets of the worst, the median and the best image.

    For each set and codec, at the codec's first quality; by the gain of the first
    method or, without one, the PSNR of the codec alone.

    Args:
        folder: where to; made if it does not exist.
        report: of an evaluation of the same methods, sets and compressions.
        methods: by name; the first four are shown.
        sets: clean images by set name.
        compressions: what was done to each whose degraded images were not given.

    Returns:
        The files, `SET-CODEC-QUALITY-worst.png` and so on.
    """
    written, scale = [], report.protocol["scale"]
    for name, images in sets.items():
        protocol = get_protocol(report.protocols[name])
        firsts: dict[str, Degradation] = {}
        for each in degradations_of(images, compressions, scale):
            firsts.setdefault(each.codec_name, each)
        for codec, degradation in firsts.items():
            scored = {score.method for score in report.scores if score.codec == codec}
            names = [method for method in methods if method in scored]
            shown = {method: methods[method] for method in names[:MOST_METHODS]}
            ranked = _ranked(report, name, degradation, next(iter(shown), None))
            places = {"worst": 0, "median": len(ranked) // 2, "best": -1}
            for place, rank in places.items():
                parts = name, codec, degradation.quality_name, place
                stem = "-".join(_safe(part) for part in parts if part is not None)
                path, image = folder / f"{stem}.png", ranked[rank]
                index = list(images).index(image)
                pair = degradation(images[image], scale, index, protocol)
                label = f"{Path(image).stem}, original"
                _write_sheet(path, label, pair, title(degradation), shown, report)
                written.append(path)
    return written


def _safe(part: str | int) -> str:
    """A part of a file name."""
    return "".join(c if c.isalnum() or c in "+., _" else "_" for c in str(part))


def _ranked(
    report: Report, name: str, degradation: Degradation, method: str | None
) -> list[str]:
    """The images of a set, from the smallest gain of a method to the largest."""
    psnr: dict[str, dict[str, float]] = {}
    wanted = name, degradation.codec_name, degradation.quality_name
    for score in report.scores:
        if (score.set, score.codec, score.quality) == wanted:
            psnr.setdefault(score.image, {})[score.method] = score.metrics["psnr"]

    def gain(image: str) -> float:
        start = psnr[image][report.baseline]
        return psnr[image][method] - start if method else start

    return sorted(psnr, key=gain)


def _write_sheet(
    path: Path,
    label: str,
    pair: Compressed,
    degraded: str,
    methods: Mapping[str, Method],
    report: Report,
) -> None:
    degraded += "" if report.baseline == NONE else f" {report.baseline}"
    versions = {label: pair.clean, degraded: pair.baseline}
    for name, method in methods.items():
        versions[name], _ = restored(method, pair, report.protocol["scale"])
    with tempfile.TemporaryDirectory() as temporary:
        files = []
        for number, (name, pixels) in enumerate(versions.items()):
            # A folder each, so that two names may be alike.
            file = Path(temporary, str(number), f"{_safe(name)}.png")
            image_io.write_png(file, np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
            files.append(file)
        compare.compare(files, path)


def write_rate_distortion(folder: Path, report: Report) -> list[Path]:
    """Writes a plot of PSNR against bits per pixel for each set, a line a method.

    Args:
        folder: where to; made if it does not exist.
        report: with at least two qualities of a codec, or nothing is written; noise and
            degraded images that were given have no rate.

    Returns:
        The files, `SET-rate-distortion.png`.

    Raises:
        UserError: matplotlib is not installed.
    """
    lines: dict[str, dict[tuple[str, str], list[tuple[float, float]]]] = {}
    for row in report.rows():
        if row["bpp"] is None:
            continue
        line = lines.setdefault(row["set"], {})
        line.setdefault((row["codec"], row["method"]), []).append(
            (row["bpp"], row["psnr"])
        )
    written = []
    for name, points in lines.items():
        if all(len(each) < 2 for each in points.values()):
            continue
        written.append(folder / f"{_safe(name)}-rate-distortion.png")
        _write_plot(written[-1], name, points)
    return written


def _write_plot(
    path: Path,
    title: str,
    lines: Mapping[tuple[str, str], Sequence[tuple[float, float]]],
) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "a rate-distortion plot needs matplotlib: pip install 'cir_jax[plots]'"
        ) from error
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    codecs, methods = (list(dict.fromkeys(names)) for names in zip(*lines, strict=True))
    for (codec, method), points in lines.items():
        style = STYLES[methods.index(method) % len(STYLES)]
        label = codec if method == NONE else f"{codec}, {method}"
        values = zip(*sorted(points), strict=True)
        axes.plot(*values, style, color=f"C{codecs.index(codec)}", label=label)
    axes.set(title=title, xlabel="bits per pixel", ylabel="PSNR, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
