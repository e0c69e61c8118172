"""Our side of the schedule entries: NumPy float64, whatever dtype the networks run in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dossr_jax.crosscheck.entries import Entry
from dossr_jax.crosscheck.folder import Archive, Folder
from dossr_jax.crosscheck.runner import Results
from dossr_jax.diffusion import schedule


def results(folder: Folder, archive: Archive, entries: Sequence[Entry]) -> Results:
    """Results by name; an entry of which only the form is known is left out."""
    (model,) = folder.models.values()
    process = model.config.process
    table = schedule.make_schedule(process)
    buffers = schedule.release_buffers(process)
    found = {}
    for entry in entries:
        fields = entry.match.groupdict()
        match entry.form:
            case "schedule":
                value = _run_levels(table, int(fields["steps"])).get(fields["what"])
            case "eta":
                length = len(archive.arrays[f"eta_{fields['eta']}"])
                eta, t1 = schedule.make_eta(fields["eta"], length)
                value = np.asarray(t1) if fields["t1"] else eta
            case "betas":
                value = schedule.make_betas(process)
            case "buffer":
                value = buffers.get(fields["what"])
            case _:
                raise AssertionError(entry.form)
        if value is not None:
            found[entry.name] = value
    return found


def _run_levels(table: schedule.Schedule, steps: int) -> dict[str, np.ndarray]:
    """What the release's sampler tabulates for a run, by its names, in rising t."""
    times = schedule.make_timesteps(table, steps)[::-1]
    levels = table.at(times)
    abar = levels.alpha**2
    return {
        "timesteps": times,
        "etas": levels.eta,
        "one_minus_etas": 1 - levels.eta,
        "betas": 1 - abar / np.append(1.0, abar[:-1]),
        "alphas_cumprod": abar,
        "sqrt_recip_alphas_cumprod": 1 / levels.alpha,
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / abar - 1),
        "alphas_multi_one_minus_etas": levels.m,
        "sigmas": levels.sigma,
        "lambdas": levels.lam,
    }
