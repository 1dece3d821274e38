"""What a command leaves for the next one's start, and what it does not wait for."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from cir_jax import program_cache

COMMAND = (
    "import sys\n"
    "from cir_jax import cli\n"
    "try:\n"
    "    cli.main()\n"
    "finally:\n"
    "    print('imported:', *sys.modules)\n"
)
UNWANTED = {"grain", "orbax", "tensorflow", "tensorstore", "tifffile", "torch"}


def cir(*arguments, **environment):
    """Runs the command in a process without the tests' cache; its output."""
    kept = {n: v for n, v in os.environ.items() if n != program_cache.FOLDER}
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=kept | environment,
    )
    assert result.returncode == 0, result.stderr
    output, _, imported = result.stdout.partition("imported:")
    return output + result.stderr, set(imported.split())


def test_help_waits_for_no_large_package(tmp_path):
    output, imported = cir("restore", "--help", XDG_CACHE_HOME=str(tmp_path))
    assert "usage: cir restore" in output
    assert not imported & {"flax", "jax", "numpy", "PIL", "rich"}


@pytest.fixture
def restore(tmp_path, weights_file):
    """Restores an image in a process; what it printed and imported, and the cache."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")

    def restore():
        output, imported = cir(
            *("restore", tmp_path / "a.png", "-o", tmp_path / "out", "--overwrite"),
            *("--weights", weights_file),
            XDG_CACHE_HOME=str(tmp_path / "caches"),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        assert "1 restored" in output
        return output, imported, set((tmp_path / "caches/cir_jax").iterdir())

    return restore


def test_restoring_compiles_one_program_and_once(restore):
    _, imported, programs = restore()
    assert not imported & UNWANTED
    (program,) = programs
    written = program.stat().st_mtime_ns
    _, _, again = restore()
    assert again == programs and program.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_damaged_program_is_compiled_again(restore):
    _, _, (program,) = restore()
    program.write_bytes(program.read_bytes()[:-100])
    output, _, _ = restore()
    assert "Error reading persistent compilation cache entry for 'jit_apply'" in output


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A user who has set nothing."""
    monkeypatch.delenv(program_cache.LEAST_SECONDS)
    monkeypatch.delenv(program_cache.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return monkeypatch


def test_the_folder_is_the_users_own(own, tmp_path):
    program_cache.keep_programs()
    folder = tmp_path / "caches" / "cir_jax"
    assert os.environ[program_cache.FOLDER] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("platform", "expected"),
    [("linux", ".cache/cir_jax"), ("darwin", "Library/Caches/cir_jax")],
)
def test_where_the_system_has_caches(own, tmp_path, platform, expected):
    own.setenv("XDG_CACHE_HOME", "relative")  # which the standard has ignored
    own.setenv("HOME", str(tmp_path))
    own.setattr(sys, "platform", platform)
    assert program_cache.user_folder() == tmp_path / expected


def test_a_users_own_choice_stands(own, tmp_path):
    own.setenv(program_cache.FOLDER, "")  # JAX's way to say: none
    program_cache.keep_programs()
    assert os.environ[program_cache.FOLDER] == ""
    assert not (tmp_path / "caches").exists()


def test_where_nothing_can_be_written_nothing_is_kept(own, tmp_path):
    (tmp_path / "caches").touch()
    program_cache.keep_programs()
    assert program_cache.FOLDER not in os.environ


def test_what_was_used_longest_ago_goes(tmp_path):
    for number in range(5):
        path = tmp_path / f"jit_f-{number}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + 10 * number, 1000))
    program_cache.prune(tmp_path, 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "jit_f-3-cache",
        "jit_f-4-cache",
    ]
