"""What an evaluation looks like: before/after sheets, and rate-distortion plots."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cir_jax import compare, image_io, metrics, pictures
from cir_jax.compression import Compression
from cir_jax.errors import UserError
from cir_jax.evaluate import Images, Method, restored
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
    compression: Compression,
    *,
    window: int = 128,
    zoom: int = 2,
) -> UInt8[np.ndarray, "h w 3"]:
    """A sheet: per image the compressed, each restored and the clean window.

    The window is where the last method changed most, `window` pixels a side.
    """
    scale = max((restorer.scale for restorer in restorers.values()), default=1)
    title = f"{compression.codec_name} {compression.quality_name}"
    rows = []
    for name, image in images.items():
        pair = compression(image, scale)
        versions = {title: pair.baseline}
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
    compressions: Sequence[Compression],
) -> list[Path]:
    """Writes compare sheets of the worst, the median and the best image.

    For each set and codec, at the codec's first quality; by the gain of the first
    method or, without one, the PSNR of the codec alone.

    Args:
        folder: where to; made if it does not exist.
        report: of an evaluation of the same methods, sets and compressions.
        methods: by name; the first four are shown.
        sets: clean images by set name.
        compressions: what was done to each.

    Returns:
        The files, `SET-CODEC-QUALITY-worst.png` and so on.
    """
    firsts: dict[str, Compression] = {}
    for each in compressions:
        firsts.setdefault(each.codec_name, each)
    written = []
    for name, images in sets.items():
        protocol = get_protocol(report.protocols[name])
        for codec, compression in firsts.items():
            scored = {score.method for score in report.scores if score.codec == codec}
            names = [method for method in methods if method in scored]
            shown = {method: methods[method] for method in names[:MOST_METHODS]}
            ranked = _ranked(report, name, compression, next(iter(shown), None))
            places = {"worst": 0, "median": len(ranked) // 2, "best": -1}
            for place, index in places.items():
                parts = name, codec, compression.quality_name, place
                path = folder / f"{'-'.join(map(_safe, parts))}.png"
                clean = protocol.coded(images[ranked[index]])
                label = f"{Path(ranked[index]).stem}, original"
                _write_sheet(path, label, clean, compression, shown, report)
                written.append(path)
    return written


def _safe(part: str | int) -> str:
    """A part of a file name."""
    return "".join(c if c.isalnum() or c in "+., _" else "_" for c in str(part))


def _ranked(
    report: Report, name: str, compression: Compression, method: str | None
) -> list[str]:
    """The images of a set, from the smallest gain of a method to the largest."""
    psnr: dict[str, dict[str, float]] = {}
    wanted = name, compression.codec_name, compression.quality_name
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
    clean: UInt8[np.ndarray, "h w c"],
    compression: Compression,
    methods: Mapping[str, Method],
    report: Report,
) -> None:
    scale = report.protocol["scale"]
    pair = compression(clean, scale)
    title = f"{compression.codec_name} {compression.quality_name}"
    title += "" if report.baseline == NONE else f" {report.baseline}"
    versions = {label: pair.clean, title: pair.baseline}
    for name, method in methods.items():
        pixels, _ = restored(method, pair, compression.codec.suffix, scale)
        versions[name] = pixels
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
        report: with at least two qualities of a codec, or nothing is written.

    Returns:
        The files, `SET-rate-distortion.png`.

    Raises:
        UserError: matplotlib is not installed.
    """
    lines: dict[str, dict[tuple[str, str], list[tuple[float, float]]]] = {}
    for row in report.rows():
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
