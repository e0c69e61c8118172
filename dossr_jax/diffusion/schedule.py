"""Noise schedule, shifting sequence and time grids: NumPy float64, no jax.

Symbols are those of docs/method.md: `alpha` = sqrt(abar), `sigma` = sqrt(1 - abar), `eta` the
shifting sequence, `lam` = sigma / (alpha (1 - eta)) the noise level of the y-view. All of it is
kept in float64 because 1 - eta falls to 2.5e-6, where float32 is off by percents.
Source: DoSSR, arXiv 2409.17778, sections 3 and 4; DDPM, arXiv 2006.11239, for the buffers.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from dossr_jax.config import ConfigError, ProcessConfig
from dossr_jax.config.sampler import TimeGrid

# Smallest and largest standard deviation of the data that the "asinh" grid is spread over. Chosen
# on mixtures of Gaussians of total variance 1 (docs/samplers.md), not on images.
GRID_DEVIATIONS = (0.05, 3.0)


class Levels(NamedTuple):
    """The process at n times: `alpha`, `sigma` (n,), `eta` (n,) or (n, b, h, w, c)."""

    alpha: np.ndarray
    sigma: np.ndarray
    eta: np.ndarray

    @property
    def m(self) -> np.ndarray:
        """Scale of x0 in x, alpha (1 - eta), shaped as eta."""
        return _like(self.alpha, self.eta) * (1 - self.eta)

    @property
    def shift(self) -> np.ndarray:
        """Scale of x_lr in x, alpha eta, shaped as eta."""
        return _like(self.alpha, self.eta) * self.eta

    @property
    def lam(self) -> np.ndarray:
        """Noise level sigma / (alpha (1 - eta)), shaped as eta; eta < 1."""
        return _like(self.sigma, self.eta) / self.m


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The process at its T integer times.

    `alpha`, `sigma`: (T,). `eta`: (T,), or (T, b, h, w, c) with axes that broadcast over the NHWC
    latent (each 1 or full) for a shift that varies over it. `t1` is the number of leading times
    with eta < 1; sampling starts at t1 - 1.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    eta: np.ndarray
    t1: int

    def __post_init__(self) -> None:
        steps = len(self.alpha)
        if self.alpha.shape != (steps,) or self.sigma.shape != (steps,):
            raise ValueError("alpha and sigma are vectors of equal length")
        if self.eta.ndim not in (1, 5) or len(self.eta) != steps:
            raise ValueError(
                f"eta is ({steps},) or ({steps}, b, h, w, c) with axes that broadcast over the "
                f"latent, not {self.eta.shape}"
            )
        if not 2 <= self.t1 <= steps or not (self.eta[: self.t1] < 1).all():
            raise ValueError(f"eta must stay below 1 at the first t1 = {self.t1} times")

    @property
    def lam(self) -> np.ndarray:
        """Noise levels of the first `t1` times, shaped as `eta`; later ones are infinite."""
        return Levels(self.alpha[: self.t1], self.sigma[: self.t1], self.eta[: self.t1]).lam

    @property
    def log_lam(self) -> np.ndarray:
        """log lam of the first `t1` times (t1,); the mean over the latent where eta varies."""
        return np.log(self.lam).reshape(self.t1, -1).mean(axis=1)

    def at(self, t: np.ndarray) -> Levels:
        """Levels at times `t` (n,), each within [0, T - 1] and possibly between two integers.

        Between integers log(sigma / alpha) and log(1 - eta) run linearly, hence log(lam) too, and
        alpha^2 + sigma^2 = 1 holds everywhere; at integers the tabulated values return unchanged.
        """
        t = np.asarray(t, np.float64)
        last = len(self.alpha) - 1
        if t.ndim != 1 or not ((t >= 0) & (t <= last)).all():
            raise ValueError(f"times are a vector within [0, {last}]")
        low = np.floor(t).astype(int)
        high = np.minimum(low + 1, last)
        part = t - low
        whole = part == 0
        # log(0) where eta = 1 or alpha = 0: the interpolant is so too.
        with np.errstate(divide="ignore", invalid="ignore"):
            log_ratio = np.log(self.sigma / self.alpha)
            log_rest = np.log1p(-self.eta)
            ratio = np.exp((1 - part) * log_ratio[low] + part * log_ratio[high])
        alpha = np.where(whole, self.alpha[low], 1 / np.sqrt(1 + ratio**2))
        sigma = np.where(whole, self.sigma[low], ratio / np.sqrt(1 + ratio**2))
        part, whole = _like(part, self.eta), _like(whole, self.eta)
        with np.errstate(invalid="ignore"):  # 0 * inf at integers, which `whole` replaces
            between = -np.expm1((1 - part) * log_rest[low] + part * log_rest[high])
        return Levels(alpha, sigma, np.where(whole, self.eta[low], between))

    def time_of(self, lam: np.ndarray) -> np.ndarray:
        """Times at which the (mean) noise level is `lam`, clipped to [0, t1 - 1]; inverts `at`."""
        return np.interp(np.log(lam), self.log_lam, np.arange(self.t1))

    def no_shift(self) -> Schedule:
        """The plain diffusion with the same noise: eta = 0, so all T times have a finite lam."""
        return Schedule(self.alpha, self.sigma, np.zeros_like(self.alpha), len(self.alpha))


def asinh_coordinate(lam: np.ndarray, deviations: tuple[float, float]) -> np.ndarray:
    """w = asinh(b / lam) - asinh(a / lam) for levels `lam` > 0 and data `deviations` (a, b).

    It runs from 0 at lam = inf to log(b / a) at lam = 0 and is the mean, over all s from a to b
    alike, of 1 / sqrt(s^2 + lam^2): up to a constant, the exact prediction on a probability-flow
    path of Gaussian data with deviation s.
    """
    a, b = deviations
    return np.arcsinh(b / lam) - np.arcsinh(a / lam)


def _asinh_levels(w: np.ndarray, deviations: tuple[float, float]) -> np.ndarray:
    """Levels at coordinates 0 < w <= log(b / a); inverts :func:`asinh_coordinate`."""
    a, b = deviations
    return np.sqrt(a**2 + b**2 - 2 * a * b * np.cosh(w)) / np.sinh(w)


def _like(values: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """A vector (n,) with unit axes appended, so that it multiplies rows of `eta`."""
    return values.reshape(values.shape + (1,) * (eta.ndim - 1))


def make_betas(process: ProcessConfig) -> np.ndarray:
    """The "scaled linear" betas (T,): squares of an even grid between their end points' roots."""
    ends = process.beta_start**0.5, process.beta_end**0.5
    return np.linspace(*ends, process.timesteps, dtype=np.float64) ** 2


