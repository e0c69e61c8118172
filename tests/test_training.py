"""Stages: what learns, what the losses are, what a run starts from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.models import tiny_model
from helpers.small import SMALL, STAGES, make_batch, make_config

from dossr_jax import method, parallel, systems, weights
from dossr_jax.area_means import keep_area_means
from dossr_jax.config import ConfigError, ParallelConfig, SamplerConfig, VAEConfig
from dossr_jax.diffusion import process
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.draws import Draw
from dossr_jax.errors import UserError
from dossr_jax.pipeline import Upscaler
from dossr_jax.systems.dossr.release import load_release
from dossr_jax.systems.rrdb import read_rrdb
from dossr_jax.training import state as run_state
from dossr_jax.training import step as run_step
from dossr_jax.training.params import make_model
from dossr_jax.training.stages import DoSSRStage, PriorStage, RRDBStage, latent
from dossr_jax.training.stages.base import Inputs, draw_normal, pre_restore_crops
from dossr_jax.training.stages.dossr import predict_x0
from dossr_jax.training.stages.vae import VAEStage, set_scale_factor, start_from_linear_code

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)


def begin(stage, init=None, **changes):
    config = make_config(stage, **changes)
    mesh = parallel.make_mesh(config.parallel.fsdp)
    run = run_state.start_run(config, init, mesh, lambda: make_batch()["hr"])
    return mesh, run


def flat(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module", params=STAGES)
def trained(request):
    """A run of each stage, with host copies of its state, after 60 steps on one batch."""
    mesh, run = begin(request.param)
    measure = run_step.make_eval_step(run.config, run.graphdef, mesh)
    step = run_step.make_train_step(run.config, run.graphdef, mesh)
    batch = make_batch()
    before, first = flat(run.state), measure(run.state, batch, None)
    state = run.state
    for _ in range(60):
        state, _ = step(state, batch)
    return request.param, before, flat(state), first, (measure, state, batch)


def test_only_what_should_learn_learns(trained):
    stage, before, after, *_ = trained
    module = {"prior": "unet", "dossr": "control"}.get(stage, stage)
    changed = {name for name in before if (before[name] != after[name]).any()}
    learn = {name for name in before if name.startswith(".learn")}
    assert learn == {name for name in before if name.startswith(f".learn['{module}.")}
    assert learn & changed and not any(name.startswith(".frozen") for name in changed)
    assert not any(f"['{module}." in name for name in before if name.startswith(".frozen"))
    assert after[".step"] == 60 and ".key" not in changed


def test_loss_falls(trained):
    _, _, _, first, (measure, state, batch) = trained
    assert np.mean(measure(state, batch, None)["loss"]) < 0.97 * np.mean(first["loss"])


def test_a_samples_loss_does_not_depend_on_its_batch(trained):
    *_, (measure, state, batch) = trained
    turned = {name: value[::-1] for name, value in batch.items()}
    np.testing.assert_allclose(
        measure(state, batch, None)["loss"],
        measure(state, turned, None)["loss"][::-1],
        rtol=1e-5,
    )


def test_decoder_and_low_rank_updates_learn_where_asked():
    mesh, run = begin("dossr", learn_decoder=True, lora_rank=2)
    prefixes = ("control.", "unet.up.", "unet.norm_out.", "unet.conv_out.", "lora.unet.")
    assert all(name.startswith(prefixes) for name in run.state.learn)
    assert not any(name.startswith(prefixes) for name in run.state.frozen)
    before = flat(run.state.learn)
    step = run_step.make_train_step(run.config, run.graphdef, mesh)
    state = run.state
    for i in range(3):  # the second factors start at zero: the first ones wait for them
        state, _ = step(state, make_batch(i))
    after = flat(state.learn)
    changed = {name for name in before if (before[name] != after[name]).any()}
    for prefix in prefixes:
        assert any(f"['{prefix}" in name for name in changed), prefix


def test_dossr_loss_is_the_releases(golden_dir):
    """Loss of every sample of the stored batch, through the production converter, in float32."""
    archive = np.load(golden_dir / "golden.npz")
    model = load_release(
        golden_dir / "weights.safetensors",
        golden_dir / "config.yaml",
        context=archive["context"],
        negative_context=archive["context_neg"],
    )

    def image(name):
        return jnp.asarray(np.moveaxis(archive[name], 1, -1))

    prediction = jax.jit(lambda *args: predict_x0(model, *args))(
        image("train_x"),
        image("train_x_hat"),
        image("eps_hint"),
        jnp.asarray(archive["eps_context"]),
        jnp.asarray(archive["eps_t"], jnp.int32),
        image("train_noise"),
    )
    loss = process.training_loss(image("train_x"), prediction, per_sample=True)
    np.testing.assert_allclose(loss, archive["train_loss_per_sample"], rtol=1e-5)
    np.testing.assert_allclose(np.mean(loss), archive["train_loss"], rtol=1e-5)


def test_the_shifted_prediction_is_the_definition():
    """D = (x - sigma e) / alpha at alpha ((1 - eta) x0 + eta x_lr) + sigma eps."""
    model = make_model(SMALL, 1, zero_output=False)
    rng = np.random.default_rng(0)
    x0, x_lr, eps = jnp.asarray(rng.standard_normal((3, 2, 4, 4, 4)), jnp.float32)
    schedule, t = make_schedule(SMALL.process), np.array([130, 700])
    alpha, sigma, eta = (
        a[t][:, None, None, None].astype(np.float32)
        for a in (schedule.alpha, schedule.sigma, schedule.eta)
    )
    x = alpha * ((1 - eta) * x0 + eta * x_lr) + sigma * eps
    context = jnp.ones((2, 1, 8))
    out = model.predict_noise(jnp.asarray(x), jnp.asarray(t), context, jnp.asarray(x_lr))
    want = (x - sigma * np.asarray(out)) / alpha
    got = predict_x0(model, x0, x_lr, x_lr, context, jnp.asarray(t), eps)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_configurations_sampler_is_the_one_that_a_run_trains_for(tmp_path):
    """Whatever file it starts from; with residual, latents that are x_lr give the pre-restored
    image itself."""
    _, run = begin("dossr")
    path = tmp_path / "plain.safetensors"
    systems.save_model(path, run_state.trained_model(run))
    sampler = dataclasses.replace(run.config.model.sampler, color_fix="residual", fidelity=0.5)
    config = dataclasses.replace(run.config.model, sampler=sampler)
    _, run = begin("dossr", init=path, model=config)
    model = run_state.trained_model(run)
    assert model.config.sampler == sampler
    rng = np.random.default_rng(0)
    pre, other = jnp.asarray(rng.random((2, 2, 48, 48, 3)), jnp.float32)
    x_lr, latents = (model.latents(model.encode(jnp.asarray(i))[0]) for i in (pre, other))
    _, image = method.decode_latents(model, x_lr, x_lr, pre, "residual")
    np.testing.assert_allclose(image, pre, atol=1e-6)
    got = method.decode_latents(model, latents, x_lr, pre, "residual")[1] - pre
    np.testing.assert_allclose(got, model.decode(latents) - model.decode(x_lr), atol=1e-6)


def test_training_samples_what_the_command_restores(monkeypatch):
    """Training's samples are those of the command, whose mean colours it then keeps: without noise,
    pixel for pixel."""
    sampler = SamplerConfig(steps=2, order=1, final_denoise=True, fidelity=0.5)
    config = dataclasses.replace(SMALL, sampler=sampler)
    model = tiny_model(config=config)
    model.vae.encoder.conv_out.bias[...] = jnp.zeros(8).at[4:].set(-60.0)  # no posterior noise
    shown = jax.random.uniform(jax.random.key(1), (1, 12, 12, 3))
    lr = jnp.round(255 * shown)
    monkeypatch.setattr(
        method, "batch_position_noise", lambda keys, *shape, origin: jnp.zeros((len(keys), *shape))
    )
    inputs = Inputs(jnp.zeros((1, 48, 48, 3)), lr / 255, jax.random.split(KEY, 1))
    size = jnp.array([[12, 12]], jnp.int32)
    sampled = keep_area_means(latent.sample_images(model, inputs).result, lr / 255, size)
    upscaler = Upscaler(model, tile=0, devices=jax.devices()[:1])
    got = upscaler.restore(np.asarray(lr[0], np.uint8))
    assert np.abs(got / 255 - np.clip(sampled[0], 0, 1)).max() < 1 / 255


def test_a_control_that_starts_from_noise_learns_plain_diffusion_with_the_same_hint():
    """Mean of (eps - e)^2 at alpha x0 + sigma eps; the model then samples from noise by itself."""
    config = make_config("dossr", start="noise")
    mesh, run = begin("dossr", start="noise")
    assert run.config.model.sampler.start == "noise"
    model = run_state.trained_model(run)
    batch, key = make_batch(), jax.random.key(3)
    inputs = run_step.make_inputs(config, mesh)(jax.random.key_data(key), batch)
    count = len(batch["hr"])
    t = jnp.arange(count, dtype=jnp.int32) * 900 // count + 50
    got, _ = config.stage.loss(model, inputs, t)

    x0 = latent.encode_hr(model, inputs)
    _, hint = model.encode(pre_restore_crops(model, inputs))
    eps = draw_normal(inputs.keys, Draw.NOISE, x0.shape[1:])
    schedule = make_schedule(config.model.process)
    alpha, sigma = (
        np.float32(a)[np.asarray(t)][:, None, None, None] for a in (schedule.alpha, schedule.sigma)
    )
    context = jnp.broadcast_to(model.negative_context[...], (count, *model.context.shape))
    out = model.predict_noise(alpha * x0 + sigma * eps, t, context, model.latents(hint))
    np.testing.assert_allclose(got, np.mean((out - eps) ** 2, axis=(1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize(
    ("stage", "low", "high"),
    [
        (DoSSRStage(), 0, 999),
        (DoSSRStage(times="visited"), 0, 499),
        (DoSSRStage(times="first"), 499, 499),
        (PriorStage(), 0, 999),
    ],
)
def test_times_are_uniform_over_what_the_run_trains(stage, low, high):
    keys = jax.random.split(KEY, 4000)
    times = stage.time_range(SMALL)
    t = np.asarray(latent.draw_times(keys, *times))
    assert t.min() >= low and t.max() <= high
    assert t.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low) + 1e-9)


def test_control_starts_as_the_prior():
    """A fresh ControlNet changes nothing, whatever the hint, and is the UNet's encoder."""
    _, run = begin("dossr")
    model = run_state.trained_model(run)
    x, hint = jax.random.normal(KEY, (2, 1, 4, 4, 4))
    t, context = jnp.array([700.0]), jnp.ones((1, 1, 8))
    np.testing.assert_array_equal(
        model.predict_noise(x, t, context, hint), model.predict_noise(x, t, context, None)
    )
    encoder = dict(weights.names_and_params(model.control.encoder))
    for name, param in weights.names_and_params(model.unet.encoder):
        width = param.shape[2] if name == "conv_in.kernel" else None
        copy = encoder[name][...]
        np.testing.assert_array_equal(copy if width is None else copy[:, :, :width], param[...])


