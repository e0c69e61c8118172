"""How long the networks take in JAX and in PyTorch, side by side in one process.

    python benchmarks/network.py --case step --repeats 5
    python benchmarks/network.py --dtype bfloat16 --batch 16 --compile    # a GPU

One JSON line per case: seconds of each (the shortest of the repeats and their median, alternating,
after a warm-up), ours divided by PyTorch's, device and versions. Full size is SD 2.1-base and a
512 px image, with random weights; --width and --size shrink both. torch_baseline.py compares the
whole restoration.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from measuring import alternate, fill_randomly, jitted, surroundings
from side_by_side import Setup, add_options, compared, find_peers, make_setup

from dossr_jax import weights
from dossr_jax.models.controlnet import ControlNet
from dossr_jax.models.rrdbnet import RRDBNet
from dossr_jax.models.unet import UNet
from dossr_jax.models.vae import VAE

_TOKENS = 77


class Case(NamedTuple):
    """The same work twice.

    ours(*modules, *arrays), of the modules that `makers` make; theirs(*tensors), of the arrays as
    tensors.
    """

    ours: Callable[..., Any]
    makers: Sequence[Callable[..., nnx.Module]]
    theirs: Callable[..., Any]
    arrays: Sequence[np.ndarray]


def make_step(setup: Setup, peers: ModuleType, rng: np.random.Generator) -> Case:
    """One denoising step: ControlNet and UNet on latents of one image."""
    config, side = setup.unet, setup.size // 8
    x, hint = (rng.standard_normal((setup.batch, side, side, 4), np.float32) for _ in range(2))
    context = rng.standard_normal((setup.batch, _TOKENS, config.context_dim), np.float32)
    t = np.full(setup.batch, 499, np.int32)

    def ours(unet, control, x, hint, t, context):
        return unet(x, t, context, control(x, hint, t, context))

    torch_unet, torch_control = map(
        setup.place(peers).module, (peers.make_unet(config), peers.make_controlnet(config))
    )

    def theirs(x, hint, t, context):
        down, mid = torch_control(x, t, context, controlnet_cond=hint, return_dict=False)
        return torch_unet(
            x,
            t,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample

    return Case(
        ours, [partial(UNet, config), partial(ControlNet, config)], theirs, (x, hint, t, context)
    )


def make_encode(setup: Setup, peers: ModuleType, rng: np.random.Generator) -> Case:
    """VAE encoder."""
    image = rng.uniform(-1, 1, (setup.batch, setup.size, setup.size, 3)).astype(np.float32)
    torch_vae = setup.place(peers).module(peers.make_vae(setup.vae))
    return Case(
        VAE.encode,
        [partial(VAE, setup.vae)],
        lambda x: torch_vae.encode(x).latent_dist.parameters,
        (image,),
    )


def make_decode(setup: Setup, peers: ModuleType, rng: np.random.Generator) -> Case:
    """VAE decoder."""
    side = setup.size // 8
    latents = rng.standard_normal((setup.batch, side, side, 4), np.float32)
    torch_vae = setup.place(peers).module(peers.make_vae(setup.vae))
    return Case(
        VAE.decode,
        [partial(VAE, setup.vae)],
        lambda z: torch_vae.decode(z).sample,
        (latents,),
    )


def make_rrdb(setup: Setup, peers: ModuleType, rng: np.random.Generator) -> Case:
    """RRDBNet from a quarter of the size to the whole."""
    side = setup.size // 4
    image = rng.uniform(0, 1, (setup.batch, side, side, 3)).astype(np.float32)
    torch_rrdb = setup.place(peers).module(peers.RRDBNet(setup.rrdb).eval())
    return Case(RRDBNet.__call__, [partial(RRDBNet, setup.rrdb)], torch_rrdb, (image,))


CASES = {"step": make_step, "encode": make_encode, "decode": make_decode, "rrdb": make_rrdb}


def measure(case: Case, setup: Setup, peers: ModuleType, repeats: int) -> dict[str, float]:
    """Times of a case in both, alternating, and how they compare."""
    modules = [
        fill_randomly(
            weights.make_abstract(lambda rngs, make=make: make(rngs=rngs, **setup.options))
        )
        for make in case.makers
    ]
    arrays, place = jax.device_put(case.arrays), setup.place(peers)
    ours = jitted(case.ours, *modules)
    calls = {"jax": lambda: ours(*arrays), "torch": place.call(case.theirs, *case.arrays)}
    if setup.compile:
        calls["torch_compile"] = place.call(place.compile(case.theirs), *case.arrays)
    return compared(alternate(calls, repeats))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=(*CASES, "all"), default="all")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default: 1)")
    add_options(parser)
    args = parser.parse_args(argv)
    peers = find_peers(args)  # here, as --help works without PyTorch
    setup = make_setup(args, args.batch)
    for name in CASES if args.case == "all" else [args.case]:
        case = CASES[name](setup, peers, np.random.default_rng(0))
        line = {
            "case": name,
            **measure(case, setup, peers, args.repeats),
            **dataclasses.asdict(setup),
            "repeats": args.repeats,
            "torch_threads": peers.torch.get_num_threads(),
            **surroundings("torch", "diffusers"),
        }
        print(json.dumps(line), flush=True)
        del case
        gc.collect()


if __name__ == "__main__":
    main()