def make_eta(name: str, timesteps: int) -> tuple[np.ndarray, int]:
    """Shifting sequence (T,) and t1: half a cosine over the first t1 times, 1 afterwards.

    `name` is "trunc_12", "trunc_13" or "trunc_23": t1 = T//2, T//3 or 2T//3.
    """
    fractions = {"trunc_12": (1, 2), "trunc_13": (1, 3), "trunc_23": (2, 3)}
    if name not in fractions:
        raise ValueError(f"eta is one of {', '.join(fractions)}, not {name!r}")
    part, whole = fractions[name]
    t1 = part * timesteps // whole
    eta = np.ones(timesteps)
    eta[:t1] = (1 - np.cos(np.pi * np.linspace(0.001, 0.999, t1))) / 2
    return eta, t1


def make_schedule(process: ProcessConfig) -> Schedule:
    """Schedule of a configuration."""
    alphas_cumprod = np.cumprod(1 - make_betas(process))
    if process.zero_snr:
        alpha = np.sqrt(alphas_cumprod)
        alphas_cumprod = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    eta, t1 = make_eta(process.eta, process.timesteps)
    return Schedule(np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod), eta, t1)


def release_buffers(process: ProcessConfig) -> dict[str, np.ndarray]:
    """The 15 schedule arrays (T,) float32 that the release's checkpoints carry, by their names.

    They hold no learning. Names are the release's own: its `lambdas` is our eta.
    """
    betas = make_betas(process)
    abar = np.cumprod(1 - betas)
    abar_prev = np.append(1.0, abar[:-1])
    variance = betas * (1 - abar_prev) / (1 - abar)
    eta, _ = make_eta(process.eta, process.timesteps)
    buffers = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": abar_prev,
        "sqrt_alphas_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - abar),
        "log_one_minus_alphas_cumprod": np.log(1 - abar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / abar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / abar - 1),
        "posterior_variance": variance,
        # The first variance is zero: DDPM clips it before the logarithm.
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(abar_prev) / (1 - abar),
        "posterior_mean_coef2": (1 - abar_prev) * np.sqrt(1 - betas) / (1 - abar),
        "logvar": np.zeros_like(betas),
        "lambdas": eta,
        "one_minus_lambdas": 1 - eta,
    }
    return {name: values.astype(np.float32) for name, values in buffers.items()}


def make_timesteps(schedule: Schedule, steps: int, grid: TimeGrid = "uniform") -> np.ndarray:
    """The strictly falling times (float64) of a run, from t1 - 1 to 0.

    There are steps + 1, and the denoiser is evaluated at all but the last; "spaced" has `steps`,
    for as many evaluations. "uniform" gives the release's integers round(i (t1 - 1) / steps),
    the sum accumulated in floats and halves rounded to even; "asinh" is uniform in
    :func:`asinh_coordinate` and gives times between integers; "spaced" gives the integers
    round(i (t1 - 1) / (steps - 1)), and 0 alone for one step.

    Raises:
      ConfigError: more steps than integer times on a grid of integers.
    """
    last = schedule.t1 - 1
    if grid == "spaced":
        if steps > last + 1:
            raise ConfigError(f"steps {steps}: at most {last + 1} on this schedule's spaced grid")
        return np.round(np.linspace(0, last, steps))[::-1] if steps > 1 else np.zeros(1)
    if grid == "uniform":
        if steps > last:
            raise ConfigError(f"steps {steps}: at most {last} on this schedule's uniform grid")
        times, now = [], 0.0
        for _ in range(steps + 1):
            times.append(round(now))
            now += last / steps
        return np.array(times[::-1], np.float64)
    first, end = asinh_coordinate(np.exp(schedule.log_lam[[-1, 0]]), GRID_DEVIATIONS)
    times = schedule.time_of(_asinh_levels(np.linspace(first, end, steps + 1), GRID_DEVIATIONS))
    times[0], times[-1] = last, 0  # exactly, where the inverse rounds
    return times
