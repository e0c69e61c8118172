"""How close samplers of few steps come to the truth: one JSON line per case.

python benchmarks/samplers.py                               # mixtures of Gaussians, exact denoisers
python benchmarks/samplers.py --process resshift            # on the processes of other systems
python benchmarks/samplers.py --model dossr-mini --photos FOLDER   # and photos of a folder

Mixtures: one of three modes in one dimension, and correlated ones in 24 dimensions of which x_lr is
a blurred, noisy observation. There the denoiser is the mean of x0 given y alone ("prior"), or given
y and x_lr ("posterior"), as the network has the hint. `w1` is the Wasserstein-1 distance to the
truth: of the values, or of 32 fixed random projections ("posterior": of what is left after the mean
given x_lr), each divided by the truth's deviation. `floor` is that of a second draw of the truth.
Photos: the middle 256 px of each, degraded by presets; PSNR and SSIM of luma, and SSIMULACRA 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dossr_jax.config import SAMPLERS as NAMED
from dossr_jax.config import ProcessConfig, SamplerConfig
from dossr_jax.diffusion.schedule import Schedule, make_schedule
from dossr_jax.diffusion.solver import SolverTable, make_table
from dossr_jax.image_io import read_image
from dossr_jax.systems import system_of
from dossr_jax.systems.diffbir.config import DiffBIRConfig
from dossr_jax.systems.resshift.config import ResShiftConfig
from dossr_jax.systems.resshift.keys import PROCESSES

STEPS = (2, 3, 4, 5, 7, 10)
# The "jump" grid: after its first evaluation it continues at this noise level, with noise levels
# that are uniform in their 7th root. From the shifted start (lam ~ 6.5e5) down to a few times the
# spread of the data every denoiser answers the same, so one evaluation covers all of it.
JUMP_LAM, JUMP_POWER = 2.5, 7.0
# Name -> (fields of SamplerConfig, or "jump" and "log_lambda" for grids of this benchmark alone).
SAMPLERS: dict[str, dict[str, Any]] = {
    **{name: dict(fields) for name, fields in NAMED.items()},
    "published, order 2": {"order": 2},
    "log_lambda, order 2": {"order": 2, "grid": "log_lambda"},
    "jump, order 2": {"order": 2, "grid": "jump"},
    "jump, ode, order 3": {"order": 3, "solver": "ode", "grid": "jump"},
    "asinh grid, sde, order 2": {"order": 2, "grid": "asinh"},
    "asinh, order 3": {"order": 3, "solver": "asinh", "grid": "asinh"},
    "asinh, final denoising": {**NAMED["asinh"], "final_denoise": True},
}
# Solvers on the processes of other systems; the first is the published one.
SOLVERS: dict[str, dict[str, Any]] = {
    f"{solver}, order {order}": {"solver": solver, "order": order}
    for solver, orders in (("sde", (1, 2, 3)), ("ode", (1, 2, 3)), ("asinh", (2,)))
    for order in orders
}
OTHERS: dict[str, tuple[Any, dict[str, dict[str, Any]]]] = {
    "diffbir": (DiffBIRConfig(), SOLVERS),
    "resshift": (ResShiftConfig(process=PROCESSES["s15"]), {"chain": {}, **SOLVERS}),
}
SIDE, BORDER, PROJECTIONS = 256, 4, 32
Component = tuple[np.ndarray, np.ndarray, np.ndarray]  # mean (1 or n, d), covariance, log weight


def mixture_1d() -> list[Component]:
    """Three modes, deviation about 1 in all."""
    weight, mean, std = (0.3, 0.4, 0.3), (-1.2, 0.1, 1.1), (0.2, 0.15, 0.25)
    return [
        (np.full((1, 1), m), np.full((1, 1), s**2), np.log([w]))
        for w, m, s in zip(weight, mean, std, strict=True)
    ]


def mixture_nd(d: int = 24, modes: int = 5) -> list[Component]:
    """Components with power-law spectra and a gain that varies, mean square 1 in all."""
    rng = np.random.default_rng(1)
    waves = np.cos(np.pi * (np.arange(d)[:, None] + 0.5) * np.arange(d) / d)
    waves /= np.linalg.norm(waves, axis=0)
    parts = []
    for weight in rng.dirichlet(np.full(modes, 3.0)):
        spectrum = 1 / (1 + np.arange(d)) ** rng.uniform(1, 2)
        gain = np.exp(0.5 * waves[:, :4] @ rng.standard_normal(4))[:, None]
        cov = gain * (waves * spectrum @ waves.T) * gain.T
        mean = waves @ (np.sqrt(spectrum) * rng.standard_normal(d))
        parts.append([mean[None], cov * 0.5 * d / np.trace(cov), np.log([weight])])
    weights = np.exp([p[2][0] for p in parts])
    centre = sum(w * p[0] for w, p in zip(weights, parts, strict=True))
    power = sum(w * np.mean((p[0] - centre) ** 2) for w, p in zip(weights, parts, strict=True))
    return [((m - centre) * np.sqrt(0.5 / power), c, w) for m, c, w in parts]


def draw(parts: list[Component], count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples (count, d) of a mixture."""
    mode = rng.choice(len(parts), count, p=np.exp([p[2][0] for p in parts]))
    x = rng.standard_normal((count, parts[0][0].shape[1]))
    for k, (mean, cov, _) in enumerate(parts):
        x[mode == k] = mean + x[mode == k] @ np.linalg.cholesky(cov).T
    return x


