"""The benchmark of training runs, in small, and prints what it promises."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_it_trains_and_accounts():
    command = [sys.executable, ROOT / "benchmarks" / "train.py", "--config", "tiny"]
    options = ["--batch", "2", "--steps", "2", "--remat", "full"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment, check=True
    )
    (line,) = result.stdout.splitlines()
    values = json.loads(line)
    assert values["finite"] and len(values["losses"]) == 2 and values["remat"] == "full"
    assert values["images_per_s"] == pytest.approx(2 / values["step_s"], rel=0.1)
    speed = values["flops_per_sample"] * values["images_per_s"]
    assert values["fraction_of_peak"] == pytest.approx(
        speed / values["peak_flops_measured"], abs=1e-4
    )
    assert values["peak_bytes"] > 2**20
