"""Files: written whole or not at all, and their checksums."""

import contextlib
import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; renames it to `path` on a clean exit.

    On an exception the temporary file is removed and `path` stays as it was; an OSError
    names `path` then, where it named no file or the temporary one. A process that is
    killed leaves a file `.NAME.UUID.tmp` behind, never a part of `path`.
    """
    start = path.name[:50]  # a name has 255 bytes at most, a letter up to four
    temporary = path.with_name(f".{start}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
