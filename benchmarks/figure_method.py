"""Draws docs/method.png: the forward process, its noise levels, and the table of a solver.

python benchmarks/figure_method.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from dossr_jax.config import ProcessConfig, SamplerConfig
from dossr_jax.diffusion.schedule import make_schedule, make_timesteps
from dossr_jax.diffusion.solver import make_table

ROOT = Path(__file__).parent.parent
STEPS = 5


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    schedule = make_schedule(ProcessConfig())
    figure, (process, levels, table) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for values, label in ((schedule.alpha, "alpha"), (schedule.sigma, "sigma")):
        process.plot(values, label=label)
    process.plot(schedule.eta, label="eta")
    process.axvline(schedule.t1 - 1, color="grey", linestyle=":", label="T1 - 1, the start")
    process.set(title="forward process", xlabel="t")
    process.legend()
    levels.semilogy(schedule.lam, color="grey", label="lambda")
    for grid, mark in (("uniform", "o"), ("asinh", "x")):
        times = make_timesteps(schedule, STEPS, grid)
        level = np.exp(np.interp(times, np.arange(schedule.t1), schedule.log_lam))
        levels.semilogy(times, level, mark, label=f"grid {grid}, {STEPS} steps")
    levels.set(title="noise level of y", xlabel="t")
    levels.legend()
    rows = make_table(schedule, SamplerConfig(steps=STEPS)).rows
    steps = np.arange(1, STEPS + 1)
    weights = {"c_y": rows.c_y} | {f"c_{i}": rows.c_x0[:, i] for i in range(3)}
    for i, (label, values) in enumerate(weights.items()):
        table.bar(steps + 0.2 * (i - 1.5), np.ravel(values), 0.2, label=label)
    table.axhline(0, color="black", linewidth=0.5)
    table.set(title=f"weights of the published solver, {STEPS} steps", xlabel="step")
    table.legend(loc="lower left")
    figure.savefig(ROOT / "docs" / "method.png", dpi=80)


if __name__ == "__main__":
    main()
