"""Laws of restorations that vary over the picture: where a map keeps, the picture stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import TINY, tiny_model
from helpers.solvers import SCHEDULE, denoise, draws

from dossr_jax.config import SamplerConfig
from dossr_jax.diffusion.process import toward_lr
from dossr_jax.diffusion.schedule import Schedule, make_schedule, make_timesteps
from dossr_jax.diffusion.solver import cast, make_table, pad_table, sample
from dossr_jax.method import Controls, KeyNoise, Restoration
from dossr_jax.restore import Layout, restore, split

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# --- the process ----------------------------------------------------------------------------


def mapped(schedule: Schedule, k: np.ndarray) -> Schedule:
    """The shifting sequence eta + k (1 - eta) for shares k < 1 over the latent."""
    eta = schedule.eta.reshape(-1, 1, 1, 1, 1)
    return Schedule(schedule.alpha, schedule.sigma, eta + k * (1 - eta), schedule.t1)


def table_of(schedule: Schedule, k: np.ndarray, sampler: SamplerConfig):
    """Its table, at the times of the process without a map; it ends with the process's own mean."""
    times = make_timesteps(schedule, sampler.steps, sampler.grid)
    table = make_table(mapped(schedule, k), sampler, times=times)
    if sampler.final_denoise:
        table = table._replace(ends=table.ends._replace(m_out=1 - k, shift_out=k))
    return table


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", ["sde", "ode"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("final_denoise", [False, True])
def test_a_mapped_eta_draws_predictions_to_the_lr_latent(solver, order, final_denoise):
    """All noise levels grow by 1 / (1 - k); the same run with D' = (1 - k) D + k x_lr remains."""
    sampler = SamplerConfig(steps=6, solver=solver, order=order, final_denoise=final_denoise)
    x_lr, noise_init, noise = draws(6)
    k = np.random.default_rng(1).uniform(0, 0.999, (*x_lr.shape[:3], 1))
    k[:, 0] = 0

    def without_eta(x, point):
        return denoise(x, point._replace(eta=0.0))

    def drawn(x, point):
        return toward_lr(without_eta(x, point), x_lr, k)

    runs = ((without_eta, table_of(SCHEDULE, k, sampler)), (drawn, make_table(SCHEDULE, sampler)))
    first, second = (
        sample(function, x_lr, table, noise_init, lambda i: noise[i]) for function, table in runs
    )
    # 1 - eta of the map, 2.5e-9 at the first time, has eight digits.
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-7)


# --- the program ----------------------------------------------------------------------------

SIDE = 16  # of a canvas; a position of the tiny model's latent has 2 x 2 of its pixels


@pytest.fixture(scope="module")
def networks():
    return split(tiny_model())


def run(networks, lr: np.ndarray, *, keep: bool = False, fidelity: float = 0.0, **sampler):
    """The production program on canvases (b, h, w, 3 or 4) without tiles."""
    graphdef, state = networks
    layout = Layout(color_fix="wavelet", unit=8, keep=keep)
    options = SamplerConfig(steps=3, **sampler)
    table = cast(pad_table(make_table(make_schedule(TINY.process), options), 4), "f4")
    size = np.tile(np.int32(lr.shape[1:3]), (len(lr), 1))
    noise = KeyNoise.of_seeds(range(len(lr)))
    controls = Controls(
        context=state["context"].get_value(),
        negative_context=state["negative_context"].get_value(),
        fidelity=np.float32(fidelity),
    )
    no_tiles = np.zeros((0, 3), np.int32), np.int32(0)
    return restore(graphdef, layout, state, lr, size, *no_tiles, noise, table, controls)


def canvases(*maps: np.ndarray | float, seed: int = 0) -> np.ndarray:
    """Random canvases (b, h, w, 4) uint8 with maps in [0, 1] as their fourth channel."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (len(maps), SIDE, SIDE, 3))
    fourth = np.stack([np.broadcast_to(m, (SIDE, SIDE)) for m in maps])[..., None]
    return np.concatenate([colors, np.round(255 * fourth)], axis=-1).astype(np.uint8)


def latent_means(maps: np.ndarray) -> np.ndarray:
    """k of latent positions (b, h, w, 1) from levels (b, SIDE, SIDE, 1): the unit is 2 pixels."""
    means = maps.reshape(len(maps), SIDE // 2, 2, SIDE // 2, 2, 1).mean((2, 4))
    return means.astype(np.float64) / 255


@pytest.mark.parametrize("fidelity", [0.0, 0.8])
def test_the_program_is_the_solver_of_the_mapped_eta(networks, fidelity):
    """In float64, by make_table of a schedule with the map's eta and the networks' predictions."""
    rng = np.random.default_rng(3)
    lr = canvases(rng.uniform(0, 0.9, (SIDE, SIDE)), 0.5)
    run_ = run(networks, lr, keep=True, fidelity=fidelity)
    assert isinstance(run_, Restoration) and run_.condition is not None and run_.path is not None
    k = latent_means(lr[..., 3:])
    x_lr = np.asarray(run_.condition.x_lr, np.float64)
    drawn = np.asarray(run_.path.x0[:3], np.float64)
    predictions = (drawn - k * x_lr) / (1 - k)
    noise = KeyNoise.of_seeds(range(2))
    shape = x_lr.shape[1:]
    start, steps = noise.initial(shape)[1], [noise.step(jnp.int32(i), shape) for i in range(3)]
    schedule = make_schedule(TINY.process)
    table = table_of(schedule, k, SamplerConfig(steps=3))
    with jax.enable_x64(True):
        expected = sample(
            lambda x, point: jnp.asarray(predictions)[point.index],
            jnp.asarray(x_lr),
            table,
            jnp.asarray(np.asarray(start, np.float64)),
            lambda i: jnp.asarray(np.stack(steps).astype(np.float64))[i],
        )
    # Float32 in the program: rounding of a state that starts at 6.5e5, as without a map.
    np.testing.assert_allclose(run_.latents, expected, rtol=0, atol=2e-6)


def test_kept_latents_are_those_of_the_picture(networks):
    """All predictions are the LR latent itself, bit for bit, whatever the fidelity."""
    for fidelity in (0.0, 0.3, 0.8):
        kept = run(networks, canvases(1.0, 1.0), keep=True, fidelity=fidelity)
        x0, x_lr = np.asarray(kept.path.x0[:3]), np.asarray(kept.condition.x_lr)
        np.testing.assert_array_equal(x0, np.broadcast_to(x_lr, x0.shape))
