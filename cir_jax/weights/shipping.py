"""The weights that ship with the package: names, cards, and checksums.

Beside each `NAME.safetensors` lies its card, `NAME.md`: terms, how it was trained, and
a table of scores that `cir evaluate --record` wrote. `SHA256SUMS` has the files' sums,
as `sha256sum --check` reads them.
"""

from pathlib import Path

from cir_jax import files, results
from cir_jax.errors import UserError

FOLDER = Path(__file__).parent
SUFFIX = ".safetensors"
DEFAULT = "default"
"""Stands for the weights that `cir restore` takes where none are named."""
_DEFAULT_NAME = "promptcir_half"
_SUMS = "SHA256SUMS"


def shipped() -> dict[str, Path]:
    """The weights files that ship with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob(f"*{SUFFIX}"))}


def find_shipped(name: str) -> Path | None:
    """The shipped file of a name, or of "default"; None where there is none."""
    return shipped().get(_DEFAULT_NAME if name == DEFAULT else name)


def card(path: Path) -> Path:
    """Where the card of a shipped weights file is."""
    return path.with_suffix(".md")


def gains(path: Path) -> dict[int, str]:
    """What a shipped weights file gains over JPEG, as its card has it.

    Returns:
        Decibels, as text, for each quality that was measured by the protocol "colour".
    """
    _, rows, _ = results.read(card(path))
    scores = [dict(zip(results.HEADINGS, row, strict=True)) for row in rows]
    return {
        int(row["quality"]): row["gain"]
        for row in scores
        if (row["protocol"], row["codec"], row["method"])
        == ("colour", "jpeg", path.stem)
    }


def check_sum(path: Path) -> None:
    """Checks a file's SHA-256, if the folder's `SHA256SUMS` lists it.

    Raises:
        UserError: it is another one.
    """
    sums = path.parent / _SUMS
    if not sums.is_file():
        return
    text = sums.read_text(encoding="utf-8", errors="replace")
    lines = (line.partition(" ") for line in text.splitlines())
    expected = {name.strip().removeprefix("*"): digest for digest, _, name in lines}
    if path.name in expected and files.sha256(path) != expected[path.name]:
        raise UserError(
            f"{path} is damaged or was changed: its SHA-256 is {files.sha256(path)}, "
            f"{sums} says {expected[path.name]}; get it anew, shipped weights by "
            "installing cir_jax again"
        )
