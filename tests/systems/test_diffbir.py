"""DiffBIR against diffusers' networks and its sampler as the paper's code steps in x; its files."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from helpers.torch_folder import in_double
from torch_dossr import Networks, our_tensors, wavelet

from dossr_jax import method, systems, weights
from dossr_jax.config import DoSSRConfig, ProcessConfig, RRDBConfig, UNetConfig, VAEConfig
from dossr_jax.convert.__main__ import main as convert
from dossr_jax.systems.diffbir import SYSTEM, VERSIONS
from dossr_jax.systems.diffbir.config import SPACED, DiffBIRConfig
from dossr_jax.systems.diffbir.keys import diffbir_table
from dossr_jax.systems.swinir.config import SwinIRConfig

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS, CFG = 4, 3.0
UNET = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_levels=(True, False),
    head_dim=8,
    context_dim=6,
)
VAE = VAEConfig(base_channels=32, channel_mult=(1, 2), num_res_blocks=1)
RRDB = RRDBConfig(num_features=8, num_blocks=1, growth=4)
CONFIG = DiffBIRConfig(
    unet=UNET,
    vae=VAE,
    cleaner=RRDB,
    context_length=3,
    sampler=dataclasses.replace(SPACED, steps=STEPS, cfg_scale=CFG),
)
PROCESSES = {"eps": ProcessConfig(), "v": ProcessConfig(prediction="v", zero_snr=True)}


@functools.cache
def torch_networks() -> Networks:
    dossr = DoSSRConfig(unet=UNET, vae=VAE, rrdb=RRDB, context_length=3)
    return in_double(Networks(dossr, 3))


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    latent = (24, 16, 4)
    return {
        "lr": rng.uniform(size=(1, 12, 8, 3)),
        "start": rng.normal(size=(1, *latent)),
        "steps": rng.normal(size=(STEPS, 1, *latent)),
        "context": rng.normal(size=(2, 3, 6)),
    }


def nchw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(array, -1, -3).copy())


@torch.no_grad()
def by_torch(prediction: str) -> np.ndarray:
    """The result, from noise by DDPM's posterior on respaced times, in float64."""
    nets, given = torch_networks(), inputs()
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    if prediction == "v":
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    times = [round(i * 999 / (STEPS - 1)) for i in range(STEPS)]
    clean = nets.rrdb(nchw(given["lr"]))
    hint = VAE.scale_factor * nets.vae.encode(2 * clean - 1).latent_dist.mean
    x = nchw(given["start"])
    prompt, negative = (torch.from_numpy(c)[None] for c in given["context"])
    for step, i in enumerate(reversed(range(STEPS))):
        t = torch.full((1,), times[i])
        out, other = (nets.eps(x, t, c, hint) for c in (prompt, negative))
        out = other + CFG * (out - other)
        a, before = abar[times[i]], abar[times[i - 1]] if i else 1.0
        if prediction == "v":
            x0 = a**0.5 * x - (1 - a) ** 0.5 * out
        else:
            x0 = (x - (1 - a) ** 0.5 * out) / a**0.5
        beta = 1 - a / before
        x = (before**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - before) * x) / (1 - a)
        if i:
            variance = beta * (1 - before) / (1 - a)
            x = x + variance**0.5 * nchw(given["steps"][step])
    image = (nets.vae.decode(x / VAE.scale_factor).sample + 1) / 2
    return wavelet(image, clean).permute(0, 2, 3, 1).numpy()


