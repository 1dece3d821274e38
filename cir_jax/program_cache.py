"""Programs that JAX compiled, kept from one `cir` command to the next.

JAX's keys hold its version, the XLA flags, the device and the CPU's features, so that
machines of several kinds may share a home directory. An entry that cannot be read is
compiled again, with a warning.
"""

import contextlib
import os
import sys
from pathlib import Path

FOLDER = "JAX_COMPILATION_CACHE_DIR"
LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
LIMIT = 2**30
"""Bytes that are kept between commands."""


def keep_programs() -> None:
    """Has JAX keep what it compiles in the user's cache folder.

    To be called before JAX is imported, which reads the environment then. Who has set
    JAX's own variable is left alone, and where nothing can be written nothing is kept.
    """
    if FOLDER in os.environ:
        return
    try:
        folder = user_folder()
        # For the user alone: who can write programs here has them run by this user.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home directory is known
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    prune(folder, LIMIT)
    os.environ[FOLDER] = str(folder)
    os.environ.setdefault(LEAST_SECONDS, "0.1")  # others compile as fast as they load


def user_folder() -> Path:
    """Where a user's programs are: `cir_jax` in what the system has for caches.

    Raises:
        RuntimeError: the user has no home directory.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "cir_jax"
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path.home() / caches / "cir_jax"


def prune(folder: Path, limit: int) -> None:
    """Removes the programs that were used longest ago.

    JAX can do so itself (`jax_compilation_cache_max_size`), but locks the folder for
    every program that it looks up then, wants a package for that, and keeps no program
    any more once it was killed between an entry's two files.

    Args:
        folder: of JAX's cache.
        limit: bytes of the entries that are to stay.
    """
    found = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process may have removed it
            entry = path.stat()
            used = max(entry.st_atime, entry.st_mtime)  # some disks note no reading
            found.append((used, entry.st_size, path))
    size = 0
    for _, bytes_of_entry, path in sorted(found, reverse=True):
        size += bytes_of_entry
        if size > limit:
            with contextlib.suppress(OSError):
                path.unlink()
