"""PyTorch networks of the same shape as ours, to compare with: from diffusers, and an RRDBNet."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dossr_jax.config import RRDBConfig, UNetConfig, VAEConfig

M = TypeVar("M", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and how PyTorch computes.

    device: "cpu" or "cuda". dtype: "float32" or "bfloat16". channels_last: images and kernels lie
    in memory as NHWC.
    """

    device: str = "cpu"
    dtype: str = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.device == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")  # TF32, as JAX has it

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def module(self, module: M) -> M:
        """The module, moved here."""
        # Not diffusers' own, which warns of every change.
        to = functools.partial(nn.Module.to, module)
        return to(self.device, getattr(torch, self.dtype)).to(memory_format=self._format)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """An array, images from NHWC to NCHW; floats in the dtype of the place."""
        tensor = torch.from_numpy(array)
        if tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, self.dtype))
        if tensor.ndim == 4:
            tensor = tensor.permute(0, 3, 1, 2).contiguous(memory_format=self._format)
        return tensor.to(self.device)

    def compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """fn by torch.compile, as one tunes it on this device."""
        return torch.compile(fn, mode="max-autotune" if self.device == "cuda" else "default")

    def call(self, fn: Callable[..., Any], *arrays: np.ndarray) -> Callable[[], Any]:
        """A call of fn on tensors of these arrays, without gradients, that waits for its result."""
        tensors = [self.tensor(array) for array in arrays]

        def run() -> Any:
            with torch.inference_mode():
                result = fn(*tensors)
            if self.device == "cuda":
                torch.cuda.synchronize()
            return result

        return run


def on_meta(make: Callable[..., M], *args: Any) -> M:
    """The module that `make` builds, without the default initialisation: arrays to be filled."""
    with torch.device("meta"):
        module = make(*args)
    return module.to_empty(device="cpu")


def randomise(module: M, seed: int = 0) -> M:
    """Fill a module so that every layer contributes: no zero biases, no gains of exactly 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        fan_in = p[0].numel() if p.ndim > 1 else 25
        p.data.normal_(generator=generator).mul_(fan_in**-0.5)
        if p.ndim == 1 and name.endswith("weight"):
            p.data.add_(1)
    return module


def unet_options(config: UNetConfig) -> dict[str, Any]:
    """Options that UNet2DConditionModel and ControlNetModel share."""
    widths = [m * config.model_channels for m in config.channel_mult]
    return {
        "in_channels": config.in_channels,
        "block_out_channels": widths,
        "layers_per_block": config.num_res_blocks,
        "down_block_types": [
            "CrossAttnDownBlock2D" if on else "DownBlock2D" for on in config.attention_levels
        ],
        # Heads, in spite of the name.
        "attention_head_dim": [width // config.head_dim for width in widths],
        "cross_attention_dim": config.context_dim,
        "use_linear_projection": True,
        "norm_num_groups": config.norm_groups,
    }


def make_unet(config: UNetConfig) -> diffusers.UNet2DConditionModel:
    """An untrained UNet."""
    return diffusers.UNet2DConditionModel(
        **unet_options(config),
        out_channels=config.out_channels,
        up_block_types=[
            "CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(config.attention_levels)
        ],
    ).eval()


def make_controlnet(config: UNetConfig) -> diffusers.ControlNetModel:
    """A ControlNet whose hint is latents: one convolution instead of diffusers' eight."""
    control = diffusers.ControlNetModel(**unet_options(config))
    control.controlnet_cond_embedding = nn.Conv2d(
        config.in_channels, config.model_channels, 3, padding=1
    )
    return control.eval()


def make_vae(config: VAEConfig) -> diffusers.AutoencoderKL:
    """An untrained autoencoder."""
    levels = len(config.channel_mult)
    return diffusers.AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        latent_channels=config.z_channels,
        block_out_channels=[m * config.base_channels for m in config.channel_mult],
        layers_per_block=config.num_res_blocks,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        norm_num_groups=config.norm_groups,
        mid_block_add_attention=config.mid_attention,
    ).eval()


def _conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def _activate(x: torch.Tensor) -> torch.Tensor:
    return functional.leaky_relu(x, 0.2)


class _Dense(nn.Module):
    def __init__(self, features: int, growth: int):
        super().__init__()
        for i in range(1, 6):
            c_out = growth if i < 5 else features
            self.add_module(f"conv{i}", _conv(features + (i - 1) * growth, c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for i in range(1, 5):
            seen.append(_activate(getattr(self, f"conv{i}")(torch.cat(seen, dim=1))))
        return x + 0.2 * self.conv5(torch.cat(seen, dim=1))


class _Block(nn.Module):
    def __init__(self, features: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (_Dense(features, growth) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """The generator of ESRGAN (arXiv 1809.00219) under Real-ESRGAN's parameter names.

    (b, 3, h, w) -> (b, 3, scale h, scale w).
    """

    def __init__(self, config: RRDBConfig):
        super().__init__()
        features = config.num_features
        self.fold = config.fold
        self.conv_first = _conv(config.in_channels * config.fold**2, features)
        self.body = nn.Sequential(
            *(_Block(features, config.growth) for _ in range(config.num_blocks))
        )
        self.conv_body = _conv(features, features)
        self.conv_up1 = _conv(features, features)
        self.conv_up2 = _conv(features, features)
        self.conv_hr = _conv(features, features)
        self.conv_last = _conv(features, config.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Enlarge images in [0, 1]."""
        x = self.conv_first(functional.pixel_unshuffle(x, self.fold))
        x = x + self.conv_body(self.body(x))
        for conv in (self.conv_up1, self.conv_up2):
            x = _activate(conv(functional.interpolate(x, scale_factor=2.0, mode="nearest")))
        return self.conv_last(_activate(self.conv_hr(x)))
