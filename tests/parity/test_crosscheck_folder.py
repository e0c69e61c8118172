"""The crosscheck on a folder that PyTorch alone has computed, at other sizes than the golden one.

Networks are diffusers' and our PyTorch RRDBNet, the sampler and the training pass are written here
as the paper prints them.
"""

import copy

import numpy as np
import pytest

from dossr_jax.convert.state import Lazy, State, lazy, to_ours
from dossr_jax.convert.tables import rrdb_table, unet_table, vae_encoder_table, vae_table
from dossr_jax.crosscheck import main

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from helpers.compare import on_meta, randomise  # noqa: E402
from helpers.folders import OTHER, write_model  # noqa: E402
from torch_networks import RRDBNet, make_controlnet, make_unet, make_vae  # noqa: E402

ORDER, STEPS, CFG_SCALE = 2, 3, 1.5
SCALE = OTHER.vae.scale_factor
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
ETA = np.append((1 - np.cos(np.pi * np.linspace(0.001, 0.999, 500))) / 2, np.ones(500))


class Networks(torch.nn.Module):
    """What a DoSSR is made of."""

    def __init__(self):
        super().__init__()
        makers = {
            "unet": (make_unet, OTHER.unet),
            "control": (make_controlnet, OTHER.unet),
            "vae": (make_vae, OTHER.vae),
            "hint": (make_vae, OTHER.vae),
            "rrdb": (RRDBNet, OTHER.rrdb),
        }
        for seed, (name, (make, config)) in enumerate(makers.items()):
            self.add_module(name, randomise(on_meta(make, config), seed))
        # The release has one bias where these two convolutions have one each.
        torch.nn.init.zeros_(self.control.controlnet_cond_embedding.bias)

    def in_double(self) -> "Networks":
        """A copy in float64; the time embedding, always float32 in diffusers, as well."""
        twin = copy.deepcopy(self).double()
        for net in (twin.unet, twin.control):
            net.time_proj = DoubleEmbedding()
        return twin

    def residuals(self, x, t, context, hint):
        """The ControlNet's."""
        down, mid = self.control(x, t, context, hint, return_dict=False)
        return [*down, mid]

    def eps(self, x, t, context, hint, strength=1.0):
        """Prediction of the noise."""
        *down, mid = (strength * r for r in self.residuals(x, t, context, hint))
        return self.unet(
            x,
            t,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample


class DoubleEmbedding(torch.nn.Module):
    """[cos, sin] of the time, as wide as the UNet's first level."""

    def forward(self, t):
        half = OTHER.unet.model_channels // 2
        rates = torch.exp(-np.log(10000) * torch.arange(half, dtype=torch.float64) / half)
        angles = t.double()[:, None] * rates
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def our_tensors(nets: Networks) -> dict[str, Lazy]:
    """The parameters under our names."""

    def entries(module, table, ours):
        state = {n: lazy(p.detach().numpy()) for n, p in module.named_parameters()}
        wanted = {row.torch for row in table}
        found = to_ours(table, State(ours, {n: t for n, t in state.items() if n in wanted}))
        return {f"{ours}.{name}": tensor for name, tensor in found.items()}

    unet = unet_table(OTHER.unet, "diffusers")
    encoder = [row for row in unet if row.ours.startswith("encoder.")]
    hint = vae_encoder_table(OTHER.vae, "diffusers")
    tensors = entries(nets.unet, unet, "unet") | entries(nets.control, encoder, "control")
    tensors |= entries(nets.vae, vae_table(OTHER.vae, "diffusers"), "vae")
    tensors |= entries(nets.hint, hint, "hint_encoder")
    tensors |= entries(nets.rrdb, rrdb_table(OTHER.rrdb), "rrdb")
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


def make_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    # Pixels (h, w) of the LR image give latents (2 h, 2 w): the VAE halves a 4x image.
    latent = (4, 12, 8)
    return {
        "context": normal(1, 5, 24),
        "context_neg": normal(1, 5, 24),
        "tall_lr": rng.uniform(size=(1, 3, 6, 4)).astype(np.float32),
        "tall_noise_posterior": normal(1, *latent),
        "tall_noise_init": normal(1, *latent),
        "tall_noise_steps": normal(STEPS, *latent),
        "eps_x_t": normal(2, *latent),
        "eps_hint": normal(2, *latent),
        "eps_context": normal(2, 5, 24),
        "eps_t": np.array([3, 801]),
        "train_x": normal(2, *latent),
        "train_x_hat": normal(2, *latent),
        "train_noise": normal(2, *latent),
        "train_grad_names": np.array(list(GRADIENTS)),
    }


# Name in the release -> gradient in diffusers' ControlNet.
GRADIENTS = {
    "control_model.zero_convs.2.0.bias": lambda c: c.controlnet_down_blocks[2].bias.grad,
    "control_model.time_embed.0.weight": lambda c: c.time_embedding.linear_1.weight.grad,
    "control_model.input_blocks.0.0.weight": lambda c: torch.cat(
        [c.conv_in.weight.grad, c.controlnet_cond_embedding.weight.grad], 1
    ),
}


def compute(nets, inputs, pre=None):
    """Every result, from inputs in the networks' dtype; samplers go on from `pre` if given."""
    with torch.no_grad():
        found = stages(nets, inputs) | networks(nets, inputs)
        found |= trajectory(nets, inputs, found["tall_stage_pre"] if pre is None else pre)
    return found | training(nets, inputs)


def stages(nets, inputs):
    raw = nets.rrdb(inputs["tall_lr"])
    pre = raw.clamp(0, 1)
    moments = nets.vae.encode(2 * pre - 1).latent_dist.parameters
    hint = nets.hint.encode(2 * pre - 1).latent_dist.parameters
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    x_lr = SCALE * (mean + (logvar / 2).exp() * inputs["tall_noise_posterior"])
    found = {
        "pre_raw": raw,
        "pre": pre,
        "moments": moments,
        "cond_moments": hint,
        "mean": mean,
        "logvar": logvar,
        "std": (logvar / 2).exp(),
        "x0_hat": x_lr,
        "c_latent": SCALE * hint.chunk(2, dim=1)[0],
        "decoded": nets.vae.decode(x_lr / SCALE).sample,
    }
    return {f"tall_stage_{name}": value for name, value in found.items()}


def networks(nets, inputs):
    args = [inputs[f"eps_{name}"] for name in ("x_t", "t", "context", "hint")]
    residuals = nets.residuals(*args)
    found = {f"eps_control_{i:02}": residual for i, residual in enumerate(residuals)}
    return found | {
        "eps_control_norms": torch.stack([r.flatten(1).norm(dim=1) for r in residuals]),
        "eps_eps": nets.eps(*args),
        "eps_eps_strength05": nets.eps(*args, strength=0.5),
        "eps_eps_nocontrol": nets.unet(*args[:3]).sample,
    }


def trajectory(nets, inputs, pre):
    """The published second-order sampler in x, with classifier-free guidance."""
    t = np.round(np.arange(STEPS, -1, -1) * 499 / STEPS).astype(int)
    alpha, sigma, eta = ALPHAS_CUMPROD[t] ** 0.5, (1 - ALPHAS_CUMPROD[t]) ** 0.5, ETA[t]
    m, shift = alpha * (1 - eta), alpha * eta
    lam = sigma / m
    x_lr, hint = encoded_latents(nets, pre, inputs["tall_noise_posterior"])
    x = alpha[0] * x_lr + sigma[0] * inputs["tall_noise_init"]
    xs, epss, x0s = [x], [], []
    for i in range(STEPS):
        times = torch.full((1,), int(t[i]))
        cond, uncond = (
            nets.eps(x, times, inputs[name], hint) for name in ("context", "context_neg")
        )
        eps = uncond + CFG_SCALE * (cond - uncond)
        x0 = (x - sigma[i] * eps) / alpha[i]
        r = lam[i + 1] / lam[i]
        keep = m[i + 1] / m[i] * r**2
        noise = inputs["tall_noise_steps"][i]
        nxt = keep * x + (shift[i + 1] - keep * shift[i]) * x_lr + m[i + 1] * (1 - r**2) * x0
        nxt = nxt + sigma[i + 1] * (1 - r**2) ** 0.5 * noise
        if i:
            slope = (x0 - x0s[-1]) / (lam[i] - lam[i - 1])
            nxt = nxt - m[i + 1] * (lam[i + 1] - lam[i]) ** 2 / lam[i] * slope
        x = nxt
        xs, epss, x0s = [*xs, x], [*epss, eps], [*x0s, x0]
    name = f"tall_samp_o{ORDER}_s{STEPS}_cfg{CFG_SCALE}"
    image = (nets.vae.decode(x / SCALE).sample + 1) / 2
    parts = {"x": torch.cat(xs), "eps": torch.cat(epss), "pred_x0": torch.cat(x0s), "img": image}
    return {f"{name}_{what}": value for what, value in parts.items()}


def encoded_latents(nets, pre, noise):
    """x_lr and hint of a pre-restored image."""
    dist = nets.vae.encode(2 * pre - 1).latent_dist
    hint = nets.hint.encode(2 * pre - 1).latent_dist.mean
    return SCALE * (dist.mean + dist.std * noise), SCALE * hint


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


@pytest.mark.slow
def test_a_folder_of_pytorchs_own(tmp_path, capsys):
    nets = Networks()
    write_model(tmp_path, our_tensors(nets))
    inputs = make_inputs()
    numbers = {n: torch.from_numpy(a) for n, a in inputs.items() if a.dtype.kind != "U"}
    double = {n: a.double() if a.is_floating_point() else a for n, a in numbers.items()}
    single = compute(nets, numbers)
    # The float32 image is the one that is stored.
    twin = compute(nets.in_double(), double, single["tall_stage_pre"].double())
    arrays = {n: a.numpy() for n, a in single.items()}
    arrays |= {f"{n}__f64": a.numpy() for n, a in twin.items()}
    np.savez(tmp_path / "golden.npz", **inputs, **arrays)
    status = main([str(tmp_path), "--dtype", "float64"])
    out = capsys.readouterr().out
    assert status == 0, out
    assert f"float64: {len(single)} of {len(single)} stages agree" in out
