"""PyTorch networks of the same shape as ours, to compare with: from diffusers, and an RRDBNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dossr_jax.config import RRDBConfig, UNetConfig, VAEConfig


def call(fn: Callable[..., Any], *args: np.ndarray) -> Callable[[], Any]:
    """A call of fn on tensors of NHWC (or other) arrays, images as NCHW, without gradients."""
    tensors = [
        torch.from_numpy(a).permute(0, 3, 1, 2).contiguous() if a.ndim == 4 else torch.from_numpy(a)
        for a in args
    ]

    def run() -> Any:
        with torch.inference_mode():
            return fn(*tensors)

    return run


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
