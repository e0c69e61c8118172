"""How long a whole restoration takes in PyTorch, and ours beside it in the same process.

    python benchmarks/torch_baseline.py --ours --compile --dtype bfloat16 --batches 1 16    # a GPU
    python benchmarks/torch_baseline.py --ours --repeats 3                  # any machine of 16 GB

One JSON line per batch size: seconds of a batch in PyTorch, eager and with --compile by
torch.compile, with --ours also of dossr_jax's Upscaler, alternating after a warm-up of each; ours
divided by theirs; and the most that the results differ, in levels of 255. Both have the same random
weights and noise and do the same work, from uint8 to uint8 on the host: RRDBNet, encoder, --steps
times ControlNet and UNet, decoder, colour fix. PyTorch's networks are diffusers'. Full size is
DoSSR on SD 2.1 and a 512 px image; --width and --size shrink both. network.py compares single
networks.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring import alternate, peak_memory, surroundings
from side_by_side import Setup, add_options, compared, find_peers, make_setup

from dossr_jax import systems, weights
from dossr_jax.config import DoSSRConfig, SamplerConfig
from dossr_jax.method import KeyNoise
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.pipeline import Upscaler
from dossr_jax.systems.dossr import solver_table

_SEED = 0
SIZES = (128, 256, 512)


def make_config(setup: Setup, steps: int) -> DoSSRConfig:
    """DoSSR of this width with the published sampler."""
    sampler = SamplerConfig(steps=steps)
    return DoSSRConfig(unet=setup.unet, vae=setup.vae, rrdb=setup.rrdb, sampler=sampler)


def make_model(nets: Any, setup: Setup) -> Any:
    """Our networks with the same weights."""
    import torch_dossr

    tensors = torch_dossr.our_tensors(nets)
    tensors |= {name: weights.lazy(array) for name, array in draw_contexts(nets.config).items()}
    dtype = setup.options["dtype"]
    return systems.build_model(nets.config, tensors, "PyTorch", dtype=dtype)


def draw_contexts(config: DoSSRConfig) -> dict[str, np.ndarray]:
    """Embeddings of the two prompts."""
    rng = np.random.default_rng(_SEED)
    shape = config.context_length, config.unet.context_dim
    return {n: rng.standard_normal(shape, np.float32) for n in ("context", "negative_context")}


def draw_images(setup: Setup) -> np.ndarray:
    """LR images, uint8 (b, h, w, 3)."""
    side = setup.size // UPSCALE
    rng = np.random.default_rng(_SEED)
    return rng.integers(0, 256, (setup.batch, side, side, 3), np.uint8)


def make_ours(
    upscaler: Upscaler, setup: Setup, images: np.ndarray
) -> Callable[[], list[np.ndarray]]:
    """A restoration by us, which gives the batch as (pre-restored, decoded, result)."""
    settings = upscaler.settings(seed=_SEED, batch_size=setup.batch)

    def restore() -> list[np.ndarray]:
        results = dict(upscaler.stream(enumerate(images), settings, stages=True))
        ordered = [results[i] for i in range(len(images))]
        return [
            np.stack([getattr(r, name) for r in ordered])
            for name in ("pre_restored", "decoded", "image")
        ]

    return restore


def make_theirs(
    nets: Any, setup: Setup, images: np.ndarray, place: Any, wrap: Callable[..., Any] | None = None
) -> Callable[[], tuple[np.ndarray, ...]]:
    """The same in PyTorch."""
    import torch_dossr

    config = nets.config
    restore = torch_dossr.restorer(nets, wrap or (lambda fn: fn))
    context = np.broadcast_to(
        draw_contexts(config)["context"],
        (setup.batch, config.context_length, config.unet.context_dim),
    )
    args = draw_noise(config, setup, place), solver_table(config, config.sampler)
    tensor = place.tensor(context.copy())
    return lambda: restore(images, *args, tensor)


def draw_noise(config: DoSSRConfig, setup: Setup, place: Any) -> Any:
    """Ours as tensors, drawn beforehand."""
    import torch_dossr

    side = setup.size // config.vae.downscale
    shape = side, side, config.vae.z_channels
    keys = jax.vmap(jax.random.key)(np.full(setup.batch, _SEED, np.uint32))
    noise = KeyNoise(keys)
    steps = [noise.step(jnp.uint32(i), shape) for i in range(config.sampler.steps)]
    place = dataclasses.replace(place, dtype="float32")
    posterior, start, *steps = (place.tensor(np.array(z)) for z in (*noise.initial(shape), *steps))
    return torch_dossr.Noise(posterior, start, steps)


def measure(
    nets: Any, upscaler: Upscaler | None, setup: Setup, peers: ModuleType, repeats: int
) -> dict[str, Any]:
    """Times of a batch."""
    images, place = draw_images(setup), setup.place(peers)
    calls = {} if upscaler is None else {"jax": make_ours(upscaler, setup, images)}
    calls["torch"] = make_theirs(nets, setup, images, place)
    if setup.compile:
        calls["torch_compile"] = make_theirs(nets, setup, images, place, place.compile)
    last: dict[str, Any] = {}

    def kept(name: str) -> Callable[[], None]:
        return lambda: last.update({name: calls[name]()})

    fields: dict[str, Any] = compared(alternate({name: kept(name) for name in calls}, repeats))
    fields["torch_images_per_s"] = round(setup.batch / fields["torch_s"], 4)
    if upscaler is not None:
        fields["jax_images_per_s"] = round(setup.batch / fields["jax_s"], 4)
        fields |= differences(last["jax"], last["torch"])
    return fields


def differences(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, float]:
    """How far two restorations are apart, in levels; the results differ by our area means, too."""
    fields: dict[str, float] = {}
    for name, a, b in zip(("pre_restored", "decoded", "result"), ours, theirs, strict=True):
        apart = np.abs(a.astype(np.int32) - b)
        fields |= {f"{name}_most_apart": int(apart.max()), f"{name}_apart": float(apart.mean())}
    return fields


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ours", action="store_true", help="time dossr_jax beside PyTorch")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1], help="images at once (default: 1)"
    )
    parser.add_argument("--steps", type=int, default=5, help="of the solver (default: 5)")
    add_options(parser)
    args = parser.parse_args(argv)
    if args.ours and args.size not in SIZES:
        # Upscaler works on larger canvases then.
        parser.error(f"--size {args.size}: ours does the same work at {SIZES} alone")
    peers = find_peers(args)  # here, as --help works without PyTorch
    import torch_dossr

    setup = make_setup(args, args.batches[0])
    config = make_config(setup, args.steps)
    nets = torch_dossr.Networks(config).eval()
    upscaler = None
    if args.ours:
        upscaler = Upscaler(make_model(nets, setup), devices=jax.devices()[:1])
    setup.place(peers).module(nets)
    for batch in args.batches:
        setup = dataclasses.replace(setup, batch=batch)
        line = {
            "case": "restore",
            "steps": args.steps,
            **measure(nets, upscaler, setup, peers, args.repeats),
            **dataclasses.asdict(setup),
            "repeats": args.repeats,
            "torch_threads": peers.torch.get_num_threads(),
            **peak_memory(),
            **surroundings("torch", "diffusers"),
        }
        print(json.dumps(line), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
