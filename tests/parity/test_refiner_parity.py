"""Refiner against PyTorch: the reference RRDBNet with what the refiner adds, written out."""

import numpy as np
import pytest

from dossr_jax.config import RRDBConfig
from dossr_jax.convert.tables import rrdb_table
from dossr_jax.convert.tables.rows import conv, with_prefix
from dossr_jax.models.refiner import Refiner

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch_networks  # noqa: E402
from helpers.compare import build, nchw, randomise, relative_error, run, take_state  # noqa: E402
from torch.nn import functional  # noqa: E402

DETAIL = 0.6


class Reference(torch.nn.Module):
    """NCHW; the features of the change are added to those of the LR image."""

    def __init__(self, config):
        super().__init__()
        self.block = 4 * config.fold
        self.net = torch_networks.RRDBNet(config)
        self.conv_change = torch.nn.Conv2d(3 * self.block**2, config.num_features, 3, padding=1)

    def forward(self, lr, pre, image):
        folded = functional.pixel_unshuffle(image - pre, self.block)
        self.net.conv_first.register_forward_hook(lambda *io: io[-1] + self.conv_change(folded))
        size = image.shape[-2:]
        out = functional.interpolate(self.net(lr), size=size, mode="nearest")
        return out + DETAIL * (image - pre)


def test_refiner(photo):
    config = RRDBConfig(num_features=16, num_blocks=2, growth=8)
    reference = randomise(Reference(config))
    lr = photo[None, ::2, ::2]
    pre, image = np.random.default_rng(0).random((2, 1, 96, 128, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = reference(*map(nchw, (lr, pre, image)))
    table = with_prefix(rrdb_table(config), "net.", "net.")
    table += conv("conv_change", "conv_change", 3 * 4**2, config.num_features)
    module = build(lambda rngs: Refiner(config, rngs=rngs), table, take_state(reference))
    error = relative_error(run(Refiner.__call__, module, lr, pre, image, DETAIL), expected)
    print(f"refiner, {config.num_blocks} blocks: {error:.2e}")
    assert error <= 5e-6  # as the pre-restorer
