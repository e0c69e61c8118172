"""Refiner against PyTorch, written out in its functions."""

import jax
import numpy as np
import pytest
from models import randomised

from dossr_jax import weights
from dossr_jax.config import RefinerConfig
from dossr_jax.models.refiner import Refiner

torch = pytest.importorskip("torch")


def reference(params, image, pre, config):
    """The refined image, NCHW; kernels as PyTorch lays them out."""

    def conv(name, x):
        kernel = torch.from_numpy(params[f"{name}.kernel"].transpose(3, 2, 0, 1).copy())
        bias = torch.from_numpy(params[f"{name}.bias"].copy())
        return torch.nn.functional.conv2d(x, kernel, bias, padding=1)

    silu = torch.nn.functional.silu
    both = torch.cat([image, pre], dim=1)
    h = conv("conv_in", torch.nn.functional.pixel_unshuffle(both, config.patch_size))
    for i in range(config.num_blocks):
        h = h + conv(f"blocks.{i}.conv2", silu(conv(f"blocks.{i}.conv1", h)))
    correction = conv("conv_out", silu(h))
    return image + torch.nn.functional.pixel_shuffle(correction, config.patch_size)


@pytest.mark.parametrize("config", [RefinerConfig(), RefinerConfig(num_features=8, patch_size=1)])
def test_refiner(config):
    module = randomised(lambda rngs: Refiner(config, rngs=rngs))
    params = {n: np.asarray(p[...]) for n, p in weights.names_and_params(module)}
    image, pre = np.random.default_rng(0).random((2, 1, 24, 16, 3)).astype(np.float32)
    nchw = (torch.from_numpy(a.transpose(0, 3, 1, 2).copy()) for a in (image, pre))
    expected = reference(params, *nchw, config).numpy().transpose(0, 2, 3, 1)
    got = np.asarray(jax.jit(module)(image, pre))
    assert np.abs(expected - image).max() > 0.1
    # Rounding in float32, through eight convolutions.
    assert np.abs(got - expected).max() <= 5e-6 * np.abs(expected).max()
