"""Stages, steps, saving: at tiny width, on random data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dossr_jax import training, weights
from dossr_jax.config import (
    DoSSRConfig,
    RRDBConfig,
    TrainConfig,
    UNetConfig,
    VAEConfig,
    Window,
)
from dossr_jax.diffusion.schedule import make_schedule
from dossr_jax.errors import UserError

MODEL = DoSSRConfig(
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        head_dim=8,
        context_dim=8,
        norm_groups=4,
        attention_levels=(False,),
    ),
    vae=VAEConfig(
        z_channels=4,
        base_channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        norm_groups=4,
        patch_size=4,
    ),
    rrdb=RRDBConfig(num_features=8, num_blocks=1, growth=4, upsampler="shuffle"),
    context_length=1,
)
KEY = jax.random.key(0)


def make_config(stage, **changes):
    options = {"steps": 20, "learning_rate": 3e-3, "warmup": 1, "ema_decay": 0.5, **changes}
    return TrainConfig(stage=stage, model=MODEL, windows=(Window(size=4, batch=2),), **options)


def make_batch(stage, seed=0):
    rng = np.random.default_rng(seed)
    if training.STAGES[stage].latent:
        x0 = rng.standard_normal((2, 4, 4, 4)).astype(np.float32)
        x_lr = x0 + 0.3 * rng.standard_normal(x0.shape).astype(np.float32)
        return {"x0": x0, "x_lr": x_lr, "prompt": np.array([0, 1])}
    hr = rng.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    return {"hr": hr, "lr": hr[:, ::4, ::4]}


def smooth_images(shape):
    """Random photos (b, h, w, 3) uint8 whose neighbouring pixels are alike, as real ones' are."""
    noise = np.random.default_rng(0).standard_normal(shape)
    for axis in (1, 2):
        noise = np.cumsum(noise, axis=axis)
    noise -= noise.min()
    return (255 * noise / noise.max()).astype(np.uint8)


def start(stage, **changes):
    config = make_config(stage, **changes)
    model = training.load_for(config, None)
    if stage == "dossr":  # a fresh UNet's output is zero, which would hide the ControlNet
        kernel = model.unet.conv_out.kernel
        kernel[...] = 0.1 * jax.random.normal(KEY, kernel.shape)
    graphdef, state = training.init_state(config, model)
    return config, graphdef, state


