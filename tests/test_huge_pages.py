"""The commands' memory comes in large pages where the system has them."""

import subprocess
import sys
from pathlib import Path

import pytest

from cir_jax import huge_pages

PROGRAM = """
import os, sys
from pathlib import Path
from cir_jax import huge_pages
huge_pages.MODE = Path(sys.argv[1])
print("start", os.getpid(), flush=True)
huge_pages.restart_with_huge_pages()
print("end", os.getpid(), os.environ.get(huge_pages.TUNABLES), *sys.argv[2:])
"""


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    monkeypatch.delenv(huge_pages.TUNABLES, raising=False)


@pytest.mark.parametrize(
    ("mode", "tunables", "starts", "found"),
    [
        ("always [madvise] never", None, 2, huge_pages.WISH),
        ("always [madvise] never", "glibc.malloc.check=0", 1, "glibc.malloc.check=0"),
        ("[always] madvise never", None, 1, "None"),
        ("always madvise [never]", None, 1, "None"),
        (None, None, 1, "None"),
    ],
)
def test_a_program_starts_again_if_that_gives_it_large_pages(
    tmp_path, monkeypatch, mode, tunables, starts, found
):
    if tunables:
        monkeypatch.setenv(huge_pages.TUNABLES, tunables)
    if mode:
        (tmp_path / "mode").write_text(mode + "\n")
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    lines = subprocess.run(
        [sys.executable, script, tmp_path / "mode", "a b", "--c"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    process = lines[0].split()[1]
    assert lines == [f"start {process}"] * starts + [f"end {process} {found} a b --c"]


@pytest.mark.parametrize("command", ["cir", "cir_jax.main"])
def test_the_commands_ask_for_large_pages(command):
    script = Path(sys.executable).parent / "cir"
    words = [sys.executable, "-X", "importtime"]  # seen once for every start
    words += [script] if command == "cir" else ["-m", command]
    done = subprocess.run([*words, "--help"], capture_output=True, text=True)
    starts = [line for line in done.stderr.splitlines() if line.endswith(" cir_jax")]
    assert len(starts) == 1 + huge_pages._given_if_asked_for(), done.stderr[-500:]
