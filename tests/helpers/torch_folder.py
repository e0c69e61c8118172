"""Crosscheck folders that PyTorch alone has computed, of random sizes.

Networks are diffusers' and our PyTorch RRDBNet; the sampler, AdaIN and training pass are written
here as the paper prints them.
"""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch_dossr import Networks, our_tensors, wavelet

from dossr_jax.config import DoSSRConfig, RRDBConfig, UNetConfig, VAEConfig
from helpers.folders import write_model

ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
ETA = np.append((1 - np.cos(np.pi * np.linspace(0.001, 0.999, 500))) / 2, np.ones(500))


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a folder holds: networks, the LR image's sides, and one run of the sampler."""

    config: DoSSRConfig
    sides: tuple[int, int]
    order: int
    steps: int
    cfg: float | None
    seed: int

    @property
    def run(self) -> str:
        """The run's name in the archive."""
        return f"tall_samp_o{self.order}_s{self.steps}" + (f"_cfg{self.cfg}" if self.cfg else "")


def draw_spec(seed: int) -> Spec:
    """Other widths, multipliers, head sizes, image sizes and samplers for every seed."""
    rng = np.random.default_rng(seed)

    def one_of(*choices):
        return choices[rng.integers(len(choices))]

    mults = one_of((1, 2), (1, 1, 2), (1, 2, 3), (1, 3))
    attends = [bool(rng.integers(2)) for _ in mults[:-1]] + [False]
    attends[rng.integers(len(mults) - 1)] = True
    unet = UNetConfig(
        model_channels=one_of(32, 64),
        channel_mult=mults,
        num_res_blocks=one_of(1, 2),
        attention_levels=tuple(attends),
        head_dim=one_of(4, 8, 16, 32),
        context_dim=int(rng.integers(6, 40)),
    )
    vae = VAEConfig(
        base_channels=one_of(32, 64),
        channel_mult=one_of((1, 2), (1, 1), (1, 3), (1, 2, 2)),
        num_res_blocks=one_of(1, 2),
        scale_factor=one_of(0.18215, 0.3, 0.13025),
    )
    rrdb = RRDBConfig(
        num_features=int(rng.integers(6, 20)), num_blocks=one_of(1, 2), growth=one_of(3, 4, 8)
    )
    config = DoSSRConfig(
        unet=unet,
        vae=vae,
        rrdb=rrdb,
        shared_encoder=one_of(True, False),
        context_length=int(rng.integers(2, 9)),
    )
    # Latent sides are 4 / f of the LR image's, multiples of what the UNet halves.
    unit = max(1, vae.downscale * unet.downscale // 4)
    sides = tuple(unit * int(rng.integers(1, 3)) + unit for _ in range(2))
    order, steps = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    return Spec(config, sides, order, steps, one_of(None, 1.5), seed)


class DoubleEmbedding(torch.nn.Module):
    """[cos, sin] of the time, as wide as the UNet's first level."""

    def __init__(self, width: int):
        super().__init__()
        self.half = width // 2

    def forward(self, t):
        rates = torch.exp(-np.log(10000) * torch.arange(self.half, dtype=torch.float64) / self.half)
        angles = t.double()[:, None] * rates
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def in_double(nets: Networks) -> Networks:
    """A copy in float64; the time embedding, always float32 in diffusers, as well."""
    twin = copy.deepcopy(nets).double()
    for net in (twin.unet, twin.control):
        net.time_proj = DoubleEmbedding(nets.config.unet.model_channels)
    return twin


def make_inputs(spec: Spec) -> dict[str, np.ndarray]:
    """Images, noise and prompts."""
    rng = np.random.default_rng(1000 + spec.seed)
    config = spec.config

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    latent = (4, *(4 * side // config.vae.downscale for side in spec.sides))
    context = config.context_length, config.unet.context_dim
    return {
        "context": normal(1, *context),
        "context_neg": normal(1, *context),
        "tall_lr": rng.uniform(size=(1, 3, *spec.sides)).astype(np.float32),
        "tall_noise_posterior": normal(1, *latent),
        "tall_noise_init": normal(1, *latent),
        "tall_noise_steps": normal(spec.steps, *latent),
        "eps_x_t": normal(2, *latent),
        "eps_hint": normal(2, *latent),
        "eps_context": normal(2, *context),
        "eps_t": np.array([3, 801]),
        "train_x": normal(2, *latent),
        "train_x_hat": normal(2, *latent),
        "train_noise": normal(2, *latent),
        "train_grad_names": np.array(list(GRADIENTS)),
    }


# Name in the release -> gradient in diffusers' ControlNet.
GRADIENTS = {
    "control_model.zero_convs.1.0.bias": lambda c: c.controlnet_down_blocks[1].bias.grad,
    "control_model.time_embed.0.weight": lambda c: c.time_embedding.linear_1.weight.grad,
    "control_model.input_blocks.0.0.weight": lambda c: torch.cat(
        [c.conv_in.weight.grad, c.controlnet_cond_embedding.weight.grad], 1
    ),
}


def compute(spec, nets, inputs, pre=None):
    """Every result, from inputs in the networks' dtype; samplers go on from `pre` if given."""
    with torch.no_grad():
        found = stages(spec, nets, inputs) | networks(nets, inputs)
        found |= trajectory(spec, nets, inputs, found["tall_stage_pre"] if pre is None else pre)
    return found | training(nets, inputs)


def stages(spec, nets, inputs):
    """One image through pre-restorer and autoencoder."""
    scale = spec.config.vae.scale_factor
    raw = nets.rrdb(inputs["tall_lr"])
    pre = raw.clamp(0, 1)
    moments = nets.vae.encode(2 * pre - 1).latent_dist.parameters
    hint = nets.hint.encode(2 * pre - 1).latent_dist.parameters
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    x_lr = scale * (mean + (logvar / 2).exp() * inputs["tall_noise_posterior"])
    decoded = nets.vae.decode(x_lr / scale).sample
    found = {
        "pre_raw": raw,
        "pre": pre,
        "moments": moments,
        "cond_moments": hint,
        "mean": mean,
        "logvar": logvar,
        "std": (logvar / 2).exp(),
        "x0_hat": x_lr,
        "c_latent": scale * hint.chunk(2, dim=1)[0],
        "decoded": decoded,
        "wavelet": wavelet((decoded + 1) / 2, pre),
        "adain": adain((decoded + 1) / 2, pre),
    }
    return {f"tall_stage_{name}": value for name, value in found.items()}


def adain(image, reference):
    """The image with the reference's mean and deviation."""

    def moments(x):
        return x.mean((2, 3), keepdim=True), (x.var((2, 3), keepdim=True) + 1e-5).sqrt()

    (mean, std), (mean_ref, std_ref) = moments(image), moments(reference)
    return (image - mean) / std * std_ref + mean_ref


def networks(nets, inputs):
    """The UNet and ControlNet at two times."""
    args = [inputs[f"eps_{name}"] for name in ("x_t", "t", "context", "hint")]
    residuals = nets.residuals(*args)
    found = {f"eps_control_{i:02}": residual for i, residual in enumerate(residuals)}
    return found | {
        "eps_control_norms": torch.stack([r.flatten(1).norm(dim=1) for r in residuals]),
        "eps_eps": nets.eps(*args),
        "eps_eps_strength05": nets.eps(*args, strength=0.5),
        "eps_eps_nocontrol": nets.unet(*args[:3]).sample,
    }


def trajectory(spec, nets, inputs, pre):
    """The published sampler in x, of order 1, 2 or 3."""
    t = np.round(np.arange(spec.steps, -1, -1) * 499 / spec.steps).astype(int)
    alpha, sigma, eta = ALPHAS_CUMPROD[t] ** 0.5, (1 - ALPHAS_CUMPROD[t]) ** 0.5, ETA[t]
    m, shift = alpha * (1 - eta), alpha * eta
    lam = sigma / m
    scale = spec.config.vae.scale_factor
    dist = nets.vae.encode(2 * pre - 1).latent_dist
    x_lr = scale * (dist.mean + dist.std * inputs["tall_noise_posterior"])
    hint = scale * nets.hint.encode(2 * pre - 1).latent_dist.mean
    x = alpha[0] * x_lr + sigma[0] * inputs["tall_noise_init"]
    xs, epss, x0s, slopes = [x], [], [], [0.0]
    for i in range(spec.steps):
        times = torch.full((1,), int(t[i]))
        eps = nets.eps(x, times, inputs["context"], hint)
        if spec.cfg:
            uncond = nets.eps(x, times, inputs["context_neg"], hint)
            eps = uncond + spec.cfg * (eps - uncond)
        x0 = (x - sigma[i] * eps) / alpha[i]
        s, u, r = lam[i], lam[i + 1], lam[i + 1] / lam[i]
        keep = m[i + 1] / m[i] * r**2
        nxt = keep * x + (shift[i + 1] - keep * shift[i]) * x_lr + m[i + 1] * (1 - r**2) * x0
        nxt = nxt + sigma[i + 1] * (1 - r**2) ** 0.5 * inputs["tall_noise_steps"][i]
        if i >= 1:
            slopes.append((x0 - x0s[-1]) / (s - lam[i - 1]))
            if spec.order >= 2:
                nxt = nxt - m[i + 1] * (u - s) ** 2 / s * slopes[i]
        if i >= 2 and spec.order >= 3:
            bend = 2 * (slopes[i] - slopes[i - 1]) / (s - lam[i - 2])
            nxt = nxt + m[i + 1] * ((s - 3 * u) * (s - u) / 2 - u**2 * np.log(r)) * bend
        x = nxt
        xs, epss, x0s = [*xs, x], [*epss, eps], [*x0s, x0]
    image = (nets.vae.decode(x / scale).sample + 1) / 2
    parts = {
        "x": torch.cat(xs),
        "eps": torch.cat(epss),
        "pred_x0": torch.cat(x0s),
        "img": image,
        "img_wavelet": wavelet(image, pre),
    }
    return {f"{spec.run}_{what}": value for what, value in parts.items()}


def training(nets, inputs):
    """Mean |x0 - D| and its gradients."""
    t = inputs["eps_t"].numpy()
    dtype = inputs["train_x"].dtype
    alpha, sigma, eta = (
        torch.from_numpy(a[t]).to(dtype)[:, None, None, None]
        for a in (ALPHAS_CUMPROD**0.5, (1 - ALPHAS_CUMPROD) ** 0.5, ETA)
    )
    x0 = inputs["train_x"]
    x = alpha * ((1 - eta) * x0 + eta * inputs["train_x_hat"]) + sigma * inputs["train_noise"]
    eps = nets.eps(x, inputs["eps_t"], inputs["eps_context"], inputs["eps_hint"])
    predicted = (x - sigma * eps) / alpha
    loss = (x0 - predicted).abs().mean()
    loss.backward()
    gradients = {name: of(nets.control) for name, of in GRADIENTS.items()}
    return {
        "train_x_noisy": x,
        "train_pred_x0": predicted.detach(),
        "train_loss": loss.detach(),
        "train_loss_per_sample": (x0 - predicted).abs().mean((1, 2, 3)).detach(),
        "train_grad_norms": torch.stack([g.norm() for g in gradients.values()]),
    } | {f"train_grad/{name}": g for name, g in gradients.items()}


def write_folder(folder: Path, spec: Spec) -> int:
    """Write weights, configuration and results in float32 and float64; returns how many results.

    Colour-fixed images are stored in float32 alone, as other implementations may.
    """
    nets = Networks(spec.config, spec.seed)
    write_model(folder, spec.config, our_tensors(nets))
    inputs = make_inputs(spec)
    numbers = {n: torch.from_numpy(a) for n, a in inputs.items() if a.dtype.kind != "U"}
    double = {n: a.double() if a.is_floating_point() else a for n, a in numbers.items()}
    single = compute(spec, nets, numbers)
    # The float32 image is the one that is stored.
    twin = compute(spec, in_double(nets), double, single["tall_stage_pre"].double())
    arrays = {n: a.numpy() for n, a in single.items()}
    alone = ("_wavelet", "_adain")
    arrays |= {f"{n}__f64": a.numpy() for n, a in twin.items() if not n.endswith(alone)}
    np.savez(folder / "golden.npz", **inputs, **arrays)
    return len(single)
