"""Live modules of diffusers and transformers as ours, and back."""

import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from flax import nnx
from helpers.checkpoints import run
from helpers.compare import nchw, relative_error
from helpers.diffusers_modules import WIDTH, assert_same, make_text, make_unet, make_vae
from transformers import CLIPTextModel

from dossr_jax import method, systems, weights
from dossr_jax.config import RRDBConfig, SamplerConfig
from dossr_jax.convert import Networks, from_diffusers, to_diffusers
from dossr_jax.errors import UserError
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.rrdbnet import RRDBNet
from dossr_jax.pytorch.state import State, to_torch
from dossr_jax.pytorch.tables import rrdb_table
from dossr_jax.schedulers import DoSSRScheduler
from dossr_jax.systems import dossr

pytestmark = pytest.mark.usefixtures("compiled_quickly", "one_torch_thread")

NETWORKS = ("unet", "vae", "text_encoder")


def make_rrdb() -> RRDBNet:
    config = RRDBConfig(num_features=8, num_blocks=1, growth=4)
    return RRDBNet(config, rngs=nnx.Rngs(0))


def small_unet(**changes) -> UNet2DConditionModel:
    """Of two levels, which compiles faster."""
    options = {
        "block_out_channels": (32, 64),
        "attention_head_dim": (2, 4),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return make_unet(**{**options, **changes})


@pytest.fixture(scope="module")
def modules() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {"unet": small_unet().eval(), "vae": make_vae().eval(), "text_encoder": make_text()}


@pytest.fixture(scope="module")
def model(modules) -> DoSSR:
    """A DoSSR whose ControlNet has learnt something."""
    model = from_diffusers(**modules, rrdb=make_rrdb())
    rng = np.random.default_rng(0)
    for _, param in weights.names_and_params(model.control):
        noise = 0.1 * rng.standard_normal(param.shape)
        param.set_value(param[...] + noise.astype(param.dtype))
    return model


@pytest.fixture(scope="module")
def back(model):
    return to_diffusers(model)


def params_of(module) -> dict[str, np.ndarray]:
    return {name: np.asarray(p[...]) for name, p in weights.names_and_params(module)}


def assert_same_params(a, b) -> None:
    one, other = params_of(a), params_of(b)
    assert set(one) == set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert one[name].tobytes() == other[name].tobytes(), name


# --- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_single_networks_come_back_bit_for_bit(dtype):
    torch.manual_seed(1)
    given = {"unet": small_unet(), "vae": make_vae(), "text_encoder": make_text()}
    given = {name: module.to(dtype) for name, module in given.items()}
    networks = from_diffusers(**given)
    assert isinstance(networks, Networks) and networks.control is None
    kind = str(dtype).removeprefix("torch.")
    for module in (networks.unet, networks.vae, networks.text):
        assert {str(p.dtype) for _, p in weights.names_and_params(module)} == {kind}
    back = to_diffusers(networks)
    assert back.controlnet is None and back.scheduler is None
    for name in NETWORKS:
        assert_same(given[name], getattr(back, name))
        assert not getattr(back, name).training


def test_every_network_keeps_its_own_dtype(modules):
    unet = small_unet().to(torch.float16)
    context = np.ones((7, WIDTH), np.float32)
    prompts = {"context": context, "negative_context": context[None]}
    model = from_diffusers(unet=unet, vae=modules["vae"], rrdb=make_rrdb(), **prompts)
    back = to_diffusers(model)
    assert_same(unet, back.unet)
    assert_same(modules["vae"], back.vae)
    assert back.controlnet.dtype == torch.float16 and back.text_encoder is None
    np.testing.assert_array_equal(model.negative_context[...], context)


def test_a_whole_dossr_goes_there_and_back(modules, model, back):
    for name in NETWORKS:
        assert_same(modules[name], getattr(back, name))
    again = from_diffusers(back, rrdb=model.rrdb)
    assert_same_params(model, again)
    assert again.config == model.config


def test_a_folder_there_and_back(model, back, tmp_path):
    to_diffusers(model, tmp_path / "sd")
    loaded = {
        "unet": UNet2DConditionModel.from_pretrained(tmp_path / "sd/unet"),
        "controlnet": ControlNetModel.from_pretrained(tmp_path / "sd/controlnet"),
        "vae": AutoencoderKL.from_pretrained(tmp_path / "sd/vae"),
        "text_encoder": CLIPTextModel.from_pretrained(tmp_path / "sd/text_encoder"),
    }
    for name, module in loaded.items():
        assert_same(module, getattr(back, name))
    scheduler = DoSSRScheduler.from_pretrained(tmp_path / "sd/scheduler")
    assert scheduler.config["solver_order"] == 3
    from_modules = from_diffusers(**loaded, scheduler=scheduler, rrdb=model.rrdb)
    assert_same_params(model, from_modules)
    with pytest.raises(UserError, match="exists already"):
        to_diffusers(model, tmp_path / "sd")
    with pytest.raises(UserError, match="no such folder"):
        to_diffusers(model, tmp_path / "none" / "sd")


def test_the_command_reads_a_folder_with_its_control_net(model, tmp_path):
    to_diffusers(model, tmp_path / "sd")
    systems.save_model(tmp_path / "rrdb.safetensors", model.rrdb)
    file = tmp_path / "a.safetensors"
    options = ("--rrdb", tmp_path / "rrdb.safetensors", "--keep-text")
    assert run(tmp_path / "sd", file, *options) == 0
    tensors, _ = weights.read_tensors(file)
    own = params_of(model)
    assert {n: t.load().tobytes() for n, t in tensors.items()} == {
        n: a.tobytes() for n, a in own.items()
    }


def test_a_pipeline_gives_its_networks_and_its_sampler(modules):
    scheduler = DoSSRScheduler(
        solver="asinh", grid="asinh", solver_order=2, eta_schedule="trunc_23"
    )
    pipeline = SimpleNamespace(**modules, scheduler=scheduler, tokenizer=None)
    model = from_diffusers(pipeline, rrdb=make_rrdb())
    sampler = model.config.sampler
    assert (sampler.solver, sampler.grid, sampler.order) == ("asinh", "asinh", 2)
    assert model.config.process.eta == "trunc_23"
    assert isinstance(from_diffusers(pipeline), Networks)


def test_wrapped_modules_are_unwrapped(modules):
    wrapped = SimpleNamespace(module=modules["unet"])
    networks = from_diffusers(unet=wrapped)
    assert_same(modules["unet"], to_diffusers(networks).unet)


def test_a_pre_restorer_may_be_a_module_of_pytorch(modules):
    class Net(torch.nn.Module):
        def __init__(self, arrays):
            super().__init__()
            for name, array in arrays.items():
                self.register_buffer(name.replace(".", "/"), torch.from_numpy(array))

        def state_dict(self):
            return {n.replace("/", "."): t for n, t in super().state_dict().items()}

    rrdb = make_rrdb()
    lazies = {n: weights.lazy(a) for n, a in params_of(rrdb).items()}
    named = to_torch(rrdb_table(rrdb.config), State("rrdb", lazies))
    net = Net({n: np.array(t.load()) for n, t in named.items()})
    model = from_diffusers(**modules, rrdb=net)
    assert_same_params(model.rrdb, rrdb)


# --- what they compute ------------------------------------------------------------------------


def test_the_control_net_of_diffusers_gives_the_same_residuals(model, back):
    rng = np.random.default_rng(0)
    x, hint = (rng.standard_normal((1, 8, 8, 4)).astype(np.float32) for _ in range(2))
    context = rng.standard_normal((1, 5, WIDTH)).astype(np.float32)
    ours = nnx.jit(lambda m, *a: m(*a))(model.control, x, hint, jnp.array([321.0]), context)
    with torch.no_grad():
        down, mid = back.controlnet(
            nchw(x), torch.tensor([321]), torch.from_numpy(context), nchw(hint), return_dict=False
        )
    assert len(ours) == len(down) + 1
    for a, b in zip(ours, (*down, mid), strict=True):
        assert relative_error(nchw(np.array(a)).numpy(), b) < 1e-5


def test_networks_and_scheduler_of_diffusers_repeat_the_release_s_runs(converted, golden):
    """Networks made of the golden checkpoint, against the trajectories that the release stored."""
    made = to_diffusers(systems.load_model(converted))
    control, context, start, noise = (
        torch.from_numpy(golden[name])
        for name in ("stage_c_latent", "context", "noise_init", "noise_steps")
    )
    for order, steps in ((1, 1), (2, 3), (3, 5)):
        scheduler = DoSSRScheduler(solver_order=order)
        scheduler.set_lr(torch.from_numpy(golden["stage_x0_hat"]))
        scheduler.set_timesteps(steps)
        path = [scheduler.first_sample(start)]
        with torch.no_grad():
            for t, z in zip(scheduler.timesteps, noise, strict=False):
                x = path[-1]
                down, mid = made.controlnet(x, t, context, control, return_dict=False)
                eps = made.unet(
                    x,
                    t,
                    context,
                    down_block_additional_residuals=down,
                    mid_block_additional_residual=mid,
                ).sample
                path.append(scheduler.step(eps, t, x, noise=z).prev_sample)
        expected = golden[f"samp_o{order}_s{steps}_x"]
        found = torch.cat(path).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.ptp(expected[-1]))


