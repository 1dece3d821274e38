"""Memory in pages of 2 MB instead of 4 kB, for what runs on the CPU.

A program of JAX takes its temporary memory anew with every call, and a training step of
PromptCIR spent a fifth of its time on having the system fill 360,000 small pages. The
C library can ask for large ones, but reads the wish only when a process starts.
"""

import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
"""The variable that glibc reads; other C libraries do not know it."""
WISH = "glibc.malloc.hugetlb=1"
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Where Linux says whether programs get large pages: always, never or if they ask."""


def restart_with_huge_pages() -> None:
    """Starts this program once more, in the same process, asking for large pages.

    To be called before anything is done. Nothing happens where asking changes nothing,
    and where the user has set `GLIBC_TUNABLES`.
    """
    if TUNABLES in os.environ or not _given_if_asked_for():
        return
    os.environ[TUNABLES] = WISH
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _given_if_asked_for() -> bool:
    try:
        return "[madvise]" in MODE.read_text()
    except OSError:  # not Linux, or built without large pages
        return False