def test_a_run_starts_from_a_file_and_keeps_its_scale_factor(tmp_path):
    model = make_model(SMALL, 3, zero_output=True)
    vae = dataclasses.replace(SMALL.vae, scale_factor=0.7)
    model.config = dataclasses.replace(SMALL, vae=vae)
    systems.save_model(tmp_path / "m.safetensors", model)
    parallel_config = ParallelConfig(frozen_dtype="bfloat16")
    _, run = begin("rrdb", tmp_path / "m.safetensors", parallel=parallel_config)
    assert run.config.model.vae.scale_factor == 0.7
    for name, param in weights.names_and_params(model):
        learnt = name.startswith("rrdb.")
        value = (run.state.learn if learnt else run.state.frozen)[name]
        assert value.dtype == (jnp.float32 if learnt else jnp.bfloat16)
        np.testing.assert_array_equal(value, param[...].astype(value.dtype), err_msg=name)


def test_another_architecture_is_refused(tmp_path):
    systems.save_model(tmp_path / "m", make_model(SMALL, 0, zero_output=True))
    other = dataclasses.replace(SMALL, rrdb=dataclasses.replace(SMALL.rrdb, growth=8))
    with pytest.raises(UserError, match="networks"):
        begin("rrdb", tmp_path / "m", model=other)