@pytest.mark.slow
def test_diffusers_samples_what_we_sample(model, back):
    """A whole run with ControlNet, networks of diffusers and its loop against our solver."""
    rng = np.random.default_rng(1)
    steps, shape = 5, (8, 8, 4)
    x_lr, hint, start = (rng.standard_normal((1, *shape)).astype(np.float32) for _ in range(3))
    noise = rng.standard_normal((steps, 1, *shape)).astype(np.float32)
    table = dossr.solver_table(model.config, SamplerConfig(steps=steps))

    @nnx.jit
    def ours(model, x_lr, hint, start, noise):
        controls = method.Controls(context=model.context[...])
        condition = method.Condition(x_lr, hint)
        predict = method.make_predict(model, controls, False, jnp.asarray(table.rows.t))
        denoise = method.make_denoiser(predict, condition, 0.0, "eps")
        stored = method.StoredNoise(start, start, noise)
        return method.run_solver(denoise, condition, start, shape, table=table, noise=stored)[0]

    scheduler = back.scheduler
    scheduler.set_lr(nchw(x_lr))
    scheduler.set_timesteps(steps)
    context = torch.from_numpy(np.array(model.context[...]))[None]
    x, control = scheduler.first_sample(nchw(start)), nchw(hint)
    with torch.no_grad():
        for t, z in zip(scheduler.timesteps, noise, strict=True):
            down, mid = back.controlnet(x, t, context, control, return_dict=False)
            eps = back.unet(
                x,
                t,
                context,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample
            x = scheduler.step(eps, t, x, noise=nchw(z)).prev_sample
    expected = np.asarray(ours(model, x_lr, hint, start, noise))
    assert relative_error(nchw(np.array(expected)).numpy(), x) < 1e-5


def test_half_precision_weights_compute_in_float32():
    half = from_diffusers(text_encoder=make_text().to(torch.float16))
    wide = from_diffusers(text_encoder=to_diffusers(half).text_encoder.float())
    run = nnx.jit(lambda tower: tower(jnp.arange(77)[None]))
    np.testing.assert_array_equal(run(half.text), run(wide.text))


# --- what is refused --------------------------------------------------------------------------


def on_meta() -> UNet2DConditionModel:
    with torch.device("meta"):
        return small_unet()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda m: from_diffusers(), "no networks"),
        (lambda m: from_diffusers(m["unet"]), "UNet2DConditionModel; give a pipeline"),
        (lambda m: from_diffusers(unet=m["vae"]), "describes a AutoencoderKL, not a UNet2D"),
        (lambda m: from_diffusers(unet=object()), "a object; give a module of diffusers"),
        (lambda m: from_diffusers(vae=m["vae"], rrdb=make_rrdb()), "a DoSSR needs unet"),
        (lambda m: from_diffusers(unet=m["unet"], vae=m["vae"], rrdb=make_rrdb()), "context"),
        (lambda m: from_diffusers(**m, rrdb=3), "rrdb: a int"),
        (lambda m: from_diffusers(**m, context=np.ones((7, WIDTH))), "give rrdb, too"),
        (
            lambda m: from_diffusers(**m, rrdb=make_rrdb(), context=np.ones((7, WIDTH))),
            r"\(7, 32\); give both as \(tokens, 32\)",
        ),
        (
            lambda m: from_diffusers(controlnet=ControlNetModel.from_unet(m["unet"])),
            "its hint is not DoSSR's",
        ),
        (
            lambda m: from_diffusers(unet=small_unet(flip_sin_to_cos=False)),
            "flip_sin_to_cos is False: it must be True",
        ),
        (lambda m: from_diffusers(unet=on_meta()), "on the meta device"),
        (lambda m: to_diffusers(m["unet"]), "to_diffusers: a UNet2DConditionModel"),
    ],
)
def test_misuse_is_one_line(modules, make, says):
    with pytest.raises(UserError, match=says) as caught:
        make(modules)
    assert "\n" not in str(caught.value)


def test_a_control_net_of_another_unet_is_refused(back):
    unet = small_unet(layers_per_block=2)
    with pytest.raises(UserError, match="not of the same size as the UNet"):
        from_diffusers(unet=unet, controlnet=back.controlnet)


def test_weights_that_are_not_finite_are_refused():
    unet = small_unet()
    with torch.no_grad():
        unet.conv_in.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="unet: conv_in.weight has NaN"):
        from_diffusers(unet=unet)


def test_importing_the_converter_imports_neither_torch_nor_diffusers():
    code = (
        "import sys, dossr_jax.convert\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
