"""How long the networks take on the CPU, in JAX and in PyTorch, side by side in one process.

    python benchmarks/network.py --case step --repeats 5

One JSON line per case: seconds of each (the shortest of the repeats, alternating, after a
warm-up), their ratio, device and versions. Full size is SD 2.1-base and a 512 px image in float32,
random weights; --width and --size shrink both.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax import weights
from dossr_jax.config import RRDBConfig, UNetConfig, VAEConfig
from dossr_jax.models.controlnet import ControlNet
from dossr_jax.models.rrdbnet import RRDBNet
from dossr_jax.models.unet import UNet
from dossr_jax.models.vae import VAE

FULL_WIDTH = 320
_GROUPS = 32
_TOKENS = 77

Pair = tuple[Callable[[], Any], Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Setup:
    """Network width (UNet base channels) and image size of a run; other widths follow."""

    width: int
    size: int

    @property
    def unet(self) -> UNetConfig:
        return UNetConfig(model_channels=self.width, head_dim=min(64, self.width))

    @property
    def vae(self) -> VAEConfig:
        share = VAEConfig().base_channels * self.width // FULL_WIDTH
        return VAEConfig(base_channels=max(_GROUPS, share // _GROUPS * _GROUPS))

    @property
    def rrdb(self) -> RRDBConfig:
        full = RRDBConfig()
        features, blocks, growth = (
            max(1, n * self.width // FULL_WIDTH)
            for n in (full.num_features, full.num_blocks, full.growth)
        )
        return RRDBConfig(num_features=features, num_blocks=blocks, growth=growth)


def random_module(make: Callable[[Any], nnx.Module], rng: np.random.Generator) -> nnx.Module:
    """A module of ours with random parameters."""
    module = weights.make_abstract(make)

    def draw(shape: tuple[int, ...]) -> weights.Lazy:
        scale = np.float32(np.prod(shape[:-1], initial=1) ** -0.5)
        return weights.Lazy(
            shape, np.dtype(np.float32), lambda: rng.standard_normal(shape, np.float32) * scale
        )

    tensors = {name: draw(param.shape) for name, param in weights.names_and_params(module)}
    weights.fill(module, tensors, "random")
    return module


def jitted(fn: Callable[..., Any], modules: Sequence[nnx.Module], *args: Any) -> Callable[[], Any]:
    """A call of fn(*modules, *args), compiled, that waits for its result."""
    graphdefs, states = zip(*(nnx.split(module) for module in modules), strict=True)

    @jax.jit
    def run(states, args):
        return fn(*map(nnx.merge, graphdefs, states), *args)

    return lambda: jax.block_until_ready(run(states, args))


def make_step(setup: Setup, peers: ModuleType, rng: np.random.Generator) -> Pair:
    """One denoising step: ControlNet and UNet on latents of one image."""
    config, side = setup.unet, setup.size // 8
    x, hint = (rng.standard_normal((1, side, side, 4), np.float32) for _ in range(2))
    context = rng.standard_normal((1, _TOKENS, config.context_dim), np.float32)
    t = np.array([499], np.int32)
    unet, control = (
        random_module(lambda rngs, kind=kind: kind(config, rngs=rngs), rng)
        for kind in (UNet, ControlNet)
    )

    def ours(unet, control, x, hint, t, context):
        return unet(x, t, context, control(x, hint, t, context))

    torch_unet = peers.make_unet(config)
    torch_control = peers.make_controlnet(config)

    def theirs(x, hint, t, context):
        down, mid = torch_control(x, t, context, controlnet_cond=hint, return_dict=False)
        return torch_unet(
            x,
            t,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample

    arrays = (x, hint, t, context)
    return jitted(ours, (unet, control), *map(jnp.asarray, arrays)), peers.call(theirs, *arrays)


def make_encode(setup: Setup, peers: ModuleType, rng: np.random.Generator) -> Pair:
    """VAE encoder on one image."""
    image = rng.uniform(-1, 1, (1, setup.size, setup.size, 3)).astype(np.float32)
    vae = random_module(lambda rngs: VAE(setup.vae, rngs=rngs), rng)
    torch_vae = peers.make_vae(setup.vae)
    return (
        jitted(VAE.encode, [vae], jnp.asarray(image)),
        peers.call(lambda x: torch_vae.encode(x).latent_dist.parameters, image),
    )


def make_decode(setup: Setup, peers: ModuleType, rng: np.random.Generator) -> Pair:
    """VAE decoder on the latents of one image."""
    side = setup.size // 8
    latents = rng.standard_normal((1, side, side, 4), np.float32)
    vae = random_module(lambda rngs: VAE(setup.vae, rngs=rngs), rng)
    torch_vae = peers.make_vae(setup.vae)
    return (
        jitted(VAE.decode, [vae], jnp.asarray(latents)),
        peers.call(lambda z: torch_vae.decode(z).sample, latents),
    )


def make_rrdb(setup: Setup, peers: ModuleType, rng: np.random.Generator) -> Pair:
    """RRDBNet from a quarter of the size to the whole."""
    side = setup.size // 4
    image = rng.uniform(0, 1, (1, side, side, 3)).astype(np.float32)
    rrdb = random_module(lambda rngs: RRDBNet(setup.rrdb, rngs=rngs), rng)
    torch_rrdb = peers.RRDBNet(setup.rrdb).eval()
    return jitted(RRDBNet.__call__, [rrdb], jnp.asarray(image)), peers.call(torch_rrdb, image)


CASES = {"step": make_step, "encode": make_encode, "decode": make_decode, "rrdb": make_rrdb}


def measure(pair: Pair, repeats: int) -> tuple[float, float]:
    """Shortest seconds of each call, alternating, after one warm-up call each."""
    best = [float("inf")] * 2
    for call in pair:
        call()
    for _ in range(repeats):
        for i, call in enumerate(pair):
            time.sleep(0.3)  # the other's idle threads spin for a while
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=(*CASES, "all"), default="all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=FULL_WIDTH, help="UNet base channels")
    parser.add_argument("--size", type=int, default=512, help="side of the restored image")
    args = parser.parse_args(argv)
    import torch_networks  # here, as --help works without PyTorch

    jax.config.update("jax_platforms", "cpu")
    setup = Setup(args.width, args.size)
    for case in CASES if args.case == "all" else [args.case]:
        ours, theirs = measure(
            CASES[case](setup, torch_networks, np.random.default_rng(0)), args.repeats
        )
        line = {
            "case": case,
            "jax_s": round(ours, 4),
            "torch_s": round(theirs, 4),
            "ratio": round(ours / theirs, 3),
            "width": args.width,
            "size": args.size,
            "repeats": args.repeats,
            "device": str(jax.devices()[0].device_kind),
            "cores": os.cpu_count(),
            "torch_threads": torch_networks.torch.get_num_threads(),
            **{name: version(name) for name in ("jax", "flax", "torch", "diffusers")},
        }
        print(json.dumps(line), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