def test_presets_must_fit_the_models_enlargement():
    data = dataclasses.replace(make_config("rrdb").data, presets=("denoise",))
    with pytest.raises(UserError, match="reduced by 1 .*denoise.*DoSSR, which enlarges by 4"):
        run_step.choose_presets(make_config("rrdb", data=data))
    with pytest.raises(UserError, match="mud"):
        run_step.choose_presets(
            make_config("rrdb", data=dataclasses.replace(data, presets=("mud",)))
        )


def test_linear_start_is_the_principal_component_code():
    vae = VAEConfig(
        z_channels=4,
        base_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        norm_groups=8,
        patch_size=4,
    )
    model = make_model(dataclasses.replace(SMALL, vae=vae), 0, zero_output=True)
    images = make_batch(crop=32)["hr"]
    start_from_linear_code(model, images)
    set_scale_factor(model, images)
    image = images / np.float32(255)
    moments = model.encode(image)[0]
    out = np.asarray(model.decode(model.latents(moments)))
    patches = image.reshape(4, 8, 4, 8, 4, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 48)
    center = patches.mean(axis=0)
    axes = np.linalg.eigh(np.cov(patches, rowvar=False))[1][:, ::-1][:, :4]
    code = (patches - center) @ axes @ axes.T + center
    code = code.reshape(4, 8, 8, 3, 4, 4).transpose(0, 1, 4, 2, 5, 3).reshape(image.shape)
    # The norm's deviation is fixed up to the share that the latents themselves have in it.
    assert np.abs(out - code).mean() < 0.02 * np.abs(code - code.mean()).mean()
    np.testing.assert_allclose(np.std(model.latents(moments)), 1, rtol=1e-3)


