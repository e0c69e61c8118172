"""OSEDiff and PiSA-SR against diffusers with adapters of PEFT, at reduced width."""

import dataclasses
import functools
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from flax import nnx
from helpers.checkpoints import assert_one_line, read_file, run, same, write_file
from helpers.systems import small_model
from peft import LoraConfig
from PIL import Image
from test_pipeline import assert_same_picture, picture
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.torch_networks import make_unet, make_vae, randomise
from dossr_jax import systems
from dossr_jax.config import ProcessConfig, UNetConfig, VAEConfig
from dossr_jax.diffusion.schedule import make_schedule, release_buffers
from dossr_jax.errors import UserError
from dossr_jax.method import Controls, StoredNoise
from dossr_jax.models.lora import merge
from dossr_jax.pipeline import Upscaler
from dossr_jax.pytorch.readers import read_checkpoint
from dossr_jax.pytorch.state import State, to_ours, to_torch
from dossr_jax.restore import Layout, restore
from dossr_jax.systems.dossr import diffusers
from dossr_jax.systems.one_step.config import OSEDiffConfig, PiSASRConfig
from dossr_jax.systems.one_step.keys import osediff_table, pisasr_table
from dossr_jax.systems.one_step.networks import OneStep, OSEDiff, PiSASR
from dossr_jax.weights import Lazy, lazy, make_abstract, names_and_params

# What the files do not tell is as in SD 2.1: heads of 64 and 32 norm groups.
UNET = UNetConfig(model_channels=64, channel_mult=(1, 2), num_res_blocks=1, context_dim=64)
VAE = VAEConfig(base_channels=32, channel_mult=(1, 1, 2), num_res_blocks=1)
RANK = 3
# The published rule by which layers get adapters: words in the names of weights.
UNET_WORDS = (
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut"),
    *("conv_out", "proj_out", "proj_in", "ff.net.2", "ff.net.0.proj"),
)
VAE_WORDS = (
    *("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out"),
    *("to_k", "to_q", "to_v", "to_out.0"),
)
# In float64 both round alike. In float32 the angles of the time embedding are off by 999 x 6e-8,
# and x0 of OSEDiff magnifies what the UNet makes of that 14.6 times.
TOLERANCES = {"float64": 1e-9, "float32": 1e-5}

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def adapted_layers(module: torch.nn.Module, words: tuple[str, ...]) -> list[str]:
    names = [name for name, _ in module.named_parameters()]
    names = [n for n in names if "bias" not in n and "norm" not in n and any(w in n for w in words)]
    return [name.removesuffix(".weight") for name in names]


def unet_groups(module: torch.nn.Module, suffix: str = "") -> dict[str, list[str]]:
    groups = {f"default_{part}{suffix}": [] for part in ("encoder", "decoder", "others")}
    for name in adapted_layers(module, UNET_WORDS):
        down, up = "down_blocks" in name or "conv_in" in name, "up_blocks" in name
        part = "encoder" if down else "decoder" if up or "conv_out" in name else "others"
        groups[f"default_{part}{suffix}"].append(name)
    return groups


def vae_groups(module: torch.nn.Module) -> dict[str, list[str]]:
    layers = [name for name in adapted_layers(module, VAE_WORDS) if name.startswith("encoder.")]
    return {"default_encoder": [*layers, "quant_conv"]}


