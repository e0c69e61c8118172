"""ResShift's chain in the terms of dossr_jax.diffusion: a row of the same solvers.

x_t = (1 - eta_t) x0 + eta_t z_y + kappa sqrt(eta_t) noise, z_y the latent of the enlarged
low-resolution image: the domain-shift process with alpha = 1 and sigma = kappa sqrt(eta).
Source: ResShift, arXiv 2307.12348.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dossr_jax.config import ConfigError, SamplerConfig
from dossr_jax.diffusion.schedule import Levels
from dossr_jax.diffusion.solver import SolverTable, assemble
from dossr_jax.systems.resshift.config import ResShiftConfig, ResShiftProcess


def make_levels(process: ResShiftProcess) -> Levels:
    """The process at its steps 0, 1, ...: float64 (steps,) each."""
    first = min(process.min_noise / process.kappa, process.min_noise)
    growth = np.linspace(0, 1, process.steps) ** process.power
    sqrt_eta = first * (process.eta_end / first) ** growth
    return Levels(np.ones(process.steps), process.kappa * sqrt_eta, sqrt_eta**2)


def kept_steps(process: ResShiftProcess, count: int) -> np.ndarray:
    """The steps (count,) int, falling, at which a shorter chain evaluates the network.

    Raises:
      ConfigError: more of them than the chain has.
    """
    if count > process.steps:
        raise ConfigError(f"steps {count}: at most {process.steps}, as the model was trained with")
    kept = (process.steps / count * np.arange(count)).astype(int)
    if process.spacing == "trailing":
        kept += process.steps - 1 - kept[-1]
    return kept[::-1]


def solver_table(config: ResShiftConfig, sampler: SamplerConfig) -> SolverTable:
    """The solver of a model; it ends with x0 itself.

    "chain" draws from the posterior of the chain, as published. The others are those of
    dossr_jax.diffusion on the same marginals; "sde" of order 1 is as random as DDPM.

    Raises:
      ConfigError: more steps than the chain has, or an order that the chain lacks.
    """
    steps = kept_steps(config.process, sampler.steps)
    levels = Levels(*(values[steps] for values in make_levels(config.process)))
    if sampler.solver != "chain":
        return assemble(steps.astype(np.float64), levels, None, sampler)
    if sampler.order != 1:
        raise ConfigError(
            f"order {sampler.order}: solver chain is of order 1; choose --solver sde, ode or asinh"
        )
    table = assemble(
        steps.astype(np.float64), levels, None, dataclasses.replace(sampler, solver="sde")
    )
    eta, following = levels.eta, np.append(levels.eta[1:], 0.0)
    c_y = following * (1 - eta) / (eta * (1 - following))
    c_x0 = np.zeros_like(table.rows.c_x0)
    c_x0[:, 0] = 1 - c_y
    c_noise = config.process.kappa * np.sqrt(following * (eta - following) / eta) / (1 - following)
    return table._replace(rows=table.rows._replace(c_y=c_y, c_x0=c_x0, c_noise=c_noise))
