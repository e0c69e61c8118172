"""The UNet at SD 2.1-base size against PyTorch's, of diffusers, with random weights."""

import numpy as np
import pytest

from dossr_jax.config import UNetConfig
from dossr_jax.models.unet import UNet
from dossr_jax.pytorch.tables import unet_table

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from helpers.compare import build, nchw, relative_error, run, take_state  # noqa: E402
from torch_networks import make_unet, on_meta, randomise  # noqa: E402

# Our smallest full-featured layout runs in every test run, SD's own in CI.
SMALL = UNetConfig(model_channels=32, channel_mult=(1, 2, 2), head_dim=16, context_dim=24)


@pytest.mark.parametrize(
    # Rounding in float32, through some hundred layers at full size.
    ("config", "tolerance"),
    [
        pytest.param(SMALL, 5e-6, id="small"),
        pytest.param(UNetConfig(), 2e-5, id="full", marks=[pytest.mark.slow, pytest.mark.alone]),
    ],
)
def test_unet(config, tolerance):
    reference = randomise(on_meta(make_unet, config))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 24, 32, config.in_channels), np.float32)
    t = np.array([3, 801], np.int32)
    context = rng.standard_normal((2, 77, config.context_dim), np.float32)
    with torch.inference_mode():
        expected = reference(nchw(x), torch.from_numpy(t), torch.from_numpy(context)).sample
    module = build(
        lambda rngs: UNet(config, rngs=rngs),
        unet_table(config, "diffusers"),
        take_state(reference),
    )
    error = relative_error(run(UNet.__call__, module, x, t, context), expected)
    print(f"UNet, {config.model_channels} channels: {error:.2e}")
    assert error <= tolerance
