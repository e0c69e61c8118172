"""DoSSR in PyTorch: diffusers' networks, our RRDBNet, and restoring as one writes it with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torch_networks import RRDBNet, make_controlnet, make_unet, make_vae, on_meta, randomise

from dossr_jax.config import DoSSRConfig
from dossr_jax.diffusion.solver import SolverTable
from dossr_jax.pytorch.state import State, to_ours
from dossr_jax.pytorch.tables import rrdb_table, unet_table, vae_encoder_table, vae_table
from dossr_jax.weights import Lazy, lazy


class Networks(torch.nn.Module):
    """What a DoSSR is made of."""

    def __init__(self, config: DoSSRConfig, seed: int = 0):
        super().__init__()
        self.config = config
        makers = {
            "unet": (make_unet, config.unet),
            "control": (make_controlnet, config.unet),
            "vae": (make_vae, config.vae),
            "hint": (make_vae, config.vae),
            "rrdb": (RRDBNet, config.rrdb),
        }
        for i, (name, (make, part)) in enumerate(makers.items()):
            if name != "hint" or not config.shared_encoder:
                self.add_module(name, randomise(on_meta(make, part), 10 * seed + i))
        if config.shared_encoder:
            self.hint = self.vae
        # The release has one bias where these two convolutions have one each.
        torch.nn.init.zeros_(self.control.controlnet_cond_embedding.bias)

    def residuals(self, x, t, context, hint, strength=1.0):
        """The ControlNet's."""
        down, mid = self.control(x, t, context, hint, strength, return_dict=False)
        return [*down, mid]

    def eps(self, x, t, context, hint, strength=1.0):
        """Prediction of the noise."""
        *down, mid = self.residuals(x, t, context, hint, strength)
        return self.unet(
            x,
            t,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample

    def moments(self, image):
        """Of the autoencoder's posterior."""
        return self.vae.encode(image).latent_dist.parameters

    def decode(self, latents):
        """Unscaled latents to an image in [-1, 1]."""
        return self.vae.decode(latents).sample


def our_tensors(nets: Networks) -> dict[str, Lazy]:
    """The parameters under our names."""

    def entries(module, table, ours):
        state = {n: lazy(p.detach().numpy()) for n, p in module.named_parameters()}
        wanted = {row.torch for row in table}
        found = to_ours(table, State(ours, {n: t for n, t in state.items() if n in wanted}))
        return {f"{ours}.{name}": tensor for name, tensor in found.items()}

    config = nets.config
    unet = unet_table(config.unet, "diffusers")
    encoder = [row for row in unet if row.ours.startswith("encoder.")]
    tensors = entries(nets.unet, unet, "unet") | entries(nets.control, encoder, "control")
    tensors |= entries(nets.vae, vae_table(config.vae, "diffusers"), "vae")
    if not config.shared_encoder:
        tensors |= entries(nets.hint, vae_encoder_table(config.vae, "diffusers"), "hint_encoder")
    tensors |= entries(nets.rrdb, rrdb_table(config.rrdb), "rrdb")
    # Two convolutions, of the latent and of the hint, are one of both.
    first, second = nets.control.conv_in, nets.control.controlnet_cond_embedding
    kernel = torch.cat([first.weight, second.weight], 1).detach().permute(2, 3, 1, 0)
    tensors["control.encoder.conv_in.kernel"] = lazy(kernel.numpy())
    ends = [*nets.control.controlnet_down_blocks, nets.control.controlnet_mid_block]
    names = [f"zero_convs.{i}" for i in range(len(ends) - 1)] + ["zero_mid"]
    for name, conv in zip(names, ends, strict=True):
        weight = conv.weight.detach().permute(2, 3, 1, 0)
        tensors[f"control.{name}.kernel"] = lazy(weight.numpy())
        tensors[f"control.{name}.bias"] = lazy(conv.bias.detach().numpy())
    return tensors


class Noise(NamedTuple):
    """Standard normal (b, z, h, w): of the posterior, of the start, of every step."""

    posterior: torch.Tensor
    start: torch.Tensor
    steps: list[torch.Tensor]


def restorer(
    nets: Networks, wrap: Callable[[Callable[..., Any]], Any] = lambda fn: fn
) -> Callable[..., tuple[np.ndarray, ...]]:
    """A function (LR images, noise, table, context) -> pre-restored, decoded, result.

    `wrap` is called with each network's function, torch.compile for instance. LR images and results
    are NHWC arrays of uint8 on the host, networks run in their own dtype, what is between them in
    float32. The table is that of dossr_jax.diffusion.solver, not padded.
    """
    rrdb, moments, eps, decode = map(wrap, (nets.rrdb, nets.moments, nets.eps, nets.decode))
    weight = next(nets.parameters())
    scale = nets.config.vae.scale_factor

    def run(fn: Callable[..., Any], image: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        return fn(image.to(weight.dtype), *args).float()

    @torch.inference_mode()
    def restore(
        lr: np.ndarray, noise: Noise, table: SolverTable, context: torch.Tensor
    ) -> tuple[np.ndarray, ...]:
        image = torch.from_numpy(lr).to(weight.device).permute(0, 3, 1, 2).float() / 255
        pre = run(rrdb, image).clamp(0, 1)
        mean, logvar = run(moments, 2 * pre - 1).chunk(2, dim=1)
        deviation = (logvar.clamp(-30, 20) / 2).exp()
        x_lr, hint = scale * (mean + deviation * noise.posterior), scale * mean
        latents = solve(x_lr, hint, noise, table, context)
        decoded = (run(decode, latents / scale) + 1) / 2
        return tuple(map(to_host, (pre, decoded, wavelet(decoded, pre))))

    def solve(
        x_lr: torch.Tensor,
        hint: torch.Tensor,
        noise: Noise,
        table: SolverTable,
        context: torch.Tensor,
    ) -> torch.Tensor:
        rows, ends = (type(part)(*(numbers.tolist() for numbers in part)) for part in table)
        history = [torch.zeros_like(x_lr)] * 3
        hint = hint.to(weight.dtype)
        y = ends.init_lr * x_lr + ends.init_noise * noise.start
        for i, z in enumerate(noise.steps):
            x = rows.m[i] * y + rows.shift[i] * x_lr
            t = torch.full((len(x),), float(rows.t[i]), device=x.device)
            x0 = (x - rows.sigma[i] * run(eps, x, t, context, hint)) / rows.alpha[i]
            history = [x0, *history[:2]]
            change = sum(c * d for c, d in zip(rows.c_x0[i], history, strict=True))
            y = rows.c_y[i] * y + change + rows.c_noise[i] * z
        return ends.m_out * y + ends.shift_out * x_lr

    return restore


def to_host(image: torch.Tensor) -> np.ndarray:
    """An image in [0, 1] as levels of uint8, NHWC."""
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def wavelet(image, reference):
    """High bands of the image, low band of the reference."""

    def low(x):
        taps = torch.tensor([1, 2, 1], dtype=x.dtype, device=x.device) / 4
        kernel = torch.outer(taps, taps).expand(3, 1, 3, 3)
        for level in range(5):
            d = 2**level
            x = functional.conv2d(
                functional.pad(x, (d, d, d, d), mode="replicate"), kernel, groups=3, dilation=d
            )
        return x

    return image - low(image) + low(reference)
