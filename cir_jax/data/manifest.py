"""The manifest of a records folder: what is in it and how it was made."""

import json
from pathlib import Path
from typing import Any

from cir_jax.data.tfrecord import RecordSource
from cir_jax.errors import UserError
from cir_jax.files import written_whole

NAME = "manifest.json"
FORMAT = 3
"""Changes when old readers could no longer read new folders."""


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_manifest(folder: Path, how_to_make: str) -> dict[str, Any]:
    """Reads the manifest of a finished records folder.

    Args:
        folder: a folder that `cir encode` wrote.
        how_to_make: the command that makes it, for the error message.

    Raises:
        UserError: the folder is missing, empty, unfinished, or of another format.
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
        if found == FORMAT and not {"records", "shards"} <= manifest.keys():
            raise KeyError
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged: make the records again with\n  {how_to_make}"
        ) from error
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found}, this version reads {FORMAT}: make the records "
            f"again with\n  {how_to_make}"
        )
    return manifest


def open_records(folder: Path, how_to_make: str) -> tuple[RecordSource, dict[str, Any]]:
    """Opens a finished records folder for random access.

    Returns:
        The records of all shards in order, and the manifest.

    Raises:
        UserError: see `read_manifest`; or a shard is missing or truncated, or the
            folder holds no record.
    """
    manifest = read_manifest(folder, how_to_make)
    source = RecordSource([folder / shard["file"] for shard in manifest["shards"]])
    if len(source) != manifest["records"] or not len(source):
        raise UserError(
            f"records folder {folder} holds {len(source)} records where its manifest "
            f"says {manifest['records']}: make it again with\n  {how_to_make}"
        )
    return source, manifest
