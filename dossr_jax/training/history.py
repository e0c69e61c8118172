"""What a model file tells of its training: an entry per run, from the first stage to the last."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dossr_jax import systems
from dossr_jax.training.journal import METRICS_FILE

NOTE = "training"  # the header entry of a model file, a JSON list


def describe_training(init: Path | None, run: Path, *, config: str, steps: int) -> str:
    """The value of NOTE: that of the model file `init`, and an entry for the run in folder `run`.

    An entry has the configuration's name, the steps, the version, the commit where the code is a
    git checkout, and the last lines of each kind in the run's metrics.
    """
    entry = {"config": config, "steps": steps, "version": version("dossr-jax")}
    if commit := _commit():
        entry["commit"] = commit
    return json.dumps([*_earlier(init), entry | _last_metrics(run)])


def _earlier(init: Path | None) -> list[dict[str, Any]]:
    if init is None or not init.exists() or not systems.is_model(init):
        return []
    return json.loads(systems.read_header(init).get(NOTE, "[]"))


def _last_metrics(run: Path) -> dict[str, Any]:
    path = run / METRICS_FILE
    if not path.exists():  # a run of which only the checkpoints were kept
        return {}
    lines = map(json.loads, path.read_text().splitlines())
    return {line.pop("kind"): line for line in lines}


def _commit() -> str:
    """What `git describe` says of the checkout that this code lies in; empty without one."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
    ]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
