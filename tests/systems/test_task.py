"""Restoration at scale 1: sizes stay, and so does what networks have no say in; training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.models import TINY, tiny_model
from helpers.pictures import names_for, save
from helpers.runs import write_model
from helpers.small import SMALL, make_batch, make_config
from helpers.systems import small_model
from PIL import Image
from test_pipeline import TILE, picture

from dossr_jax import cli, method, parallel, systems, weights
from dossr_jax.config import SamplerConfig
from dossr_jax.convert import __main__ as convert
from dossr_jax.errors import UserError
from dossr_jax.pipeline import Upscaler
from dossr_jax.pipeline.upscaler import locate
from dossr_jax.systems import Run
from dossr_jax.systems.task import SYSTEM, for_task
from dossr_jax.systems.task.config import TaskConfig
from dossr_jax.training import cli as train_cli
from dossr_jax.training import state as run_state
from dossr_jax.training import step as run_step

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SMALL_TASK = TaskConfig(
    unet=SMALL.unet,
    vae=SMALL.vae,
    context_length=1,
    sampler=SamplerConfig(steps=1, order=1, color_fix="none"),
)
LEARNING = {"adversarial_weight": 0.0, "feature_weight": 0.0}


def task_config(stage: str = "adversarial", presets=("denoise",), **changes):
    data = dataclasses.replace(make_config("vae").data, presets=presets, workers=0)
    fields = {"model": SMALL_TASK, "data": data, **changes}
    return make_config(stage, **fields, **(LEARNING if stage == "adversarial" else {}))


@pytest.fixture(scope="module")
def upscaler():
    return Upscaler(small_model("task"), tile=TILE, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "noise.safetensors"
    systems.save_model(path, small_model("task"))
    return path


# --- restoration --------------------------------------------------------------------------------


def test_results_have_the_size_of_their_input(upscaler):
    assert upscaler.settings().scale == 1
    for size in ((5, 7), (1, 1), (20, 33)):
        image = picture(*size)
        result = upscaler.restore(image)
        assert result.shape == image.shape and result.dtype == np.uint8
    assert upscaler.restore(picture(5, 7), scale=2.5).shape == (12, 18, 3)


def test_16_bits_stay_and_grey_stays_grey(upscaler):
    deep = picture(20, 33).astype(np.uint16) * 257
    result = upscaler.restore(deep)
    assert result.dtype == np.uint16 and len(np.unique(result)) > 256
    assert upscaler.restore(picture(20, 33)[..., 0]).shape == (20, 33)


def test_a_smooth_gradient_of_16_bits_comes_back_as_it_was(upscaler):
    gradient = np.linspace(20_000, 21_000, 40).astype(np.uint16)
    image = np.broadcast_to(gradient[None, :, None], (32, 40, 3))
    assert np.abs(upscaler.restore(image).astype(int) - image).max() <= 1


def test_alpha_is_kept_bit_for_bit(upscaler):
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.uint16):
        colors = rng.integers(0, np.iinfo(dtype).max, (20, 33, 4)).astype(dtype)
        result = upscaler.restore(colors)
        np.testing.assert_array_equal(result[..., 3], colors[..., 3])
        assert (result[..., :3] != colors[..., :3]).any()
        assert upscaler.restore(colors, scale=2).shape == (40, 66, 4)


def test_mean_colours_stay_whatever_the_networks_make(upscaler):
    image = picture(96, 130)
    result = upscaler.restore(image)
    for rows in (slice(0, 64), slice(64, 96)):
        for columns in (slice(0, 64), slice(64, 128), slice(128, 130)):
            change = result[rows, columns].astype(float) - image[rows, columns]
            assert np.abs(change.mean(axis=(0, 1))).max() < 0.75


def test_holes_leave_no_trace_in_mean_colours():
    model = small_model("task")
    model.config = dataclasses.replace(model.config, task="inpaint")
    filled = Upscaler(model, tile=TILE, devices=jax.devices()[:1])
    for image in (picture(20, 33), np.full((20, 33, 3), 2**15, np.uint16)):
        change = filled.restore(image).astype(float) - image
        assert np.abs(change.mean(axis=(0, 1))).max() > np.iinfo(image.dtype).max / 100


def test_blocks_are_as_if_restored_at_once():
    """Of the model that ships, on the input's own latents: random networks look at whole tiles."""
    start = for_task(systems.Model(*systems.open_model(locate("dossr-mini"))), "denoise")
    model = systems.build_model(start.config, start.tensors, "dossr-mini")
    at_once, in_blocks = (Upscaler(model, tile=256, devices=jax.devices()[:1]) for _ in range(2))
    in_blocks._networks.limits = dataclasses.replace(in_blocks._networks.limits, side=640)
    settings = {"fidelity": 1.0, "steps": 1, "color_fix": "none"}
    image = picture(700, 90)
    whole = at_once.restore(image, **settings).astype(int)
    parts = in_blocks.restore(image, **settings).astype(int)
    assert parts.shape == image.shape and np.abs(parts - image).mean() < 10
    assert np.abs(parts - whole).mean() < 0.1


