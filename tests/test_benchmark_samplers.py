"""The benchmark of samplers runs, in small, and shows what the documentation says of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_asinh_is_closer_than_published_in_every_case():
    command = [sys.executable, ROOT / "benchmarks" / "samplers.py", "--samples", "5000"]
    options = ["--samples-nd", "2000", "--samplers", "published", "asinh"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment, check=True
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    w1 = {(x["case"], x["sampler"], x["steps"]): x["w1"] for x in lines}
    assert {case for case, _, _ in w1} == {"1-D", "24-D prior", "24-D posterior"}
    for case, sampler, steps in w1:
        if sampler == "asinh" and steps >= 3:
            assert w1[case, "asinh", steps] < w1[case, "published", steps]
