"""Benchmarks run, in small, and print what they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

ROOT = Path(__file__).parent.parent


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in ("step", "encode", "decode")]


@pytest.mark.parametrize("case", ["rrdb", *SLOW])
def test_network(case):
    command = [sys.executable, ROOT / "benchmarks" / "network.py", "--case", case]
    options = ["--width", "32", "--size", "64", "--repeats", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment, check=True
    )
    (line,) = result.stdout.splitlines()
    values = json.loads(line)
    assert values["case"] == case and values["size"] == 64
    assert values["ratio"] == pytest.approx(values["jax_s"] / values["torch_s"], rel=0.2)
