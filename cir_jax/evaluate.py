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
from cir_jax.restore import Restorer

CODEC_ALONE = "none"
"""The method name of the compressed image itself."""
METRICS = ("psnr", "ssim", "psnr_b")
COLUMNS = {
    "set": "set",
    "codec": "codec",
    "quality": "quality",
    "method": "method",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "psnr_b": "PSNR-B",
    "gain": "gain",
    "bpp": "bpp",
    "seconds": "s/image",
}
"""Of the table, in order: the row's key and the heading."""
PROTOCOLS = {
    "colour": (
        "RGB jointly (PSNR-B: blocking of BT.601 limited-range Y), 8-bit rounding, "
        "no border crop, mean over images"
    ),
    "gray": (
        "Y of BT.601 limited range (MATLAB rgb2ycbcr), grey files as they are, coded "
        "as a grey image; colour "
        "networks get Y in three channels and their outputs are averaged; 8-bit "
        "rounding, no border crop, mean over images"
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
    psnr: float
    ssim: float
    psnr_b: float
    bpp: float
    """Bits of the bitstream per pixel of the compressed image."""
    seconds: float
    """Of restoring, compile time excluded; 0 for the codec alone."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found, and under which protocol."""

    protocol: dict[str, Any]
    scores: tuple[Score, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Means over images, one row per set, codec, quality and method.

        `gain` is the PSNR above the codec's own row, dB. `images` counts them.
        """
        groups: dict[tuple, list[Score]] = {}
        for score in self.scores:
            key = (score.set, score.codec, score.quality, score.method)
            groups.setdefault(key, []).append(score)
        rows = []
        for key, scores in groups.items():
            row = dict(zip(("set", "codec", "quality", "method"), key, strict=True))
            for name in (*METRICS, "bpp", "seconds"):
                row[name] = float(np.mean([getattr(score, name) for score in scores]))
            alone = np.mean([s.psnr for s in groups[(*key[:3], CODEC_ALONE)]])
            same = row["psnr"] == alone  # infinite, where the codec lost nothing
            row["gain"] = 0.0 if same else row["psnr"] - float(alone)
            row["images"] = len(scores)
            rows.append(row)
        return rows

    def table(self) -> str:
        """The rows as an aligned Markdown table, the protocol under it."""
        cells = [list(COLUMNS.values())]
        for row in self.rows():
            alone = row["method"] == CODEC_ALONE
            texts = {
                "quality": str(row["quality"]),
                "psnr": f"{row['psnr']:.2f}",
                "ssim": f"{row['ssim']:.4f}",
                "psnr_b": f"{row['psnr_b']:.2f}",
                "gain": "" if alone else f"{row['gain']:+.2f}",
                "bpp": f"{row['bpp']:.3f}",
                "seconds": "" if alone else f"{row['seconds']:.2f}",
            }
            cells.append([str((row | texts)[column]) for column in COLUMNS])
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
            "images": [finite(dataclasses.asdict(score)) for score in self.scores],
        }


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
        if min(image.shape[:2]) < metrics.SSIM_WINDOW:
            raise UserError(
                f"{folder / name} is {image.shape[1]}x{image.shape[0]} pixels: SSIM "
                f"needs sides of at least {metrics.SSIM_WINDOW}"
            )
    return images


def evaluate(
    restorers: Mapping[str, Restorer],
    sets: Mapping[str, Mapping[str, UInt8[np.ndarray, "_ _ 3"]]],
    codec: str,
    qualities: Sequence[int],
    protocol: str = "colour",
    provenance: Mapping[str, str] | None = None,
) -> Report:
    """Compresses, restores and measures every image of every set.

    Args:
        restorers: by method name; the codec alone is always measured too.
        sets: clean images by set name and image name.
        codec: codec name, see `cir_jax.codecs`.
        qualities: the codec's qualities.
        protocol: "colour" or "gray", see `PROTOCOLS`.
        provenance: further lines of the protocol, such as the weights' sha256.

    Raises:
        UserError: unknown codec or protocol, or a quality that the codec has not.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    coder = codecs.get_codec(codec)
    for quality in qualities:
        codecs.check_quality(coder, quality)
    scores = tuple(
        score
        for set_name, images in sets.items()
        for quality in qualities
        for image_name, image in images.items()
        for score in _score_image(
            restorers,
            grey(image) if protocol == "gray" else image,
            coder,
            quality,
            functools.partial(Score, set_name, image_name, coder.name, quality),
        )
    )
    return Report(
        {
            "protocol": f"{protocol}: {PROTOCOLS[protocol]}",
            "encoder": coder.version,
            "padding": "bottom and right, mirrored, to the network's multiple",
            "tiling": "none",
            "self-ensemble": "no",
            "images": ", ".join(
                f"{name} {len(images)}" for name, images in sets.items()
            ),
            **(provenance or {}),
        },
        scores,
    )


def _score_image(
    restorers: Mapping[str, Restorer],
    clean: UInt8[np.ndarray, "h w c"],
    coder: codecs.CodecProtocol,
    quality: int,
    make_score: Callable[..., Score],
) -> Iterator[Score]:
    """The scores of the codec alone, then of every method, on one image."""
    bitstream = coder.encode(clean, quality)
    degraded = coder.decode(bitstream)
    bpp = 8 * len(bitstream) / (degraded.shape[0] * degraded.shape[1])

    def score(method, restored, seconds):
        return make_score(
            method=method,
            psnr=metrics.psnr(clean, restored),
            ssim=metrics.ssim(clean, restored),
            psnr_b=metrics.psnr_b(clean, restored),
            bpp=bpp,
            seconds=seconds,
        )

    yield score(CODEC_ALONE, degraded, 0.0)
    for method, restorer in restorers.items():
        restorer.compile(*degraded.shape[:2])
        start = time.perf_counter()
        restored = restore_channels(restorer, degraded)
        yield score(method, restored, time.perf_counter() - start)


def grey(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 1"]:
    """The image that the gray protocol is about; a grey file's is the file's own."""
    if (image == image[..., :1]).all():
        return image[..., :1]
    return metrics.luma(image)


def restore_channels(
    restorer: Restorer, image: UInt8[np.ndarray, "h w c"]
) -> UInt8[np.ndarray, "h w c"]:
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
    rows = []
    for name, clean in images.items():
        degraded = coder.decode(coder.encode(clean, quality))
        versions = {f"{coder.name} {quality}": degraded}
        versions |= {method: restore(degraded) for method, restore in restorers.items()}
        place = pictures.most_changed(degraded, [*versions.values()][-1], window)
        rows.append(
            [
                (f"{label}  {metrics.psnr(clean, version):.2f} dB", version[place])
                for label, version in versions.items()
            ]
            + [(f"{Path(name).stem}, original", clean[place])]
        )
    return pictures.sheet(rows, zoom)
