"""What a records folder holds: a table of its versions, and a sheet of pictures."""

import collections
import dataclasses
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from cir_jax import image_io, metrics, pictures, tables
from cir_jax.data import manifest, recipes, records
from cir_jax.data.recipes import Kind
from cir_jax.resize import SUPPORT, downscale

SHOWN, COLUMNS = 3, 8
"""Crops on the contact sheet, and at most how many versions of a codec beside each."""
SIDE = 128
"""Of the pictures on the sheet, at most, pixels."""


@dataclasses.dataclass
class Totals:
    """Sums over the versions of a kind."""

    versions: int = 0
    error: float = 0.0
    """Mean squared errors."""
    bpp: float = 0.0
    """Bits per pixel of the compressed images."""
    restored: float = 0.0
    """Mean squared errors of restored images, where there are such."""


def inspect(folder: Path, sheet: Path) -> str:
    """Measures the versions of every record.

    Args:
        folder: a finished records folder.
        sheet: where a PNG of some records goes.

    Returns:
        A Markdown table: versions, bits per pixel of the compressed image and its PSNR
        (of the mean squared error) for each codec and quality, from worst to best, and
        the PSNR of restored images where there are such. For records of an online
        recipe it is one run of the recipe. Of a mix, a table for each part.

    Raises:
        UserError: the folder is no finished records folder, a record is damaged, or
            the sheet cannot be written.
    """
    how_to_make = "cir encode --source … --out " + str(folder)
    contents = manifest.read_manifest(folder, how_to_make)
    texts, rows = [], []
    for part in manifest.parts(folder, contents):
        text, of_part = _measured(part.folder, how_to_make)
        if "parts" in contents:
            text = f"{part.folder}, {part.repeat} times an epoch: {text}"
        texts.append(text)
        rows += of_part
    sides = (
        part.contents["crop"] // part.contents["scale"]
        for part in manifest.parts(folder, contents)
    )
    image_io.write_png(sheet, pictures.sheet(rows, max(1, SIDE // max(sides))))
    return "\n\n".join(texts)


def _measured(
    folder: Path, how_to_make: str
) -> tuple[str, list[list[tuple[str, np.ndarray]]]]:
    """The table of a folder that is no mix, and its rows of the sheet."""
    source, contents = manifest.open_records(folder, how_to_make)
    online = recipes.for_reader("", contents)
    totals: dict[Kind, Totals] = collections.defaultdict(Totals)
    shown = set(np.linspace(0, len(source) - 1, SHOWN).astype(int).tolist())
    rows: list[list[tuple[str, np.ndarray]]] = []
    numbers = track(
        range(len(source)), "inspecting records", console=Console(stderr=True)
    )
    for number in numbers:
        record = records.Record.from_bytes(source[number])
        small = downscale(records.decode(record.clean), record.scale)
        of_record = record.versions
        if online:
            rng = np.random.default_rng((contents["seed"], number))
            of_record = online.versions(small, rng)
        versions = []
        for version in of_record:
            kind = (version.codec, version.quality)
            pixels = records.decode(version.image)
            pair = (_inside(image, record.scale) for image in (small, pixels))
            totals[kind].versions += 1
            totals[kind].error += metrics.mse(*pair)
            totals[kind].bpp += version.bits / pixels[..., 0].size
            if version.restored:
                restored = records.decode(version.restored)
                totals[kind].restored += metrics.mse(small, restored)
            versions.append((kind, pixels))
        if number in shown:
            rows += _sheet_rows(small, versions)
    return f"{len(source)} records of {contents['source']}\n{_table(totals)}", rows


def _inside(image: np.ndarray, scale: int) -> np.ndarray:
    """Where downscaling the crop gives what downscaling its photograph gave."""
    rim = SUPPORT if scale > 1 and min(image.shape[:2]) > 2 * SUPPORT else 0
    return image[rim : image.shape[0] - rim, rim : image.shape[1] - rim]


def _sheet_rows(
    small: np.ndarray, versions: list[tuple[Kind, np.ndarray]]
) -> list[list[tuple[str, np.ndarray]]]:
    """For each codec a row: the crop before compression, then its versions."""
    rows = []
    for codec in dict.fromkeys(codec for (codec, _), _ in versions):
        row = [
            (f"{codec} {kind[1]}", pixels)
            for kind, pixels in versions
            if kind[0] == codec
        ]
        picks = np.linspace(0, len(row) - 1, min(len(row), COLUMNS)).astype(int)
        rows.append([("clean", small), *(row[pick] for pick in picks)])
    return [
        [(caption, image[:SIDE, :SIDE]) for caption, image in row]
        for row in rows or [[("clean", small)]]
    ]


def _table(totals: dict[Kind, Totals]) -> str:
    """Rows by codec, from worst to best; no rate where it is not known."""
    restored = any(total.restored for total in totals.values())
    rows = [["codec", "quality", "versions", "bpp", "PSNR"]]
    rows[0] += ["restored"] * restored
    psnr = {
        kind: metrics.decibels(total.error / total.versions)
        for kind, total in totals.items()
    }
    for kind in sorted(psnr, key=lambda kind: (kind[0], psnr[kind])):
        (codec, quality), total = kind, totals[kind]
        rate = f"{total.bpp / total.versions:.3f}" if total.bpp else ""
        row = [codec, str(quality), str(total.versions), rate, f"{psnr[kind]:.2f}"]
        if restored:
            level = metrics.decibels(total.restored / total.versions)
            row.append(f"{level:.2f}" if total.restored else "")
        rows.append(row)
    return tables.markdown(rows)
