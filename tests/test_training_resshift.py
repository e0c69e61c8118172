"""The stage that trains ResShift: its loss is the public code's, it learns, its files restore."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import zoo
from helpers.runs import write_pairs
from helpers.small import make_batch, make_config
from helpers.systems import SMALL_RESSHIFT as SMALL

from dossr_jax import parallel, systems
from dossr_jax.config import ConfigError
from dossr_jax.pipeline import Upscaler
from dossr_jax.pytorch.infer import read_settings
from dossr_jax.pytorch.state import to_ours
from dossr_jax.systems.resshift.keys import BUFFERS, config_from_yaml, resshift_table
from dossr_jax.training import state as run_state
from dossr_jax.training import step as run_step
from dossr_jax.training.cli import main
from dossr_jax.training.stages.resshift import predict_x0

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_the_loss_is_the_public_codes():
    """In float64, from the images on: both ends of the chain, the noised latent, the prediction."""
    with jax.enable_x64(True):
        golden = zoo.Golden("resshift", "float64", 1e-9)
        config = config_from_yaml(
            read_settings(zoo.FOLDER / "resshift" / "config.yaml"), "diffusion_v1"
        )
        state = zoo.read_state("resshift").select(lambda name: not BUFFERS.fullmatch(name))
        tensors = to_ours(resshift_table(config), state)
        model = systems.build_model(config, tensors, "golden", dtype=jnp.float64)

        def image(name: str) -> jax.Array:
            return jnp.asarray(np.moveaxis(golden[name], 1, -1), jnp.float64)

        # Augmented: the second sample is the first one mirrored.
        lr, hr = (jnp.concatenate([a, a[:, :, ::-1]]) for a in (image("in_lr"), image("in_hr")))

        @jax.jit
        def predict(hr, lr, t, eps):
            x0 = model.vq.encode(2 * hr - 1)
            return predict_x0(model, x0, lr, t, eps)[0], x0

        t, eps = jnp.asarray(golden["train_t"]), image("train_noise")
        prediction, x0 = predict(hr, lr, t, eps)
        golden.check("train_pred", prediction)
        error = np.mean((np.asarray(prediction) - np.asarray(x0)) ** 2, axis=(1, 2, 3))
        np.testing.assert_allclose(error, golden["train_mse"], rtol=1e-9)


def test_it_learns_the_unet_alone_and_the_loss_falls():
    config = make_config("resshift", model=SMALL)
    mesh = parallel.make_mesh(1)
    run = run_state.start_run(config, None, mesh, lambda: make_batch()["hr"])
    assert all(name.startswith("unet.") for name in run.state.learn)
    assert all(name.startswith("vq.") for name in run.state.frozen)
    step = run_step.make_train_step(run.config, run.graphdef, mesh)
    state, losses = run.state, []
    for _ in range(40):
        state, metrics = step(state, make_batch())
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_stages_refuse_models_of_other_systems():
    with pytest.raises(ConfigError, match=r"model\.system dossr: stage resshift does not train it"):
        make_config("resshift")
    with pytest.raises(ConfigError, match=r"model\.system resshift: stage prior does not"):
        make_config("prior", model=SMALL)
    with pytest.raises(ConfigError, match=r"data\.crop 20: must be a multiple of 16"):
        make_config("resshift", model=SMALL, data=make_config("vae").data.__class__(crop=20))


def test_train_py_writes_a_model_that_restores(tmp_path):
    file = tmp_path / "small.py"
    file.write_text(
        "import dataclasses\n"
        "from helpers.small import make_config\n"
        "from helpers.systems import SMALL_RESSHIFT as SMALL\n"
        "small = make_config('resshift', model=SMALL, steps=1, validate_every=1)\n"
        "CONFIG = dataclasses.replace(small, data=dataclasses.replace(small.data, workers=0))\n"
    )
    pairs, output = write_pairs(tmp_path / "pairs"), tmp_path / "run"
    arguments = ["--config", file, "--data", pairs, "--output", output]
    assert main([*map(str, arguments)]) == 0
    upscaler = Upscaler.from_pretrained(output / "model.safetensors")
    assert upscaler.config == SMALL
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert upscaler.restore(image, scale=2.5).shape == (12, 18, 3)