def flat(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


@pytest.mark.parametrize("stage", training.STAGES)
def test_only_the_named_modules_learn(stage):
    config, graphdef, state = start(stage)
    before = flat((state.learn, state.frozen))
    (module,) = training.STAGES[stage].modules
    assert all(f"'{module}'" in name for name in flat(state.learn))
    step = training.make_train_step(config, graphdef)
    for _ in range(3):
        state, _ = step(state, make_batch(stage), KEY)
    after = flat((state.learn, state.frozen))
    assert before.keys() == after.keys()
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed and all(name.startswith("[0]") for name in changed)
    assert int(state.step) == 3


@pytest.mark.parametrize("stage", training.STAGES)
def test_loss_falls(stage):
    config, graphdef, state = start(stage, steps=120)
    step, batch = training.make_train_step(config, graphdef), make_batch(stage)
    evaluate = training.make_eval_step(config, graphdef)
    first = float(evaluate(state, batch, KEY)["loss"])
    for _ in range(60):
        state, _ = step(state, batch, KEY)
    assert float(evaluate(state, batch, KEY)["loss"]) < 0.97 * first


def test_dossr_loss_is_the_definition():
    """mean |x0 - D|, D = (x - sigma e) / alpha, on the shifted marginal: from first principles."""
    config = make_config("dossr")
    model = training.load_for(config, None)
    batch = make_batch("dossr")
    schedule = make_schedule(MODEL.process)
    key_t, key_eps = jax.random.split(KEY)
    t = np.asarray(jax.random.randint(key_t, (2,), 0, 1000))
    eps = np.asarray(jax.random.normal(key_eps, (2, 4, 4, 4)))
    alpha, sigma, eta = (
        a[t][:, None, None, None].astype(np.float32)
        for a in (schedule.alpha, schedule.sigma, schedule.eta)
    )
    x = alpha * ((1 - eta) * batch["x0"] + eta * batch["x_lr"]) + sigma * eps
    context = jnp.stack([model.context[...], model.negative_context[...]])
    out = model.predict_noise(jnp.asarray(x), jnp.asarray(t), context, jnp.asarray(batch["x_lr"]))
    want = np.abs(batch["x0"] - (x - sigma * np.asarray(out)) / alpha).mean()
    got, _ = training.dossr_loss(model, batch, KEY, config)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_control_starts_as_the_prior():
    """A fresh ControlNet changes nothing, whatever the hint."""
    config, prior = make_config("dossr"), training.make_model(MODEL, 1)
    training.start_control(prior)
    batch = make_batch("dossr")
    x, t, context = batch["x0"], jnp.array([3.0, 700.0]), jnp.ones((2, 1, 8))
    np.testing.assert_array_equal(
        prior.predict_noise(x, t, context, batch["x_lr"]), prior.predict_noise(x, t, context, None)
    )
    encoder = dict(weights.names_and_params(prior.control.encoder))
    for name, param in weights.names_and_params(prior.unet.encoder):
        width = param.shape[2] if name == "conv_in.kernel" else None
        copy = encoder[name][...]
        np.testing.assert_array_equal(copy if width is None else copy[:, :, :width], param[...])
    assert config.stage == "dossr"


def test_resume_continues_exactly(tmp_path):
    config, graphdef, state = start("rrdb")
    step = training.make_train_step(config, graphdef)
    for i in range(3):
        state, _ = step(state, make_batch("rrdb", i), KEY)
    path = tmp_path / "state.safetensors"
    training.save_state(path, config, state)
    restored = training.restore_state(path, dataclasses.replace(config, minutes=1), state)
    assert flat(restored).keys() == flat(state).keys()
    for i in range(3, 6):
        state, _ = step(state, make_batch("rrdb", i), KEY)
        restored, _ = step(restored, make_batch("rrdb", i), KEY)
    for name, value in flat(state).items():
        np.testing.assert_array_equal(value, flat(restored)[name], err_msg=name)


def test_another_configuration_is_refused(tmp_path):
    config, _, state = start("rrdb")
    training.save_state(tmp_path / "s", config, state)
    with pytest.raises(UserError, match="another configuration"):
        training.restore_state(tmp_path / "s", dataclasses.replace(config, clip=2.0), state)
    weights.save_model(tmp_path / "m", training.make_model(MODEL, 0))
    other = dataclasses.replace(MODEL, rrdb=dataclasses.replace(MODEL.rrdb, growth=8))
    with pytest.raises(UserError, match="architecture"):
        training.load_for(dataclasses.replace(config, model=other), tmp_path / "m")


def test_linear_start_is_the_principal_component_code(tmp_path):
    vae = VAEConfig(
        z_channels=4,
        base_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        norm_groups=8,
        patch_size=4,
    )
    model = training.make_model(dataclasses.replace(MODEL, vae=vae), 0)
    images = smooth_images((4, 32, 32, 3))
    training.start_vae(model, images)
    training.set_scale_factor(model, images)
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

    x0, x_lr = training.encode_pair(model, images, images[:, ::4, ::4])
    np.testing.assert_allclose(x0, model.latents(moments), atol=1e-5)
    assert x_lr.shape == x0.shape
    training.export(tmp_path / "m.safetensors", model, {"license": "none"})
    again = weights.load_model(tmp_path / "m.safetensors")
    assert again.config == model.config
    np.testing.assert_array_equal(again.context[...], model.context[...])


def test_learning_rate_warms_up_and_ends_at_zero():
    config = make_config("vae", warmup=10, learning_rate=2.0)
    rate = [float(training.learning_rate(config, jnp.int32(s), jnp.int32(100))) for s in range(101)]
    assert rate[0] == pytest.approx(0.2) and rate[100] == pytest.approx(0, abs=1e-6)
    assert np.argmax(rate) in (9, 10) and (np.diff(rate[10:]) < 0).all()


def test_average_follows_the_weights():
    config, graphdef, state = start("rrdb", ema_decay=0.9)
    state, _ = training.make_train_step(config, graphdef)(state, make_batch("rrdb"), KEY)
    averaged = nnx.state(training.averaged_model(graphdef, state), nnx.Param)
    # After one step the decay is still 1/10: nine tenths of the way to the new weights.
    name = "['rrdb']['conv_first']['kernel']"
    ema = next(v for k, v in flat(averaged).items() if k.startswith(name))
    new = next(v for k, v in flat(state.learn).items() if k.startswith(name))
    old = training.make_model(MODEL, 0).rrdb.conv_first.kernel[...]
    np.testing.assert_allclose(ema, old + 0.9 * (new - old), rtol=1e-4, atol=1e-6)
