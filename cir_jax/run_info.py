"""What a run was: command, code and machine, for whoever finds its folder later."""

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("cir_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
PACKAGES += ("numpy", "pillow")


def run_info() -> dict[str, Any]:
    """Time, command, git commit, package versions and devices of this process."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "processes": jax.process_count(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def git_commit() -> str | None:
    """The commit that this package's clone is at, with "+changes" where files differ.

    None where it is not a clone, or git is not installed.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # A package that is installed inside some other project's clone is not its code.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changes = "+changes" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "HEAD") + changes
    except (OSError, subprocess.CalledProcessError):
        return None
