"""Results that outlive the run: rows of scores in a Markdown file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cir_jax import tables
from cir_jax.errors import UserError
from cir_jax.files import write_text
from cir_jax.scores import COLUMNS, Report, cell

START, END = "<!-- scores -->", "<!-- /scores -->"
"""What the table stands between; what lies outside is left as it is."""
MEASURED = ("psnr", "ssim", "psnr_b", "psnr_y", "ssim_y", "lpips", "gain", "bpp")
KEY = ("set", "images", "protocol", "scale", "codec", "quality", "method", "weights")
"""What makes a row another one: a new row takes the place of one with the same."""
HEADINGS = (*KEY, *(COLUMNS[name] for name in MEASURED), "config", "encoder", "date")


def record(
    path: Path,
    report: Report,
    weights: Mapping[str, tuple[list[str], str, str | None]],
    date: str,
) -> None:
    """Adds a report's rows to the table of a Markdown file.

    Args:
        path: the file; made if it does not exist. The table is appended where it has
            none.
        report: what was measured.
        weights: SHA-256 of the files, config and, if it has a name, protocol of
            restoring of the methods, by name; a peer has no files, and its command is
            its config.
        date: of the measurement.

    Raises:
        UserError: the file is no text, or its table has other columns.
    """
    before, table, after = read(path)
    rows = {row[: len(KEY)]: row for row in table}
    for row in report.rows():
        hashes, config, restoring = weights.get(row["method"], ([], "", None))
        protocols = report.protocols[row["set"]], restoring
        fields: dict[str, Any] = {
            **row,
            "protocol": ",".join(filter(None, protocols)),
            "scale": report.protocol["scale"],
            "weights": "+".join(sha256[:12] for sha256 in hashes),
            "config": config,
            "encoder": report.encoders[row["codec"]],
            "date": date,
        }
        texts = [cell(name, fields[name]) for name in KEY]
        if row["method"] == report.baseline:
            del fields["gain"]
        texts += [cell(n, fields[n]) if n in fields else "" for n in MEASURED]
        texts += [fields[name] for name in ("config", "encoder", "date")]
        new = tuple(text.replace("|", "/") for text in texts)
        rows[new[: len(KEY)]] = new
    text = f"{START}\n{tables.markdown([HEADINGS, *rows.values()])}\n{END}\n"
    write_text(path, before + text + after)


def read(path: Path) -> tuple[str, list[tuple[str, ...]], str]:
    """A file's text before the table, the table's rows, and the text after it.

    Raises:
        UserError: see `record`.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: give a Markdown file") from error
    if START not in text:
        gap = "" if not text or text.endswith("\n\n") else "\n"
        return text + gap, [], ""
    before, _, rest = text.partition(f"{START}\n")
    table, end, after = rest.partition(f"{END}\n")
    rows = [_cells(line) for line in table.splitlines()]
    if not end or rows[:1] != [HEADINGS]:
        raise UserError(
            f"{path} has no table between {START} and {END}, or one with other columns "
            f"than {', '.join(HEADINGS)}: mend it, or record into another file"
        )
    return before, rows[2:], after


def _cells(line: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in line.strip().strip("|").split("|"))
