"""The manifest of a records folder: what is in it and how it was made.

That of a mix names other folders instead, its parts, see mixes.py.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from cir_jax.data.mixes import MixedSource
from cir_jax.data.tfrecord import RecordSource
from cir_jax.errors import UserError
from cir_jax.files import sha256, written_whole

NAME = "manifest.json"
FORMAT = 3
"""Changes when old readers could no longer read new folders."""
MIX_FORMAT = 4
"""The same of mixes, which came later than the folders they are made of."""
FIELDS = {
    FORMAT: {"records", "shards"},
    MIX_FORMAT: {"records", "parts", "scale", "grey"},
}
"""What a manifest of each format has at least."""


class Part(NamedTuple):
    """One of the folders of a mix."""

    folder: Path
    contents: dict[str, Any]
    """Its manifest."""
    repeat: int
    """How often each of its records is in an epoch."""


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_manifest(folder: Path, how_to_make: str) -> dict[str, Any]:
    """Reads the manifest of a finished records folder.

    Args:
        folder: a folder that `cir encode` or `cir mix` wrote.
        how_to_make: the command that makes it, for the error message.

    Returns:
        The manifest; the "parts" of a mix as `Part`.

    Raises:
        UserError: the folder, or a part of it, is missing, empty, unfinished, or of
            another format; or a part is no longer what was mixed.
    """
    path = folder / NAME
    if not path.is_file():
        state = "is not finished" if folder.is_dir() else "does not exist"
        raise UserError(
            f"records folder {folder} {state}: make it with\n  {how_to_make}"
        )
    try:
        manifest = json.loads(path.read_text())
        found = manifest["format"]
        if found in FIELDS and not FIELDS[found] <= manifest.keys():
            raise KeyError
        if found == MIX_FORMAT:
            listed = [
                (folder.resolve() / part["folder"], part["sha256"], part["repeat"])
                for part in manifest["parts"]
            ]
            manifest["parts"] = []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged: make the records again with\n  {how_to_make}"
        ) from error
    if found not in FIELDS:
        raise UserError(
            f"{path} has format {found}, this version reads "
            f"{' and '.join(map(str, FIELDS))}: make the records again with\n"
            f"  {how_to_make}"
        )
    if found == MIX_FORMAT:
        manifest["parts"] = [_part(folder, *part) for part in listed]
    return manifest


def _part(mix: Path, folder: Path, checksum: str, repeat: int) -> Part:
    """A part of a mix, checked to be what was mixed."""
    folder = folder.resolve()
    contents = read_manifest(folder, _how(folder))
    if sha256(folder / NAME) != checksum:
        raise UserError(
            f"records folder {folder} is another than when {mix} was mixed: delete "
            f"{mix} and run the same `cir mix` again"
        )
    return Part(folder, contents, repeat)


def parts(folder: Path, contents: dict[str, Any]) -> list[Part]:
    """The parts of a mix; of any other folder, itself alone.

    Args:
        folder: the folder.
        contents: its manifest.
    """
    return contents.get("parts", [Part(folder, contents, 1)])


def open_records(
    folder: Path, how_to_make: str
) -> tuple[RecordSource | MixedSource, dict[str, Any]]:
    """Opens a finished records folder for random access.

    Returns:
        The records of all shards in order, or of a mix's epoch with their parts; and
        the manifest.

    Raises:
        UserError: see `read_manifest`; or a shard is missing or truncated, or the
            folder holds no record.
    """
    manifest = read_manifest(folder, how_to_make)
    if "parts" in manifest:
        sources = [
            _open(part.folder, part.contents, _how(part.folder))
            for part in manifest["parts"]
        ]
        repeats = [part.repeat for part in manifest["parts"]]
        return MixedSource(sources, repeats), manifest
    return _open(folder, manifest, how_to_make), manifest


def _open(folder: Path, manifest: dict[str, Any], how_to_make: str) -> RecordSource:
    source = RecordSource([folder / shard["file"] for shard in manifest["shards"]])
    if len(source) != manifest["records"] or not len(source):
        raise UserError(
            f"records folder {folder} holds {len(source)} records where its manifest "
            f"says {manifest['records']}: make it again with\n  {how_to_make}"
        )
    return source


def _how(part: Path) -> str:
    """What makes a part of a mix, for error messages."""
    return f"cir encode … --out {part}"
