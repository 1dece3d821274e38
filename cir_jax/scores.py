"""Scores of an evaluation: means, tables and files of them."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cir_jax import tables

NONE, BICUBIC = "none", "bicubic"
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
    "lpips": "LPIPS",
    "gain": "gain",
    "bpp": "bpp",
    "seconds": "s/image",
}
"""Of the table, in order: the row's key and the heading."""
KEY = ("set", "codec", "quality", "method")
"""What tells a row from the others."""


@dataclasses.dataclass(frozen=True)
class Score:
    """One method on one image at one setting of a codec.

    Attributes:
        set: the set's name.
        image: the image's name in it.
        codec: as `Degradation.codec_name`.
        quality: as `Degradation.quality_name`, None where there is none.
        method: the method's name.
        metrics: by name, those of the protocol.
        bpp: bits of the bitstream per pixel of the compressed image; None where
            nothing is encoded.
        seconds: of restoring, compile time excluded; 0 for the baseline.
    """

    set: str
    image: str
    codec: str
    quality: int | str | None
    method: str
    metrics: dict[str, float]
    bpp: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The fields, the metrics among them."""
        fields = dataclasses.asdict(self)
        return fields | fields.pop("metrics")


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found, and under which protocol.

    Attributes:
        protocol: what must be known to compare the numbers, by name.
        scores: of every image; set by set, and in a set all in the same order.
        protocols: the protocol's name, by set.
        encoders: what encoded, by codec.
        baseline: the method that gains are counted from.
        warnings: what is unusual about the sets.
        downstream: further numbers of whole rows, by their `KEY`, then by name; of all
            rows the same ones.
    """

    protocol: Mapping[str, Any]
    scores: Sequence[Score]
    protocols: Mapping[str, str]
    encoders: Mapping[str, str]
    baseline: str = NONE
    warnings: Sequence[str] = ()
    downstream: Mapping[tuple, Mapping[str, float]] = dataclasses.field(
        default_factory=dict
    )

    def rows(self) -> list[dict[str, Any]]:
        """Means over images, one row per set, codec, quality and method.

        `gain` is the PSNR above the baseline's row, dB. `images` counts them. Quality
        and bpp are None where there is none.
        """
        groups: dict[tuple, list[Score]] = {}
        for score in self.scores:
            key = tuple(getattr(score, name) for name in KEY)
            groups.setdefault(key, []).append(score)
        rows = []
        for key, scores in groups.items():
            row = dict(zip(KEY, key, strict=True))
            for name in scores[0].metrics:
                row[name] = float(np.mean([score.metrics[name] for score in scores]))
            for name in ("bpp", "seconds"):
                values = [getattr(score, name) for score in scores]
                row[name] = None if None in values else float(np.mean(values))
            baseline = groups[(*key[:3], self.baseline)]
            start = float(np.mean([score.metrics["psnr"] for score in baseline]))
            same = row["psnr"] == start  # infinite, where the codec lost nothing
            row["gain"] = 0.0 if same else row["psnr"] - start
            row |= self.downstream.get(key, {})
            row["images"] = len(scores)
            rows.append(row)
        return rows

    def table(self) -> str:
        """A Markdown table for each set, then the protocol and the warnings."""
        by_set: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows():
            by_set.setdefault(row["set"], []).append(row)
        blocks = [tables.markdown(self._cells(rows)) for rows in by_set.values()]
        notes = [f"{name}: {value}" for name, value in self.protocol.items()]
        notes += [f"warning: {warning}" for warning in self.warnings]
        return "\n\n".join([*blocks, "\n".join(notes)])

    def _cells(self, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        columns = self._columns(rows[0])
        cells = [[COLUMNS.get(name, name) for name in columns]]
        for row in rows:
            texts = {name: cell(name, row[name]) for name in columns}
            if row["method"] == self.baseline:
                texts |= {"gain": "", "seconds": ""}
            cells.append([texts[name] for name in columns])
        return cells

    def _columns(self, row: Mapping[str, Any]) -> list[str]:
        """The names of a row's values that tables show, in order."""
        scorers = next(iter(self.downstream.values()), {})
        return [*(name for name in COLUMNS if name in row), *scorers]

    def to_json(self) -> dict[str, Any]:
        """Protocol, mean rows and every image's scores.

        Null for infinite decibels, and where there is no quality or bitstream.
        """

        def finite(row: dict[str, Any]) -> dict[str, Any]:
            return {
                name: None if v in (math.inf, -math.inf) else v
                for name, v in row.items()
            }

        return {
            "protocol": self.protocol,
            "warnings": self.warnings,
            "rows": [finite(row) for row in self.rows()],
            "images": [finite(score.to_json()) for score in self.scores],
        }

    def to_csv(self) -> str:
        """The mean rows, unrounded, with a line of names; the protocol is not in it."""
        rows = self.rows()
        columns = [*self._columns(rows[0]), "images"]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def cell(column: str, value: Any) -> str:
    """A value as tables show it; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, float) and column not in COLUMNS:  # a scorer's, of any size
        return f"{value:#.4g}"
    kind = column.partition("_")[0]
    formats = {"psnr": ".2f", "ssim": ".4f", "lpips": ".4f", "gain": "+.2f"}
    formats |= {"bpp": ".3f", "seconds": ".2f"}
    return f"{value:{formats.get(kind, '')}}"
