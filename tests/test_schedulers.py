"""The scheduler for diffusers against our sampler, with one denoiser and one noise for both."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from helpers.diffusers_modules import make_unet, make_vae

from dossr_jax.config import MAX_STEPS, ConfigError, ProcessConfig, SamplerConfig
from dossr_jax.diffusion.process import to_x0
from dossr_jax.diffusion.schedule import make_schedule, make_timesteps
from dossr_jax.diffusion.solver import SolverTable, cast, make_table, pad_table, sample
from dossr_jax.errors import UserError
from dossr_jax.schedulers import DoSSRScheduler
from dossr_jax.systems.dossr.diffusers import read_fields, scheduler_fields

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SCHEDULE = make_schedule(ProcessConfig())
SHAPE = (2, 4, 6, 5)


def network(library, x, t):
    """A smooth nonlinear function of all that a network sees, for jax.numpy and torch."""
    return library.tanh(0.8 * x) + 0.1 * library.sin(3 * x) + t / 20000


def draws(steps: int, dtype=np.float32, seed: int = 0):
    rng = np.random.default_rng(seed)
    arrays = (rng.standard_normal((n, *SHAPE)).astype(dtype) for n in (1, 1, steps))
    x_lr, start, noise = arrays
    return x_lr[0], start[0], noise


@functools.partial(jax.jit, static_argnames="prediction")
def run_ours(x_lr, table: SolverTable, start, noise, prediction="eps"):
    def denoise(x, point):
        return to_x0(x, network(jnp, x, point.t), point.alpha, point.sigma, prediction)

    return sample(denoise, x_lr, table, start, lambda i: noise[i])


def ours(table: SolverTable, x_lr, start, noise, prediction="eps") -> np.ndarray:
    table = cast(pad_table(table, MAX_STEPS), x_lr.dtype)  # one program for all steps
    padded = np.zeros((MAX_STEPS, *SHAPE), noise.dtype)
    padded[: len(noise)] = noise
    return np.asarray(run_ours(x_lr, table, start, padded, prediction))


def theirs(scheduler: DoSSRScheduler, x_lr, start, noise) -> np.ndarray:
    scheduler.set_lr(torch.from_numpy(x_lr))
    scheduler.set_timesteps(len(noise))
    x = scheduler.first_sample(torch.from_numpy(start))
    for t, z in zip(scheduler.timesteps, torch.from_numpy(noise), strict=True):
        output = network(torch, scheduler.scale_model_input(x, t), float(t))
        x = scheduler.step(output, t, x, noise=z).prev_sample
    return x.numpy()


def distance(scheduler: DoSSRScheduler, steps: int, dtype=np.float32) -> float:
    """Largest difference between the two, relative to the range of the result."""
    process, sampler = read_fields(scheduler.config)
    table = make_table(make_schedule(process), dataclasses.replace(sampler, steps=steps))
    inputs = draws(steps, dtype, seed=steps)
    a, b = ours(table, *inputs, process.prediction), theirs(scheduler, *inputs)
    assert a.dtype == b.dtype == dtype
    return np.abs(a - b).max() / np.ptp(a)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["sde", "ode", "asinh"])
@pytest.mark.parametrize("grid", ["uniform", "asinh"])
def test_samples_equal_ours_in_1_to_20_steps(order, solver, grid):
    scheduler = DoSSRScheduler(solver_order=order, solver=solver, grid=grid)
    for steps in range(1, 21):
        assert distance(scheduler, steps) <= 1e-6, steps


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_with_a_network_of_pytorch_samples_equal_ours(called_back, steps):
    """The same UNet on both sides; our compiled sampler calls it back."""
    eps, run = called_back
    rng = np.random.default_rng(steps)
    x_lr, start, *noise = rng.standard_normal((steps + 2, 1, 4, 8, 8)).astype(np.float32)
    padded = np.zeros((MAX_STEPS, 1, 4, 8, 8), np.float32)
    padded[:steps] = noise
    for order in (1, 2, 3):
        table = make_table(SCHEDULE, SamplerConfig(steps=steps, order=order))
        a = run(x_lr, cast(pad_table(table, MAX_STEPS), np.float32), start, padded)
        scheduler = DoSSRScheduler(solver_order=order)
        scheduler.set_lr(torch.from_numpy(x_lr))
        scheduler.set_timesteps(steps)
        x = scheduler.first_sample(torch.from_numpy(start))
        for t, z in zip(scheduler.timesteps, noise, strict=True):
            x = scheduler.step(eps(x, t), t, x, noise=torch.from_numpy(z)).prev_sample
        np.testing.assert_allclose(x, a, rtol=0, atol=1e-6 * np.ptp(a))


@pytest.fixture(scope="module")
def called_back():
    """A UNet of PyTorch, and our sampler with it inside."""
    torch.manual_seed(0)
    unet = make_unet().eval()
    context = torch.randn(1, 5, 32)

    @torch.no_grad()
    def eps(x, t):
        return unet(x, float(t), context).sample

    def host(x, t):
        return eps(torch.from_numpy(np.array(x)), t).numpy()

    def denoise(x, point):
        output = jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, point.t)
        return to_x0(x, output, point.alpha, point.sigma, "eps")

    @jax.jit
    def run(x_lr, table, start, noise):
        return sample(denoise, x_lr, table, start, lambda i: noise[i])

    return eps, run


@pytest.mark.parametrize(
    "fields",
    [
        {"final_denoise": True},
        {"start": "noise", "solver_order": 1},
        {"start": "noise", "solver_order": 2, "solver": "ode", "grid": "spaced"},
        {"grid": "spaced"},
        {"eta_schedule": "trunc_13", "num_train_timesteps": 600, "beta_end": 0.02},
        {
            "start": "noise",
            "grid": "spaced",
            "solver_order": 1,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
        },
    ],
)
def test_other_starts_and_ends_equal_ours(fields):
    for steps in (1, 2, 4, 9):
        assert distance(DoSSRScheduler(**fields), steps) <= 1e-6, steps


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_in_float64_they_are_the_same_sampler(order):
    assert distance(DoSSRScheduler(solver_order=order), 7, np.float64) <= 1e-13


def test_fidelity_draws_every_prediction_to_the_lr_latent():
    x_lr, start, noise = draws(3)
    scheduler = DoSSRScheduler(fidelity=1.0, final_denoise=True)
    np.testing.assert_allclose(theirs(scheduler, x_lr, start, noise), x_lr, atol=1e-6)


def test_v_predictions_stand_for_the_same_x0():
    x_lr, start, noise = draws(1)
    x, v = torch.from_numpy(start), torch.from_numpy(noise[0])
    scheduler = DoSSRScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    scheduler.set_lr(torch.from_numpy(x_lr))
    result = scheduler.step(v, scheduler.timesteps[0], x)
    levels = make_schedule(ProcessConfig(prediction="v", zero_snr=True))
    expected = levels.alpha[499] * start - levels.sigma[499] * noise[0]
    np.testing.assert_allclose(result.pred_original_sample, expected, rtol=1e-5, atol=1e-6)


def test_a_run_that_begins_later_has_no_history_before():
    steps, first = 8, 3
    x_lr, start, noise = draws(steps)
    sampler = SamplerConfig(steps=steps)
    times = make_timesteps(SCHEDULE, steps)[first:]
    table = make_table(SCHEDULE, dataclasses.replace(sampler, steps=steps - first), times=times)
    # It starts from any sample: ours from y, of which that sample is m y + shift x_lr.
    scheduler = DoSSRScheduler()
    scheduler.set_lr(torch.from_numpy(x_lr))
    for index in (None, first):
        scheduler.set_timesteps(steps)
        if index is not None:
            scheduler.set_begin_index(index)
        left = scheduler.timesteps[first:]
        x = scheduler.add_noise(torch.from_numpy(x_lr), torch.from_numpy(start), left[:1])
        for t, z in zip(left, torch.from_numpy(noise), strict=False):
            x = scheduler.step(network(torch, x, float(t)), t, x, noise=z, return_dict=False)[0]
        a = ours(table, x_lr, start, noise[: steps - first])
        np.testing.assert_allclose(x, a, rtol=0, atol=1e-6 * np.ptp(a))


def test_add_noise_is_the_forward_process():
    x_lr, x0, (eps,) = draws(1)
    scheduler = DoSSRScheduler()
    scheduler.set_lr(torch.from_numpy(x_lr))
    t = torch.tensor([40, 480])
    found = scheduler.add_noise(torch.from_numpy(x0), torch.from_numpy(eps), t)
    levels = SCHEDULE.at(np.array([40, 480]))
    m, shift, sigma = (v[:, None, None, None] for v in (levels.m, levels.shift, levels.sigma))
    np.testing.assert_allclose(found, m * x0 + shift * x_lr + sigma * eps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_comes_back(dtype):
    x_lr, start, noise = (torch.from_numpy(a).to(dtype) for a in draws(1))
    results = []
    for kind in (dtype, torch.float32):
        scheduler = DoSSRScheduler(num_inference_steps=2)
        scheduler.set_lr(x_lr)
        arguments = (a.to(kind) for a in (noise[0], start))
        output, x = arguments
        results.append(scheduler.step(output, 499, x, noise=noise[0].float()).prev_sample)
    assert results[0].dtype == dtype
    assert torch.equal(results[0], results[1].to(dtype))


def test_noise_comes_from_the_generator_and_the_ode_draws_none():
    x_lr, start, noise = map(torch.from_numpy, draws(1))

    def step(seed, **fields):
        scheduler = DoSSRScheduler(**fields)
        scheduler.set_lr(x_lr)
        generator = torch.Generator().manual_seed(seed)
        return scheduler.step(noise[0], 499, start, generator=generator).prev_sample

    assert torch.equal(step(0), step(0)) and not torch.equal(step(0), step(1))
    assert torch.equal(step(0, solver="ode"), step(1, solver="ode"))


# --- configuration --------------------------------------------------------------------------


def test_fields_are_a_model_s_process_and_sampler_both_ways():
    process = ProcessConfig(timesteps=600, eta="trunc_23", prediction="v", zero_snr=True)
    sampler = SamplerConfig(
        steps=7, order=2, solver="asinh", grid="asinh", final_denoise=True, fidelity=0.25
    )
    assert read_fields(scheduler_fields(process, sampler)) == (process, sampler)
    assert read_fields({}) == (ProcessConfig(), SamplerConfig())
    defaults = scheduler_fields(ProcessConfig(), SamplerConfig())
    config = DoSSRScheduler().config
    assert {name: value for name, value in config.items() if name[0] != "_"} == defaults


def test_diffusers_saves_and_loads_it(tmp_path):
    scheduler = DoSSRScheduler(solver="asinh", grid="asinh", solver_order=2, num_inference_steps=3)
    scheduler.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert stored["_class_name"] == "DoSSRScheduler" and stored["solver"] == "asinh"
    loaded = DoSSRScheduler.from_pretrained(tmp_path)
    assert torch.equal(loaded.timesteps, scheduler.timesteps) and len(loaded.timesteps) == 3


@pytest.mark.parametrize("other", [PNDMScheduler, DDIMScheduler])
def test_it_takes_the_schedule_of_stable_diffusion_s_own(other):
    trained = {"beta_start": 0.0008, "beta_end": 0.011, "beta_schedule": "scaled_linear"}
    scheduler = DoSSRScheduler.from_config(other(**trained).config)
    process, sampler = read_fields(scheduler.config)
    assert (process.beta_start, process.beta_end) == (0.0008, 0.011)
    assert sampler == SamplerConfig()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"solver_order": 4}, "order 4"),
        ({"solver": "chain"}, "ResShift"),
        ({"grid": "even"}, "grid"),
        ({"beta_schedule": "linear"}, "beta_schedule 'linear'"),
        ({"prediction_type": "sample"}, "prediction_type 'sample'"),
        ({"eta_schedule": "none"}, "eta"),
        ({"num_inference_steps": 51}, "steps 51"),
        ({"rescale_betas_zero_snr": True}, "zero_snr"),
    ],
)
def test_impossible_fields_are_refused_in_one_line(fields, says):
    with pytest.raises(ConfigError, match=says) as caught:
        DoSSRScheduler(**fields)
    assert "\n" not in str(caught.value)


def test_misuse_is_refused_in_one_line():
    x = torch.zeros(2, 4, 6, 5)
    scheduler = DoSSRScheduler(num_inference_steps=1)
    with pytest.raises(UserError, match="call set_lr"):
        scheduler.step(x, 499, x)
    with pytest.raises(UserError, match=r"LR latents are \(2, 4, 6, 4\), the sample \(2, 4, 6, 5"):
        scheduler.step(x, 499, x, lr_latents=x[..., :4])
    scheduler.set_timesteps(1)
    scheduler.set_lr(x[:1])  # one for the whole batch
    with pytest.raises(UserError, match="timestep 498 is none of this run's 1"):
        scheduler.step(x, 498, x)
    scheduler.step(x, torch.tensor(499), x)
    with pytest.raises(UserError, match="this run is over"):
        scheduler.step(x, 499, x)
    scheduler.set_timesteps(1)
    scheduler.set_begin_index(1)
    with pytest.raises(UserError, match="begin index 1: this run has 1"):
        scheduler.step(x, 499, x)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_pipeline_of_diffusers_runs_it_and_stores_it(tmp_path):
    torch.manual_seed(0)
    unet = make_unet().eval()
    pipeline = StableDiffusionPipeline(
        vae=make_vae(),
        unet=unet,
        text_encoder=None,
        tokenizer=None,
        scheduler=DoSSRScheduler(solver="ode", solver_order=2),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    x_lr, noise, context = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32)
    scheduler = pipeline.scheduler
    scheduler.set_lr(x_lr)
    start = scheduler.first_sample(noise)
    found = pipeline(
        prompt_embeds=context,
        latents=start,
        guidance_scale=1.0,
        num_inference_steps=3,
        output_type="latent",
        height=16,
        width=16,
    ).images
    scheduler.set_timesteps(3)
    x = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, context).sample, t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)
    pipeline.save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    assert isinstance(loaded.scheduler, DoSSRScheduler)
    assert loaded.scheduler.config.solver == "ode"