def condition(
    parts: list[Component], x_lr: np.ndarray, blur: np.ndarray, noise: float
) -> list[Component]:
    """The mixtures of x0 given each x_lr = blur x0 + noise n."""
    given = []
    for mean, cov, log_weight in parts:
        total = blur @ cov @ blur.T + noise**2 * np.eye(len(blur))
        error, root = x_lr - mean @ blur.T, np.linalg.cholesky(total)
        gain = cov @ blur.T @ np.linalg.inv(total)
        score = -0.5 * np.sum(np.linalg.solve(root, error.T) ** 2, axis=0)
        log_odds = log_weight + score - np.log(np.diag(root)).sum()
        given.append((mean + error @ gain.T, cov - gain @ blur @ cov, log_odds))
    return given


def make_denoiser(parts: list[Component]) -> Callable[[np.ndarray, float], np.ndarray]:
    """The exact mean of x0 given y = x0 + lam eps."""
    axes = [np.linalg.eigh(cov) for _, cov, _ in parts]

    def denoise(y: np.ndarray, lam: float) -> np.ndarray:
        log_odds, means = [], []
        for (mean, _, log_weight), (power, axis) in zip(parts, axes, strict=True):
            power = np.maximum(power, 0)
            error, total = (y - mean) @ axis, power + lam**2
            log_odds.append(log_weight - 0.5 * (error**2 / total + np.log(total)).sum(axis=1))
            means.append(mean + error * (power / total) @ axis.T)
        odds = np.exp(np.array(log_odds) - np.max(log_odds, axis=0))
        odds /= odds.sum(axis=0)
        return sum(o[:, None] * m for o, m in zip(odds, means, strict=True))

    return denoise


def make_times(schedule: Schedule, steps: int, grid: str) -> np.ndarray | None:
    """The steps + 1 falling times of this benchmark's grids; None for the package's."""
    lam_0, lam_1 = np.exp(schedule.log_lam[[0, -1]])
    last = schedule.t1 - 1
    if grid == "log_lambda":
        times = schedule.time_of(np.geomspace(lam_1, lam_0, steps + 1))
    elif grid == "jump":
        levels = np.linspace(*np.array([JUMP_LAM, lam_0]) ** (1 / JUMP_POWER), steps) ** JUMP_POWER
        times = np.append(last, schedule.time_of(levels))
    else:
        return None
    times[0], times[-1] = last, 0  # exactly, where the inverses round
    return times


def table_of(process: str, name: str, steps: int) -> SolverTable:
    """The table of a sampler, as the package makes it."""
    if process != "dossr":
        config, samplers = OTHERS[process]
        table = system_of(config).table
        assert table is not None
        return table(config, dataclasses.replace(config.sampler, steps=steps, **samplers[name]))
    schedule, fields = make_schedule(ProcessConfig()), dict(SAMPLERS[name])
    times = make_times(schedule, steps, fields.get("grid", ""))
    if times is not None:
        del fields["grid"]
    return make_table(schedule, SamplerConfig(steps=steps, **fields), times=times)