def adapt(module, groups: dict[str, list[str]], seed: int) -> None:
    """Give a module adapters in which both matrices contribute, all of them active."""
    for name, layers in groups.items():
        config = LoraConfig(r=RANK, init_lora_weights="gaussian", target_modules=layers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more than one adapter, as is wanted
            module.add_adapter(config, adapter_name=name)
    module.set_adapter(list(groups))
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if "lora_" in name:
            p.data.normal_(generator=generator).mul_(0.3 * p[0].numel() ** -0.5)


class ExactTime(torch.nn.Module):
    """The embedding of the time; diffusers' is in float32 whatever the network computes in."""

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        half = UNET.model_channels // 2
        frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float64))
        angles = t[:, None] * frequencies[None]
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class Torch(NamedTuple):
    """The networks of a system, with its adapters."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL

    def restore(self, lr: torch.Tensor, noise: torch.Tensor, predict) -> torch.Tensor:
        """Enlarge, encode, predict(unet, z) -> x0, decode, fix the colours by AdaIN."""
        image = torch.nn.functional.interpolate(
            lr, scale_factor=4, mode="bicubic", antialias=True
        ).clamp(0, 1)
        posterior = self.vae.encode(2 * image - 1).latent_dist
        z = (posterior.mean + posterior.std * noise) * 0.18215
        out = self.vae.decode(predict(self.unet, z) / 0.18215).sample / 2 + 0.5
        axes, shape = (2, 3), (1, 3, 1, 1)
        (mean, std), (mean_ref, std_ref) = (
            (x.mean(axes).view(shape), (x.var(axes) + 1e-5).sqrt().view(shape))
            for x in (out, image)
        )
        return (out - mean) / std * std_ref + mean_ref


class Files(NamedTuple):
    """A folder with sd/, sd.safetensors, osediff.pkl and pisa_sr.pkl, and the networks in them."""

    folder: Path
    networks: dict[str, Torch]
    text: CLIPTextModel


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("one_step")
    unets = [randomise(make_unet(UNET)) for _ in range(2)]
    vaes = [randomise(make_vae(VAE), seed=1) for _ in range(2)]
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=1,
            hidden_act="gelu",
        )
    ).eval()
    unets[0].save_pretrained(folder / "sd" / "unet")
    vaes[0].save_pretrained(folder / "sd" / "vae")
    text.save_pretrained(folder / "sd" / "text_encoder")
    buffers = release_buffers(ProcessConfig())
    buffers = {n: buffers[n] for n in ("betas", "alphas_cumprod")} | {"scale_factor": np.ones(())}
    ldm = diffusers.read_as_ldm(folder / "sd").tensors
    write_file(folder / "sd.safetensors", {n: t.load() for n, t in ldm.items()} | buffers)
    osediff, pisasr = map(Torch, unets, vaes)
    with torch.no_grad():
        osediff.unet.conv_in.weight.mul_(1.1)
        osediff.unet.conv_in.bias.add_(0.1)
    encoder, layers = vae_groups(osediff.vae), unet_groups(osediff.unet)
    adapt(osediff.vae, encoder, seed=2)
    adapt(osediff.unet, layers, seed=3)
    trained = {n: t for n, t in osediff.unet.state_dict().items() if "lora" in n or "conv_in" in n}
    entries = {
        "rank_unet": RANK,
        "rank_vae": RANK,
        "vae_lora_encoder_modules": encoder["default_encoder"],
        **{f"unet_lora_{n.removeprefix('default_')}_modules": layers[n] for n in layers},
        "state_dict_unet": trained,
        "state_dict_vae": {n: t for n, t in osediff.vae.state_dict().items() if "lora" in n},
    }
    torch.save(entries, folder / "osediff.pkl")
    pix, sem = (unet_groups(pisasr.unet, suffix) for suffix in ("_pix", "_sem"))
    adapt(pisasr.unet, pix | sem, seed=4)
    entries = {
        "lora_rank_unet_pix": RANK,
        "lora_rank_unet_sem": RANK,
        "unet_lora_encoder_modules_pix": pix["default_encoder_pix"],
        "state_dict_unet": {n: t for n, t in pisasr.unet.state_dict().items() if "lora" in n},
    }
    torch.save(entries, folder / "pisa_sr.pkl")
    for network in (osediff, pisasr):
        network.unet.time_proj = ExactTime()
    return Files(folder, {"osediff": osediff, "pisa_sr": pisasr}, text)


@pytest.fixture(scope="module")
def converted(files) -> dict[str, Path]:
    """Model files, from SD as one file, with its text tower."""
    paths = {name: files.folder / f"{name}.safetensors" for name in files.networks}
    for name, path in paths.items():
        parts = files.folder / "sd.safetensors", files.folder / f"{name}.pkl"
        assert run(*parts, path, "--keep-text") == 0
    return paths


# --- results


class Ours:
    """A model file in one dtype; the program is compiled once with and once without guidance."""

    def __init__(self, path: Path, dtype: str):
        self.dtype = dtype
        model = systems.load_model(path, dtype=dtype)
        self.context = model.context[...]
        system = systems.system_of(model.config)
        self.table = system.table(model.config, model.config.sampler)
        self.graphdef, self.state = nnx.split(model)

    def restore(self, lr: np.ndarray, noise: np.ndarray, **scales: float) -> np.ndarray:
        """lr (1, h, w, 3) and noise (1, h, w, 4) -> the result before it is rounded, NCHW."""
        lr, noise = jnp.asarray(lr, self.dtype), jnp.asarray(noise, self.dtype)
        kept = restore(
            self.graphdef,
            Layout(color_fix="adain", guided=bool(scales), keep=True, devices=1),
            self.state,
            lr,
            jnp.array([lr.shape[1:3]], jnp.int32),
            jnp.zeros((0, 3), jnp.int32),
            0,
            StoredNoise(noise, 0 * noise, 0 * noise[None]),
            self.table,
            Controls(context=self.context, **scales),
        )
        assert kept.result.dtype == self.dtype
        return np.moveaxis(np.asarray(kept.result), -1, 1)


@pytest.fixture(scope="module")
def ours(converted):
    return functools.cache(lambda name, dtype: Ours(converted[name], dtype))


def reference_run(network: Torch, context, lr, noise, t: float, to_x0, dtype) -> np.ndarray:
    """The same by PyTorch; to_x0(z, call of the UNet) -> x0."""
    network.unet.to(dtype), network.vae.to(dtype)

    def predict(unet, z):
        time = torch.tensor([t], dtype=torch.float64)
        tokens = torch.from_numpy(np.array(context)).to(dtype)[None]
        return to_x0(z, lambda: unet(z, time, tokens).sample)

    images = (torch.from_numpy(np.moveaxis(a, -1, 1)).to(dtype) for a in (lr, noise))
    with torch.no_grad():
        return network.restore(*images, predict).numpy()


def osediff_x0(z, call):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.prod(1 - betas)
    return ((z - (1 - abar).sqrt() * call()) / abar.sqrt()).to(z.dtype)


def pisasr_x0(unet, pixel_scale=1.0, semantic_scale=1.0):
    def to_x0(z, call):
        groups = [f"default_{part}_{{}}" for part in ("encoder", "decoder", "others")]
        pix = [name.format("pix") for name in groups]
        unet.set_adapter(pix + [name.format("sem") for name in groups])
        full = call()
        unet.set_adapter(pix)
        pixel = call()
        return z - (pixel_scale * pixel + semantic_scale * (full - pixel))

    return to_x0


@pytest.fixture(scope="module")
def arrays():
    """An LR image (1, 12, 16, 3) and noise for its latent."""
    return picture(12, 16)[None] / 255, np.random.default_rng(0).normal(size=(1, 12, 16, 4))


def assert_close(ours: np.ndarray, theirs: np.ndarray, dtype: str) -> None:
    assert theirs.std() > 0.01 and np.isfinite(ours).all()
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{dtype}: {error:.1e}")
    assert error <= TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", ["osediff", "pisa_sr"])
def test_a_restoration_equals_that_of_diffusers_with_peft(files, ours, arrays, name, dtype):
    network = files.networks[name]
    t, to_x0 = {"osediff": (999, osediff_x0), "pisa_sr": (1, pisasr_x0(network.unet))}[name]
    with jax.enable_x64(dtype == "float64"):
        model = ours(name, dtype)
        result = model.restore(*arrays)
    expected = reference_run(network, model.context, *arrays, t, to_x0, getattr(torch, dtype))
    assert_close(result, expected, dtype)


def test_the_scales_of_pisasr_weigh_its_two_predictions(files, ours, arrays):
    network = files.networks["pisa_sr"]
    scales = {"pixel_scale": 1.3, "semantic_scale": 0.7}
    with jax.enable_x64(True):
        model = ours("pisa_sr", "float64")
        plain = model.restore(*arrays)
        neutral = model.restore(*arrays, pixel_scale=1.0, semantic_scale=1.0)
        result = model.restore(*arrays, **scales)
    to_x0 = pisasr_x0(network.unet, **scales)
    expected = reference_run(network, model.context, *arrays, 1, to_x0, torch.float64)
    assert_close(result, expected, "float64")
    assert_close(neutral, plain, "float64")
    assert np.abs(result - plain).max() > 0.01


def test_the_enlargement_is_that_of_pillow():
    lr = picture(19, 26)
    theirs = np.asarray(Image.fromarray(lr).resize((104, 76), Image.Resampling.BICUBIC))
    ours = OneStep.pre_restore(None, jnp.asarray(lr[None], jnp.float32) / 255)[0]
    # Pillow rounds between its two passes, too.
    np.testing.assert_allclose(np.round(255 * ours), theirs, atol=1.0)


def test_sums_of_adapters_are_of_float32_at_least():
    kernel, small = jnp.full((1, 1), 256, jnp.bfloat16), jnp.full((1, 1), 0.75, jnp.bfloat16)
    layer = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    layer.kernel = nnx.Param(kernel)
    adapter = nnx.Dict(down=nnx.Param(small), up=nnx.Param(small))
    merged = merge(nnx.Dict(layer=layer), nnx.Dict(layer=adapter), 2.0).layer.kernel[...]
    assert merged.dtype == jnp.bfloat16 and merged[0, 0] == 258  # 257.125 rounds to 258
    assert layer.kernel[0, 0] == 256


# --- conversion


def expected_release(files: Files, name: str) -> dict[str, np.ndarray]:
    """Tensors of both files under the names of the export."""
    arrays = read_file(files.folder / "sd.safetensors")
    entries = torch.load(files.folder / f"{name}.pkl")
    for entry, tensors in entries.items():
        if entry.startswith("state_dict_"):
            arrays |= {f"{entry}.{key}": t.numpy() for key, t in tensors.items()}
    if name == "osediff":
        for kind in ("weight", "bias"):
            trained = arrays[f"state_dict_unet.conv_in.base_layer.{kind}"]
            arrays[f"model.diffusion_model.input_blocks.0.0.{kind}"] = trained
    return arrays


@pytest.mark.parametrize("name", ["osediff", "pisa_sr"])
def test_there_and_back_bit_for_bit(files, converted, tmp_path, name):
    back = tmp_path / "back.safetensors"
    assert run(converted[name], back, "--to", "release") == 0
    assert same(read_file(back), expected_release(files, name))
    again = tmp_path / "again.safetensors"
    assert run(back, again, "--keep-text") == 0
    assert same(read_file(again), read_file(converted[name]))


def test_an_sd_folder_is_as_good_as_the_file(files, converted, tmp_path):
    path = tmp_path / "a.safetensors"
    assert run(files.folder / "sd", files.folder / "osediff.pkl", path, "--keep-text") == 0
    wanted = read_file(converted["osediff"])
    found = read_file(path)
    assert same(found, {n: a for n, a in wanted.items() if not n.startswith("buffers.")})
    ids = torch.zeros(1, 77, dtype=torch.long)
    ids[0, :2] = torch.tensor([49406, 49407])
    with torch.no_grad():
        expected = files.text(ids).last_hidden_state[0].numpy()
    np.testing.assert_allclose(found["context"], expected, atol=5e-6)


@pytest.mark.parametrize(
    ("config", "module", "table", "prefixes"),
    [
        (OSEDiffConfig(), OSEDiff, osediff_table, {"lora.unet.": 1, "lora.vae.": 0}),
        (PiSASRConfig(), PiSASR, pisasr_table, {"pixel_lora.": 1, "semantic_lora.": 1}),
    ],
)
def test_full_size(config, module, table, prefixes):
    """Names and counts of the published files, and their adapters there and back."""
    rows = table(config)
    abstract = make_abstract(lambda rngs: module(config, rngs=rngs))
    shapes = {name: param.shape for name, param in names_and_params(abstract)}
    rng = np.random.default_rng(0)

    def bits(shape):
        return rng.integers(2**16, size=shape, dtype=np.uint16).view(np.float16)

    def unread():
        raise AssertionError("only adapters are read")

    arrays = {row.torch: bits(row.shape) for row in rows if "lora" in row.torch}
    tensors = {row.torch: Lazy(row.shape, np.dtype(np.float16), unread) for row in rows}
    tensors |= {name: lazy(array) for name, array in arrays.items()}
    ours = to_ours(rows, State("full size", tensors))
    contexts = {"context", "negative_context"}
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: shape for name, shape in shapes.items() if name not in contexts
    }
    back = to_torch(rows, State("ours", ours))
    assert set(back) == set(tensors)
    for name, array in arrays.items():
        assert back[name].load().tobytes() == array.tobytes(), name
    for prefix, of_unet in prefixes.items():
        found = [row for row in rows if row.ours.startswith(prefix)]
        downs = [row.torch for row in found if ".lora_A." in row.torch]
        size = sum(math.prod(row.shape) for row in found)
        assert (len(downs), size) == ((258, 4_055_712) if of_unet else (32, 369_356))
        if of_unet:
            groups = [
                sum(f".default_{part}" in name for name in downs)
                for part in ("encoder", "decoder", "others")
            ]
            assert groups == [94, 148, 16]
    assert len(arrays) == (1032 if module is PiSASR else 2 * 258 + 64)


def test_adapters_are_at_the_layers_of_peft_in_a_full_network():
    with torch.device("meta"):
        unet, vae = make_unet(UNetConfig()), make_vae(VAEConfig())
    expected = {
        f"state_dict_unet.{layer}.lora_A.{group}.weight"
        for group, layers in unet_groups(unet).items()
        for layer in layers
    } | {
        f"state_dict_vae.{layer}.lora_A.default_encoder.weight"
        for layer in vae_groups(vae)["default_encoder"]
    }
    names = {row.torch for row in osediff_table(OSEDiffConfig())}
    assert {name for name in names if "lora_A" in name} == expected


# --- what is refused


def changed_pickle(files: Files, path: Path, change, name: str = "osediff") -> Path:
    entries = torch.load(files.folder / f"{name}.pkl")
    change(entries)
    torch.save(entries, path)
    return path


A_LAYER = "mid_block.resnets.0.conv1.lora_A.default_others.weight"
REFUSALS = {
    "missing": (lambda e: e["state_dict_unet"].pop(A_LAYER), f"missing state_dict_unet.{A_LAYER}"),
    "misshapen": (
        lambda e: e["state_dict_unet"].update({A_LAYER: torch.ones(1, 128, 3, 3)}),
        f"misshapen state_dict_unet.{A_LAYER}: file (1, 128, 3, 3), expected (3, 128, 3, 3)",
    ),
    "extra": (
        lambda e: e["state_dict_unet"].update({"time_proj.lora_A.x.weight": torch.ones(1)}),
        "extra state_dict_unet.time_proj.lora_A.x.weight",
    ),
    "no convolution": (
        lambda e: e["state_dict_unet"].pop("conv_in.base_layer.bias"),
        "has no state_dict_unet.conv_in.base_layer.bias",
    ),
    "another convolution": (
        lambda e: e["state_dict_unet"].update({"conv_in.base_layer.bias": torch.ones(7)}),
        "state_dict_unet.conv_in.base_layer.bias is (7,), SD's is (64,)",
    ),
    "no rank": (
        lambda e: e["state_dict_vae"].update(
            {"quant_conv.lora_A.default_encoder.weight": torch.ones(())}
        ),
        "rank_vae 0",
    ),
    "a state of training": (
        lambda e: e.update(optimizer={"state": {0: torch.ones(1)}, "groups": torch.ones(1)}),
        "holds optimizer.state where only tensors should be",
    ),
    "an object": (lambda e: e.update(alpha=8.0), "holds alpha where only tensors should be"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_misfit_is_one_line(files, tmp_path, capsys, kind):
    change, says = REFUSALS[kind]
    path = changed_pickle(files, tmp_path / "a.pkl", change)
    assert run(files.folder / "sd.safetensors", path, tmp_path / "a.safetensors") == 2
    assert_one_line(capsys.readouterr().err, says)
    assert not (tmp_path / "a.safetensors").exists()


def test_both_parts_are_needed(files, tmp_path, capsys):
    sd, target = files.folder / "sd.safetensors", tmp_path / "a.safetensors"
    for parts, says in (
        (["osediff.pkl"], "OSEDiff's adapters (osediff.pkl) without its Stable Diffusion 2.1"),
        (["pisa_sr.pkl"], "PiSA-SR's adapters (pisa_sr.pkl) without its Stable Diffusion 2.1"),
        (["sd.safetensors"], "an SD model without a pre-restorer"),
        (["sd"], "an SD model without a pre-restorer"),
        (["sd.safetensors", "osediff.pkl", "pisa_sr.pkl"], "does not belong to the others"),
    ):
        assert run(*(files.folder / part for part in parts), target) == 2
        assert_one_line(capsys.readouterr().err, says)
    assert run(sd, files.folder / "osediff.pkl", target, "--head-dim", "8") == 2
    assert_one_line(capsys.readouterr().err, "OSEDiff, which takes none of")


def test_adapters_of_the_decoder_are_left_out(files, converted, tmp_path, capsys):
    name = "decoder.conv_in.lora_A.default_decoder.weight"
    path = changed_pickle(
        files, tmp_path / "a.pkl", lambda e: e["state_dict_vae"].update({name: torch.ones(3)})
    )
    sd, target = files.folder / "sd.safetensors", tmp_path / "a.safetensors"
    assert run(sd, path, target, "--keep-text") == 0
    assert "1 tensors of adapters of the VAE's decoder left out" in capsys.readouterr().out
    assert same(read_file(target), read_file(converted["osediff"]))


def test_a_folder_of_another_sd_is_refused(files, tmp_path):
    other = dataclasses.replace(UNET, norm_groups=16)
    make_unet(other).save_pretrained(tmp_path / "sd" / "unet")
    (tmp_path / "sd" / "vae").symlink_to(files.folder / "sd" / "vae")
    with pytest.raises(UserError, match="are not those of SD 2.1-base"):
        diffusers.read_as_ldm(tmp_path / "sd")
    scheduler = tmp_path / "sd" / "scheduler" / "scheduler_config.json"
    (tmp_path / "sd" / "unet" / "config.json").unlink()
    (tmp_path / "sd" / "unet").rename(tmp_path / "old")
    (tmp_path / "sd" / "unet").symlink_to(files.folder / "sd" / "unet")
    scheduler.parent.mkdir()
    scheduler.write_text('{"prediction_type": "v_prediction"}')
    with pytest.raises(UserError, match="are not those of SD 2.1-base"):
        diffusers.read_as_ldm(tmp_path / "sd")


def test_networks_that_the_keys_do_not_tell_are_not_exported(tmp_path, capsys):
    systems.save_model(tmp_path / "tiny.safetensors", small_model("osediff"))
    path = tmp_path / "a.safetensors"
    assert run(tmp_path / "tiny.safetensors", path, "--to", "release") == 2
    assert_one_line(capsys.readouterr().err, "cannot be written in that form")


def test_a_state_dict_inside_keeps_the_name_of_its_entry(files):
    entries = torch.load(files.folder / "osediff.pkl")
    found = read_checkpoint(files.folder / "osediff.pkl").tensors
    inside = ("state_dict_unet", "state_dict_vae")
    expected = {f"{entry}.{name}": t for entry in inside for name, t in entries[entry].items()}
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}


# --- in the pipeline


def upscaler_of(name: str, tile: int = 128) -> Upscaler:
    return Upscaler(small_model(name), tile=tile, devices=jax.devices()[:1])


def test_settings():
    """Sizes, batches and tiles are tested for all systems alike, in test_restoration.py."""
    image, upscaler = picture(20, 24), upscaler_of("osediff")
    for wrong, message in (
        ({"steps": 3}, "steps 3: OSEDiff does not read it"),
        ({"pixel_scale": 0.5}, "pixel_scale 0.5: OSEDiff does not read it, only PiSA-SR"),
        ({"cfg_scale": 2.0}, "cfg_scale 2.0: OSEDiff does not read it"),
        ({"prompt": "a cat"}, "carries no text encoder"),
    ):
        with pytest.raises(UserError, match=message):
            upscaler.restore(image, **wrong)
    assert upscaler.parameters.keys() == {"unet", "vae", "lora", "context", "negative_context"}
    pisasr = upscaler_of("pisasr")
    for scales, guided in (
        ({}, False),
        ({"pixel_scale": 0.9}, True),
        ({"semantic_scale": 0}, True),
    ):
        settings = pisasr.settings(**scales)
        assert pisasr.system.guided(settings) == guided
        assert (settings.sampler.steps, settings.sampler.color_fix) == (1, "adain")


def test_tiles_of_a_pointwise_network_equal_the_whole(monkeypatch):
    """Where no network looks beyond a position, tiling is exact: nothing is lost or doubled."""

    def encode(self, image):
        b, h, w, c = image.shape
        z = image.reshape(b, h // 8, 8, w // 8, 8, c).mean((2, 4))
        moments = jnp.concatenate([z, z[..., :1], 0 * z - 4, 0 * z[..., :1] - 4], -1)
        return moments, moments

    def decode(self, z):
        return jnp.repeat(jnp.repeat(z[..., :3], 8, 1), 8, 2)

    monkeypatch.setattr(OneStep, "encode", encode)
    monkeypatch.setattr(OneStep, "decode", decode)
    monkeypatch.setattr(OneStep, "predict", lambda self, x, t, context: 0.3 * x)
    restore.clear_cache()
    image = picture(60, 75)
    whole, tiled = (
        upscaler_of("pisasr", tile).restore(image, semantic_scale=0.5) for tile in (0, 128)
    )
    restore.clear_cache()
    assert whole.std() > 1
    assert_same_picture(whole, tiled)


def test_the_table_of_osediff_is_the_end_of_the_schedule():
    system, config = systems.system_of(OSEDiffConfig()), OSEDiffConfig()
    table = system.table(config, config.sampler)
    alpha = make_schedule(config.process).alpha[999]
    assert (table.rows.t, table.rows.alpha) == (999, alpha)
    assert alpha == pytest.approx(0.06826491, abs=1e-8)
