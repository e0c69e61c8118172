"""Python of the project's own in processes of their own: other devices, several processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
    """Of a process that sees so many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    paths = f"{ROOT}:{ROOT / 'tests'}"
    base = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": paths}
    return os.environ | base | variables


def run_python(
    code: str, *arguments: object, devices: int = 1, seconds: int = 600
) -> subprocess.CompletedProcess:
    """Run code in a process that sees so many devices; it succeeds or the test fails."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=environment(devices, JAX_DISABLE_MOST_OPTIMIZATIONS="1"),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def start_processes(
    command: Sequence[object], processes: int, devices: int, **variables: str
) -> list[subprocess.Popen]:
    """Start the same command in processes that join over jax.distributed on this machine."""
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            variables["JAX_COORDINATOR_ADDRESS"] = f"localhost:{probe.getsockname()[1]}"
        variables["JAX_NUM_PROCESSES"] = str(processes)
        variables["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=environment(devices, JAX_PROCESS_ID=str(i), **variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
