"""Programs beside the tests that run in processes of their own and print JSON."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
UNOPTIMISED = (
    "--xla_backend_optimization_level=0 "
    "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
)
"""For XLA_FLAGS: programs compile in little more than half of the time."""


def simulated(devices):
    """XLA_FLAGS for so many CPU devices."""
    return f"--xla_force_host_platform_device_count={devices} {UNOPTIMISED}"


def printed(program, *arguments, **environment):
    """What a program of this folder prints last; others may print before it."""
    result = subprocess.run(
        [sys.executable, TESTS / program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def free_port():
    """A port of this machine that nothing listens to."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