def by_us(prediction: str, dtype: str) -> np.ndarray:
    config = dataclasses.replace(CONFIG, process=PROCESSES[prediction])
    given = {name: jnp.asarray(array, dtype) for name, array in inputs().items()}
    tensors = {
        name.replace("rrdb.", "cleaner."): t for name, t in our_tensors(torch_networks()).items()
    }
    names = ("context", "negative_context")
    tensors |= {n: weights.lazy(c) for n, c in zip(names, inputs()["context"], strict=True)}
    model = systems.build_model(config, tensors, "test", dtype=dtype)
    run = systems.Run(
        size=jnp.array([[12, 8]]),
        apply=method.whole,
        noise=method.StoredNoise(given["start"], given["start"], given["steps"]),
        table=SYSTEM.table(config, config.sampler),
        controls=method.Controls(
            context=given["context"][0], negative_context=given["context"][1], cfg_scale=CFG
        ),
        fix="wavelet",
        guided=True,
    )
    graphdef, state = nnx.split(model)
    restore = jax.jit(lambda state, lr: SYSTEM.restore(nnx.merge(graphdef, state), lr, run))
    return np.asarray(restore(state, given["lr"]).result)


@pytest.mark.parametrize("prediction", PROCESSES)
def test_the_whole_restoration_equals_pytorchs(prediction):
    expected = by_torch(prediction)
    largest = np.abs(expected).max()
    with jax.enable_x64(True):
        # Rounding of some hundred layers, four times, and guidance, which enlarges differences.
        assert np.abs(by_us(prediction, "float64") - expected).max() <= 1e-9 * largest
    assert np.abs(by_us(prediction, "float32") - expected).max() <= 2e-4 * largest


# --- files ----------------------------------------------------------------------------------------

SWINIR = SwinIRConfig(embed_dim=12, depths=(2,), heads=2, window=2, scale=8, unshuffle=8)


def pytorch_tensors(config: DiffBIRConfig) -> dict[str, np.ndarray]:
    """A checkpoint with random values under PyTorch's names, all parts in one."""
    rng = np.random.default_rng(5)
    return {row.torch: rng.normal(size=row.shape).astype("f4") for row in diffbir_table(config)}


def write_parts(folder, tensors, *, control="v2.pth", cleaner="BSRNet") -> list[str]:
    """The files that are published apart, as .safetensors."""
    files = {"sd": {}, control: {}, cleaner: {}}
    for name, array in tensors.items():
        for prefix, file in (("control_model.", control), ("preprocess_model.", cleaner)):
            if name.startswith(prefix):
                files[file][name.removeprefix(prefix)] = array
                break
        else:
            files["sd"][name] = array
    paths = []
    for name, part in files.items():
        paths.append(str(folder / f"{name}.safetensors"))
        weights.write_safetensors(paths[-1], part)
    return paths


@pytest.fixture
def context(tmp_path) -> str:
    path = tmp_path / "context.npz"
    arrays = np.random.default_rng(0).normal(size=(2, 3, 6)).astype("f4")
    np.savez(path, context=arrays[0], context_neg=arrays[1])
    return str(path)


@pytest.mark.parametrize(
    ("version", "cleaner", "control"),
    [("v1", SWINIR, "v1_general"), ("v2", RRDB, "v2.pth"), ("v2.1", SWINIR, "DiffBIR_v2.1.pt")],
)
def test_published_files_become_a_model_and_themselves_again(
    tmp_path, context, version, cleaner, control
):
    # 64 is the width of SD 2.1's attention heads, which keys do not tell.
    unet = dataclasses.replace(UNET, model_channels=64, head_dim=64)
    config = DiffBIRConfig(
        unet=unet, vae=VAE, cleaner=cleaner, context_length=3, **VERSIONS[version]
    )
    tensors = pytorch_tensors(config)
    paths = write_parts(tmp_path, tensors, control=control, cleaner="cleaner")
    ours, back = str(tmp_path / "ours.safetensors"), str(tmp_path / "back.safetensors")
    assert convert([*paths, ours, "--context", context]) == 0
    stored, _ = systems.open_model(ours)
    assert stored == config
    assert convert([ours, back, "--to", "release"]) == 0
    again, _ = weights.read_safetensors(back)
    assert again.keys() == tensors.keys()
    for name, array in tensors.items():
        assert again[name].load().tobytes() == array.tobytes(), name