@pytest.mark.parametrize("change", [{"channel_mult": (1, 2)}, {"base_channels": 8}])
def test_an_autoencoder_without_a_linear_code_starts_from_random_weights(change):
    vae = dataclasses.replace(SMALL.vae, **change)
    model = make_model(dataclasses.replace(SMALL, vae=vae), 0, zero_output=True)
    before = np.array(model.vae.encoder.conv_in.kernel[...])
    VAEStage().initialize(model, lambda: make_batch(crop=32)["hr"])
    np.testing.assert_array_equal(model.vae.encoder.conv_in.kernel[...], before)


def test_average_follows_the_weights():
    mesh, run = begin("rrdb", optimizer={"ema_decay": 0.9})
    old = flat(run.state.learn)
    state, _ = run_step.make_train_step(run.config, run.graphdef, mesh)(run.state, make_batch())
    new = flat(state.learn)
    # At the first step the decay is still 1/10: nine tenths of the way to the new weights.
    for name, value in flat(state.ema).items():
        want = old[name] + 0.9 * (new[name] - old[name])
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-6)


def test_a_pre_restorer_may_start_as_some_blocks_of_another(tmp_path):
    """Block i of the run is block `blocks[i]` of the file; all else is the file's."""
    rrdb = dataclasses.replace(SMALL.rrdb, num_blocks=3)
    other = tmp_path / "other.safetensors"
    systems.save_model(other, tiny_model(config=dataclasses.replace(SMALL, rrdb=rrdb)))
    _, tensors = read_rrdb(other)
    model = dataclasses.replace(SMALL, rrdb=dataclasses.replace(rrdb, num_blocks=2))
    _, run = begin("rrdb", model=model, start=str(other), blocks=(0, 2))
    for name, value in run.state.learn.items():
        of_other = name.removeprefix("rrdb.").replace("body.1.", "body.2.")
        np.testing.assert_array_equal(value, tensors[of_other].load())
    for blocks in ((0, 3), (0, 1, 2), ()):
        with pytest.raises(UserError, match="change model.rrdb or stage.blocks"):
            begin("rrdb", model=model, start=str(other), blocks=blocks)


def test_an_exported_pre_restorer_lies_between_its_start_and_what_it_learnt(tmp_path):
    """`start_share` s of the start and 1 - s of the learnt weights; nothing else moves."""
    start = tmp_path / "start.safetensors"
    systems.save_model(start, tiny_model())
    _, tensors = read_rrdb(start)
    stage = RRDBStage(start=str(start), start_share=0.25)
    learnt = make_model(SMALL, 1, zero_output=True)
    before = dict(weights.names_and_params(nnx.clone(learnt)))
    stage.finalize(learnt, lambda: pytest.fail("looked at crops"))
    for name, param in weights.names_and_params(learnt):
        want = before[name][...]
        if name.startswith("rrdb."):
            want = 0.25 * tensors[name.removeprefix("rrdb.")].load() + 0.75 * want
        np.testing.assert_allclose(param[...], want, rtol=1e-6, atol=1e-8)
    with pytest.raises(ConfigError, match="needs stage.start"):
        RRDBStage(start_share=0.5)