def run(denoise: Callable, x_lr: np.ndarray, table: SolverTable, seed: int) -> np.ndarray:
    """A sampler's results (n, d), in NumPy and float64."""
    rows, ends = table
    rng = np.random.default_rng(seed)
    y = ends.init_lr * x_lr + ends.init_noise * rng.standard_normal(x_lr.shape)
    history = [np.zeros_like(y)] * 3
    for i in range(len(rows.t)):
        history = [denoise(y, rows.sigma[i] / rows.m[i]), *history[:2]]
        y = rows.c_y[i] * y + sum(c * d for c, d in zip(rows.c_x0[i], history, strict=True))
        if rows.c_noise[i]:
            y += rows.c_noise[i] * rng.standard_normal(y.shape)
    return ends.m_out * y + ends.shift_out * x_lr


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over projections of the Wasserstein-1 distance; one dimension is left as it is."""
    if a.shape[1] > 1:
        axes = np.random.default_rng(9).standard_normal((a.shape[1], PROJECTIONS))
        axes /= np.linalg.norm(axes, axis=0)
        a, b = a @ axes, b @ axes
        a, b = a / b.std(axis=0), b / b.std(axis=0)
    return float(np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)).mean())


def mixture_cases(
    samples: int, samples_nd: int, process: str, names: Iterable[str]
) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    one, many = mixture_1d(), mixture_nd()
    zero = np.zeros((samples, 1))
    x0, other = draw(one, samples, rng), draw(one, samples, rng)
    cases = [("1-D", make_denoiser(one), zero, zero, x0, other)]
    x0 = draw(many, samples_nd, rng)
    at = np.arange(x0.shape[1])
    blur = np.exp(-0.125 * (at[:, None] - at) ** 2)
    blur /= blur.sum(axis=1, keepdims=True)
    x_lr = x0 @ blur.T + 0.1 * rng.standard_normal(x0.shape)
    other = draw(many, samples_nd, rng)
    cases.append(("24-D prior", make_denoiser(many), x_lr, 0 * x_lr, x0, other))
    denoise = make_denoiser(condition(many, x_lr, blur, 0.1))
    mean = denoise(x_lr, 1e9)
    other_lr = other @ blur.T + 0.1 * rng.standard_normal(x0.shape)
    other = other - make_denoiser(condition(many, other_lr, blur, 0.1))(other_lr, 1e9)
    cases.append(("24-D posterior", denoise, x_lr, mean, x0, other))
    for case, denoise, x_lr, centre, x0, other in cases:
        floor = distance(other, x0 - centre)
        for name in names:
            for steps in STEPS:
                out = run(denoise, x_lr, table_of(process, name, steps), seed=steps)
                yield {
                    "case": case,
                    "process": process,
                    "sampler": name,
                    "steps": steps,
                    "w1": round(distance(out - centre, x0 - centre), 4),
                    "floor": round(floor, 4),
                    "samples": len(x0),
                }


def photo_cases(model: str, folder: Path, photos: slice) -> Iterator[dict[str, Any]]:
    import tempfile

    from PIL import Image
    from ssimulacra2 import compute_ssimulacra2

    from dossr_jax import Upscaler, metrics
    from dossr_jax.data.degradation import choose_presets, degrade

    paths = sorted(p for p in folder.iterdir() if p.suffix == ".png")
    index = np.arange(len(paths))[photos]
    hr = np.stack([_middle(read_image(paths[i])) for i in index])
    upscaler = Upscaler.from_pretrained(model)
    stored = upscaler.config.sampler
    # At fidelity 0 as they are; at the stored one with the stored final denoising too.
    runs = [(0.0, name, done) for done in (False, True) for name in NAMED]
    runs += [(stored.fidelity, name, stored.final_denoise) for name in NAMED]
    for preset in ("light", "realesrgan"):
        program = jax.jit(functools.partial(degrade, presets=choose_presets([preset])))
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(index)
        lr = np.round(255 * np.asarray(program(keys, hr.astype(np.float32) / 255))).astype(np.uint8)
        for fidelity, name, done in dict.fromkeys(runs):
            for steps in (3, 4, 5, 10):
                results = upscaler.restore(
                    list(lr),
                    seed=[int(i) for i in index],
                    sampler=name,
                    steps=steps,
                    final_denoise=done,
                    fidelity=fidelity,
                    batch_size=4,
                )
                pair = [
                    metrics.luma(np.float32(x)[:, BORDER:-BORDER, BORDER:-BORDER] / 255)
                    for x in (np.stack(results), hr)
                ]
                scores = []
                with tempfile.TemporaryDirectory() as scratch:
                    files = [f"{scratch}/hr.png", f"{scratch}/result.png"]
                    for images in zip(hr, results, strict=True):
                        for image, file in zip(images, files, strict=True):
                            Image.fromarray(image).save(file)
                        scores.append(compute_ssimulacra2(*files))
                yield {
                    "case": f"{model}, {preset}",
                    "sampler": name,
                    "final_denoise": done,
                    "fidelity": fidelity,
                    "steps": steps,
                    "psnr_y": round(float(metrics.psnr(*pair, data_range=255.0).mean()), 3),
                    "ssim_y": round(float(metrics.ssim(*pair, data_range=255.0).mean()), 4),
                    "ssimulacra2": round(float(np.mean(scores)), 2),
                    "photos": len(index),
                }


def _middle(image: np.ndarray) -> np.ndarray:
    top, left = ((side - SIDE) // 2 for side in image.shape[:2])
    return image[top : top + SIDE, left : left + SIDE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=200_000, help="in one dimension")
    parser.add_argument("--samples-nd", type=int, default=20_000, help="in 24 dimensions")
    parser.add_argument("--process", choices=("dossr", *OTHERS), default="dossr")
    parser.add_argument("--samplers", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--model", help="also restore photos with this model")
    parser.add_argument("--photos", type=Path, help="folder of photos of 256 px and more")
    parser.add_argument("--first", type=int, default=0, help="of the sorted photos")
    parser.add_argument("--count", type=int, default=6)
    args = parser.parse_args()
    if (args.model is None) != (args.photos is None):
        parser.error("--model and --photos go together")
    known = SAMPLERS if args.process == "dossr" else OTHERS[args.process][1]
    names = known if args.samplers is None else args.samplers
    if unknown := set(names) - set(known):
        parser.error(f"--samplers {', '.join(unknown)}: there are {'; '.join(known)}")
    versions = {"numpy": np.__version__, "jax": jax.__version__, "machine": platform.machine()}
    for line in mixture_cases(args.samples, args.samples_nd, args.process, names):
        print(json.dumps(line | versions), flush=True)
    if args.model is not None:
        photos = slice(args.first, args.first + args.count)
        for line in photo_cases(args.model, args.photos, photos):
            print(json.dumps(line | versions), flush=True)


if __name__ == "__main__":
    main()
