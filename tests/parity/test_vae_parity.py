"""The autoencoder at SD size against PyTorch's, of diffusers, with random weights."""

import dataclasses

import numpy as np
import pytest

from dossr_jax.config import VAEConfig
from dossr_jax.models.vae import VAE
from dossr_jax.pytorch.tables import vae_table

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from helpers.compare import build, nchw, relative_error, run, take_state  # noqa: E402
from torch_networks import make_vae, on_meta, randomise  # noqa: E402

SMALL = VAEConfig(base_channels=32, channel_mult=(1, 2), num_res_blocks=1)


@pytest.mark.parametrize(
    # Rounding in float32; the image norms' sums are over up to 400,000 values.
    ("config", "size", "tolerance"),
    [
        pytest.param(SMALL, (24, 32), 5e-6, id="small"),
        pytest.param(
            dataclasses.replace(SMALL, mid_attention=False), (24, 32), 5e-6, id="no attention"
        ),
        pytest.param(
            VAEConfig(), (192, 256), 2e-5, id="full", marks=[pytest.mark.slow, pytest.mark.alone]
        ),
    ],
)
def test_vae(config, size, tolerance):
    reference = randomise(on_meta(make_vae, config))
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (1, *size, config.in_channels)).astype(np.float32)
    with torch.inference_mode():
        moments = reference.encode(nchw(image)).latent_dist.parameters
        z = moments[:, : config.z_channels]
        expected = reference.decode(z).sample
    module = build(
        lambda rngs: VAE(config, rngs=rngs), vae_table(config, "diffusers"), take_state(reference)
    )
    encode = relative_error(run(VAE.encode, module, image), moments)
    latents = z.permute(0, 2, 3, 1).contiguous().numpy()
    decode = relative_error(run(VAE.decode, module, latents), expected)
    print(f"VAE, {config.base_channels} channels: encode {encode:.2e}, decode {decode:.2e}")
    assert max(encode, decode) <= tolerance
