"""Evaluation: clean images x codec x quality x method -> a table with its protocol."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cir_jax import codecs, image_io, metrics, pictures, tables
from cir_jax.errors import UserError, unknown
from cir_jax.resize import downscale, modcrop, upscale
from cir_jax.restore import Restorer

CODEC_ALONE, BICUBIC = "none", "bicubic"
"""The method names of the compressed image itself, and of it upscaled."""
COLUMNS = {
    "set": "set",
    "codec": "codec",
    "quality": "quality",
    "method": "method",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "psnr_b": "PSNR-B",
    "psnr_y": "PSNR-Y",
    "ssim_y": "SSIM-Y",
    "gain": "gain",
    "bpp": "bpp",
    "seconds": "s/image",
}
"""Of the table, in order: the row's key and the heading."""
METRICS = {
    "psnr": metrics.psnr,
    "ssim": metrics.ssim,
    "psnr_b": metrics.psnr_b,
    "psnr_y": lambda a, b: metrics.psnr(metrics.luma(a), metrics.luma(b)),
    "ssim_y": lambda a, b: metrics.ssim(metrics.luma(a), metrics.luma(b)),
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is measured, and of which part of the image."""

    text: str
    """As it is printed beside the numbers."""
    metrics: tuple[str, ...]
    border: int
    """Pixels that are cut off on every side before measuring."""


PROTOCOLS = {
    "colour": Protocol(
        "RGB jointly (PSNR-B: blocking of BT.601 limited-range Y), 8-bit rounding, "
        "no border crop, mean over images",
        ("psnr", "ssim", "psnr_b"),
        border=0,
    ),
    "gray": Protocol(
        "Y of BT.601 limited range (MATLAB rgb2ycbcr), grey files as they are, coded "
        "as a grey image; colour "
        "networks get Y in three channels and their outputs are averaged; 8-bit "
        "rounding, no border crop, mean over images",
        ("psnr", "ssim", "psnr_b"),
        border=0,
    ),
    "csr": Protocol(
        "compressed-image super-resolution: images cut to a multiple of the scale, "
        "downscaled by MATLAB's bicubic, then compressed; RGB jointly and Y of BT.601 "
        "limited range (MATLAB rgb2ycbcr), 8-bit rounding, border crop 4, mean over "
        "images",
        ("psnr", "ssim", "psnr_y", "ssim_y"),
        border=4,
    ),
}


@dataclasses.dataclass(frozen=True)
class Score:
    """One method on one image at one codec setting."""

    set: str
    image: str
    codec: str
    quality: int
    method: str
    metrics: dict[str, float]
    """By name, those of the protocol."""
    bpp: float
    """Bits of the bitstream per pixel of the compressed image."""
    seconds: float
    """Of restoring, compile time excluded; 0 for the codec alone."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found, and under which protocol."""

    protocol: dict[str, Any]
    scores: tuple[Score, ...]
    baseline: str = CODEC_ALONE
    """The method that gains are counted from."""

    def rows(self) -> list[dict[str, Any]]:
        """Means over images, one row per set, codec, quality and method.

        `gain` is the PSNR above the baseline's row, dB. `images` counts them.
        """
        groups: dict[tuple, list[Score]] = {}
        for score in self.scores:
            key = (score.set, score.codec, score.quality, score.method)
            groups.setdefault(key, []).append(score)
        rows = []
        for key, scores in groups.items():
            row = dict(zip(("set", "codec", "quality", "method"), key, strict=True))
            for name in scores[0].metrics:
                row[name] = float(np.mean([score.metrics[name] for score in scores]))
            for name in ("bpp", "seconds"):
                row[name] = float(np.mean([getattr(score, name) for score in scores]))
            baseline = groups[(*key[:3], self.baseline)]
            start = float(np.mean([score.metrics["psnr"] for score in baseline]))
            same = row["psnr"] == start  # infinite, where the codec lost nothing
            row["gain"] = 0.0 if same else row["psnr"] - start
            row["images"] = len(scores)
            rows.append(row)
        return rows

    def table(self) -> str:
        """The rows as an aligned Markdown table, the protocol under it."""
        rows = self.rows()
        columns = [name for name in COLUMNS if name in rows[0]]
        cells = [[COLUMNS[name] for name in columns]]
        for row in rows:
            texts = {name: f"{row[name]:{_digits(name)}}" for name in columns}
            if row["method"] == self.baseline:
                texts |= {"gain": "", "seconds": ""}
            cells.append([texts[name] for name in columns])
        notes = (f"{name}: {value}" for name, value in self.protocol.items())
        return "\n".join([tables.markdown(cells), "", *notes])

    def to_json(self) -> dict[str, Any]:
        """Protocol, mean rows and every image's scores; null for infinite decibels."""

        def finite(row: dict[str, Any]) -> dict[str, Any]:
            return {
                name: None if v in (math.inf, -math.inf) else v
                for name, v in row.items()
            }

        return {
            "protocol": self.protocol,
            "rows": [finite(row) for row in self.rows()],
            "images": [finite(_flat(score)) for score in self.scores],
        }


def _digits(column: str) -> str:
    """The format of a table's column."""
    kind = column.partition("_")[0]
    formats = {"psnr": ".2f", "ssim": ".4f", "gain": "+.2f", "bpp": ".3f"}
    return formats.get(kind, ".2f" if column == "seconds" else "")


def _flat(score: Score) -> dict[str, Any]:
    """A score's fields, the metrics among them."""
    fields = dataclasses.asdict(score)
    return fields | fields.pop("metrics")


SMALLEST = 22
"""Of an image's sides, pixels: cut to a multiple of 4 and without the largest border it
holds an SSIM window."""


def read_set(folder: Path) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
    """Reads all images of a folder, by path below it.

    Raises:
        UserError: the folder is missing or empty, an image cannot be read, or one is
            too small for SSIM. A table over fewer images would not be comparable, so
            none is left out.
    """
    images = {
        path.relative_to(folder).as_posix(): image_io.read_rgb(path)
        for path in image_io.find_images(folder)
    }
    for name, image in images.items():
        if min(image.shape[:2]) < SMALLEST:
            raise UserError(
                f"{folder / name} is {image.shape[1]}x{image.shape[0]} pixels: SSIM "
                f"needs sides of at least {SMALLEST}"
            )
    return images


def evaluate(
    restorers: Mapping[str, Restorer],
    sets: Mapping[str, Mapping[str, UInt8[np.ndarray, "_ _ 3"]]],
    codec: str,
    qualities: Sequence[int],
    protocol: str | None = None,
    provenance: Mapping[str, str] | None = None,
    scale: int | None = None,
) -> Report:
    """Compresses, restores and measures every image of every set.

    Args:
        restorers: by method name; the baseline is always measured too: the codec alone
            or, with a scale, bicubic upscaling of what it gives.
        sets: clean images by set name and image name.
        codec: codec name, see `cir_jax.codecs`.
        qualities: the codec's qualities.
        protocol: see `PROTOCOLS`; "colour", or with a scale "csr", when None.
        provenance: further lines of the protocol, such as the weights' sha256.
        scale: by how much images are downscaled before they are compressed; the
            restorers' when None.

    Raises:
        UserError: unknown codec or protocol, a quality that the codec has not, or
            restorers of different scales.
    """
    scales = {restorer.scale for restorer in restorers.values()} or {scale or 1}
    if len(scales | {scale or max(scales)}) > 1:
        found = ", ".join(f"{name} {r.scale}" for name, r in restorers.items())
        raise UserError(
            f"the weights are of different scales ({found}; --scale {scale}): evaluate "
            "those of one scale at a time"
        )
    (scale,) = scales
    baseline = CODEC_ALONE if scale == 1 else BICUBIC
    protocol = protocol or ("colour" if scale == 1 else "csr")
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    coder = codecs.get_codec(codec)
    for quality in qualities:
        codecs.check_quality(coder, quality)
    tiles = ", ".join(
        f"{name} {restorer.tile}"
        for name, restorer in restorers.items()
        if restorer.tile
    )
    ensembles = [name for name, restorer in restorers.items() if restorer.self_ensemble]
    told = [name for name, restorer in restorers.items() if restorer.codec is not None]
    scores = tuple(
        score
        for set_name, images in sets.items()
        for quality in qualities
        for image_name, image in images.items()
        for score in _score_image(
            restorers,
            grey(image) if protocol == "gray" else image,
            functools.partial(compress, coder, quality, scale),
            PROTOCOLS[protocol],
            baseline,
            functools.partial(Score, set_name, image_name, coder.name, quality),
        )
    )
    return Report(
        {
            "protocol": f"{protocol}: {PROTOCOLS[protocol].text}",
            "scale": scale,
            "encoder": coder.version,
            "padding": "bottom and right, mirrored, to the network's multiple",
            "tiling": tiles or "none",
            "self-ensemble": ", ".join(ensembles) or "no",
            **({"told the codec": ", ".join(told)} if told else {}),
            "images": ", ".join(
                f"{name} {len(images)}" for name, images in sets.items()
            ),
            **(provenance or {}),
        },
        scores,
        baseline,
    )


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A clean image, and what a codec leaves of it."""

    clean: UInt8[np.ndarray, "h w c"]
    """Cut to a multiple of the scale."""
    degraded: UInt8[np.ndarray, "_ _ c"]
    """Downscaled, compressed and decoded."""
    baseline: UInt8[np.ndarray, "h w c"]
    """The degraded image upscaled again."""
    bpp: float


def compress(
    coder: codecs.CodecProtocol,
    quality: int,
    scale: int,
    image: UInt8[np.ndarray, "_ _ c"],
) -> Compressed:
    """Downscales and compresses an image, as every method will get it."""
    clean = modcrop(image, scale)
    bitstream = coder.encode(np.ascontiguousarray(downscale(clean, scale)), quality)
    degraded = coder.decode(bitstream)
    return Compressed(
        clean,
        degraded,
        upscale(degraded, scale),
        8 * len(bitstream) / (degraded.shape[0] * degraded.shape[1]),
    )


def _score_image(
    restorers: Mapping[str, Restorer],
    image: UInt8[np.ndarray, "h w c"],
    compressed: Callable[[np.ndarray], Compressed],
    protocol: Protocol,
    baseline: str,
    make_score: Callable[..., Score],
) -> Iterator[Score]:
    """The scores of the baseline, then of every method, on one image."""
    pair = compressed(image)
    inside = slice(protocol.border, -protocol.border or None)
    clean = pair.clean[inside, inside]

    def score(method: str, restored: np.ndarray, seconds: float) -> Score:
        values = {
            name: METRICS[name](clean, restored[inside, inside])
            for name in protocol.metrics
        }
        return make_score(method, values, pair.bpp, seconds)

    yield score(baseline, pair.baseline, 0.0)
    for method, restorer in restorers.items():
        restorer.compile(*pair.degraded.shape[:2])
        start = time.perf_counter()
        restored = restore_channels(restorer, pair.degraded)
        yield score(method, restored, time.perf_counter() - start)


def grey(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 1"]:
    """The image that the gray protocol is about; a grey file's is the file's own."""
    if (image == image[..., :1]).all():
        return image[..., :1]
    return metrics.luma(image)


def restore_channels(
    restorer: Restorer, image: UInt8[np.ndarray, "h w c"]
) -> UInt8[np.ndarray, "_ _ c"]:
    """Restores RGB as it is; grey in three channels, whose outputs are averaged."""
    if image.shape[-1] == 3:
        return restorer(image)
    restored = restorer(np.float32(image.repeat(3, axis=-1)) / 255)
    return image_io.to_uint8(restored.mean(axis=-1, keepdims=True))


def picture(
    restorers: Mapping[str, Restorer],
    images: Mapping[str, UInt8[np.ndarray, "_ _ 3"]],
    codec: str,
    quality: int,
    *,
    window: int = 128,
    zoom: int = 2,
) -> UInt8[np.ndarray, "h w 3"]:
    """A sheet: per image the compressed, each restored and the clean window.

    The window is where the first method changed most, `window` pixels a side.
    """
    coder = codecs.get_codec(codec)
    scale = max((restorer.scale for restorer in restorers.values()), default=1)
    rows = []
    for name, image in images.items():
        pair = compress(coder, quality, scale, image)
        versions = {f"{coder.name} {quality}": pair.baseline}
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
