"""What the comparisons with PyTorch share: their options, the sizes of networks, how times compare.

Imports no PyTorch, so that --help works without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
from measuring import Times

from dossr_jax.config import RRDBConfig, UNetConfig, VAEConfig
from dossr_jax.pipeline import DTYPES

FULL_WIDTH = 320
_GROUPS = 32


@dataclasses.dataclass(frozen=True)
class Setup:
    """Network width (UNet base channels; other widths follow), images, and how they are computed.

    size: side of the restored image in pixels. contiguous: PyTorch's images lie as NCHW, else as
    NHWC. compile: with torch.compile beside the eager networks.
    """

    width: int
    size: int
    batch: int
    dtype: str
    device: str
    contiguous: bool
    compile: bool

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

    @property
    def options(self) -> dict[str, Any]:
        """Dtypes of our networks."""
        return {"dtype": DTYPES[self.dtype], "param_dtype": DTYPES[self.dtype]}

    def place(self, peers: ModuleType) -> Any:
        """The Place of torch_networks, `peers`."""
        device = "cuda" if self.device == "gpu" else "cpu"
        return peers.Place(device, self.dtype, not self.contiguous)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that the comparisons share."""
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument(
        "--width", type=int, default=FULL_WIDTH, help="UNet base channels (default: SD 2.1's, 320)"
    )
    parser.add_argument(
        "--size", type=int, default=512, help="side of the restored image (default: 512)"
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), help="of both (default: a GPU if PyTorch finds one)"
    )
    parser.add_argument(
        "--contiguous", action="store_true", help="PyTorch in NCHW instead of channels-last"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="with torch.compile beside eager PyTorch; max-autotune on a GPU",
    )


def find_peers(args: argparse.Namespace) -> ModuleType:
    """torch_networks; from here on, both libraries use args.device, which is set if it was not."""
    import torch_networks

    if args.device is None:
        args.device = "gpu" if torch_networks.torch.cuda.is_available() else "cpu"
    # Without this JAX takes three quarters of the GPU's memory, and PyTorch finds no room.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    jax.config.update("jax_platforms", "cpu" if args.device == "cpu" else "cuda")
    return torch_networks


def make_setup(args: argparse.Namespace, batch: int) -> Setup:
    """The setup that the options describe."""
    return Setup(
        args.width, args.size, batch, args.dtype, args.device, args.contiguous, args.compile
    )


def compared(times: Mapping[str, Times]) -> dict[str, float]:
    """Fields of a line: times of "jax" and of each way in PyTorch, and ours divided by theirs."""
    fields: dict[str, float] = {}
    for name, each in times.items():
        fields |= each.fields(name)
    for name, each in times.items():
        if "jax" in times and name != "jax":
            ratio = name.replace("torch", "ratio")
            fields[ratio] = round(min(times["jax"].wall) / min(each.wall), 3)
            fields[f"{ratio}_cpu"] = round(min(times["jax"].cpu) / min(each.cpu), 3)
    return fields