def test_the_networks_and_the_process_are_dossrs():
    """With the same weights: DoSSR's method on the input in place of the pre-restored image."""
    dossr = tiny_model(config=TINY)
    tensors = {
        name: weights.lazy(np.asarray(p[...])) for name, p in weights.names_and_params(dossr)
    }
    start = for_task(systems.Model(TINY, tensors), "deblur")
    model = systems.build_model(start.config, start.tensors, "DoSSR")
    image = jnp.asarray(picture(32, 48), jnp.float32)[None] / 255
    assert SYSTEM.table is not None
    run = Run(
        size=jnp.array([[30, 41]]),
        apply=method.whole,
        noise=method.KeyNoise.of_seeds([3]),
        table=SYSTEM.table(TINY, SamplerConfig(steps=2, order=1)),
        controls=method.Controls(context=dossr.context[...], negative_context=dossr.context[...]),
        fix="wavelet",
    )

    def wanted(dossr, image):
        return method.restore_images(dossr, image, run.size, factor=1, **run.sampling()).result

    got = nnx.jit(lambda model, image: SYSTEM.restore(model, image, run).result)(model, image)
    np.testing.assert_array_equal(got, nnx.jit(wanted)(dossr, image))


# --- the command line ---------------------------------------------------------------------------


def restored(capsys, *arguments) -> tuple[int, str]:
    return cli.main([*map(str, arguments), "--tile", str(TILE)]), capsys.readouterr().err


def test_the_command_line_restores_at_the_size_of_the_input(model_file, tmp_path, capsys):
    photo, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(picture(9, 12)).save(photo)
    options = ["--model", model_file, "--task", "denoise", "--name", "{stem}_x{scale}"]
    assert restored(capsys, photo, "-o", out, *options)[0] == 0
    with Image.open(out / "a_x1.png") as image:
        assert image.size == (12, 9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "deblur"], ["task deblur", "configs/mini_deblur.py", "--model FILE"]),
        (["--task", "deblur", "--model", "{file}"], ["not a model for task deblur"]),
        (["--task", "denoise", "--model", "dossr-mini"], ["not a model for task denoise"]),
        (["--task", "denoise", "--model", "realesrgan"], ["not a model for task denoise"]),
    ],
)
def test_a_model_of_another_task_is_refused(options, words, model_file, tmp_path, capsys):
    options = [option.format(file=model_file) for option in options]
    status, err = restored(capsys, tmp_path / "a.png", "-o", tmp_path / "out", *options)
    assert status == 2 and all(word in err for word in words) and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- training -----------------------------------------------------------------------------------


def test_presets_must_keep_the_size():
    pairs = run_step.make_inputs(task_config(), parallel.make_mesh(1))
    with pytest.raises(UserError, match="reduced by 4 .*or pairs"):
        pairs(jax.random.key_data(jax.random.key(0)), make_batch())
    with pytest.raises(UserError, match="reduced by 4 .*light.* at scale 1, which enlarges by 1"):
        run_step.choose_presets(task_config(presets=("light",)))


@pytest.mark.parametrize("kind", ["dossr", "task"])
def test_a_run_starts_from_dossr_without_its_pre_restorer_or_from_another_task(kind, tmp_path):
    path = tmp_path / "model.safetensors"
    if kind == "dossr":
        write_model(path, SMALL)
    else:
        start = dataclasses.replace(SMALL_TASK, task="deblock")
        model = systems.abstract_model(start)
        weights.fill(model, {n: np.ones(p.shape) for n, p in weights.names_and_params(model)}, "1")
        systems.save_model(path, model)
    run = run_state.start_run(task_config(), path, parallel.make_mesh(1), lambda: None)
    assert run.config.model == SMALL_TASK
    stored = systems.open_model(path)[1]
    state = run.state.learn | run.state.frozen
    assert state.keys() == {name for name in stored if not name.startswith("rrdb.")}
    for name, value in state.items():
        np.testing.assert_array_equal(value, stored[name].load(), err_msg=name)


def test_other_networks_are_refused(tmp_path):
    wider = dataclasses.replace(SMALL, context_length=2)
    with pytest.raises(UserError, match="networks are not the configuration's"):
        run_state.start_run(
            task_config(), write_model(tmp_path / "m", wider), parallel.make_mesh(1), lambda: None
        )


@pytest.mark.parametrize("stage", ["dossr", "adversarial"])
def test_the_loss_falls(stage):
    config = task_config(stage)
    mesh = parallel.make_mesh(1)
    run = run_state.start_run(config, None, mesh, lambda: make_batch()["hr"])
    assert not any(name.startswith(("discriminator", "feature_net")) for name in run.state.frozen)
    step = run_step.make_train_step(run.config, run.graphdef, mesh)
    state, losses = run.state, []
    batch = {name: value for name, value in make_batch().items() if name != "lr"}
    for _ in range(25):
        state, metrics = step(state, parallel.put_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


def test_a_model_has_no_form_for_pytorch(model_file, tmp_path, capsys):
    arguments = [str(model_file), str(tmp_path / "torch.safetensors"), "--to", "release"]
    assert convert.main(arguments) == 2
    assert "has no form for PyTorch" in capsys.readouterr().err


def test_from_photos_to_a_model_that_restores(tmp_path, capsys):
    for i, name in enumerate([*names_for("train", 4), *names_for("validation", 1)]):
        save(tmp_path / "photos" / name, picture(40, 32, seed=i))
    file = tmp_path / "small.py"
    file.write_text(
        "from test_task import task_config\nCONFIG = task_config(steps=2, validate_every=2)\n"
    )
    output = tmp_path / "run"
    start = write_model(tmp_path / "dossr.safetensors", SMALL)
    arguments = ["--config", file, "--data", tmp_path / "photos", "--output", output]
    assert train_cli.main([*map(str, arguments), "--init", str(start)]) == 0
    options = ["--model", output / "model.safetensors", "--task", "denoise"]
    photos = tmp_path / "photos"
    assert restored(capsys, photos, "-o", tmp_path / "out", *options)[0] == 0
    for photo in photos.iterdir():
        with Image.open(photo) as given, Image.open(tmp_path / "out" / photo.name) as result:
            assert given.size == result.size
