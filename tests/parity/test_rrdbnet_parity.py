"""RRDBNet against PyTorch: random weights at full size, and Real-ESRGAN's on a photo."""

import numpy as np
import pytest

from dossr_jax.config import RRDBConfig
from dossr_jax.models.rrdbnet import RRDBNet
from dossr_jax.pytorch.ncnn import read_ncnn
from dossr_jax.pytorch.tables import rrdb_table
from dossr_jax.systems.rrdb import find_packaged, new_name, preprocessor

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch_networks  # noqa: E402
from helpers import spandrel_esrgan  # noqa: E402
from helpers.compare import build, nchw, relative_error, run, take_state  # noqa: E402

SMALL = {"num_features": 16, "num_blocks": 2, "growth": 8}


def compare(config, image, tolerance):
    reference = torch_networks.randomise(torch_networks.RRDBNet(config))
    with torch.inference_mode():
        expected = reference(nchw(image))
    module = build(
        lambda rngs: RRDBNet(config, rngs=rngs), rrdb_table(config), take_state(reference)
    )
    error = relative_error(run(RRDBNet.__call__, module, image), expected)
    print(f"RRDBNet, {config.num_blocks} blocks, scale {config.scale}: {error:.2e}")
    assert error <= tolerance


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_small(scale, photo):
    compare(RRDBConfig(scale=scale, **SMALL), photo[None], 5e-6)


@pytest.mark.slow
def test_full_size(photo):
    # Rounding in float32, through 350 convolutions.
    compare(RRDBConfig(), photo[None], 2e-5)


@pytest.mark.slow
def test_realesrgan_on_a_photo(photo):
    param = find_packaged("realesrgan")
    module = preprocessor("realesrgan")
    reference = torch_networks.RRDBNet(module.config)
    tensors = {
        name: torch.from_numpy(np.array(tensor.load(), np.float32))
        for name, tensor in read_ncnn(param).tensors.items()
    }
    reference.load_state_dict(tensors)
    with torch.inference_mode():
        expected = reference(nchw(photo[None]))
    error = relative_error(run(RRDBNet.__call__, module, photo[None]), expected)
    print(f"realesrgan-x4plus on a photo: {error:.2e}")
    assert error <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_the_reference_is_spandrels(scale):
    """The PyTorch RRDBNet compared with above is not ours alone: spandrel's computes the same."""
    config = RRDBConfig(scale=scale)
    reference = torch_networks.randomise(torch_networks.RRDBNet(config))
    try:
        theirs = spandrel_esrgan.load()(
            in_nc=3 * config.fold**2, num_blocks=23, scale=4, shuffle_factor=config.fold
        )
    except ImportError as error:
        pytest.skip(f"spandrel cannot be imported: {error}")
    state = reference.state_dict()
    theirs.load_state_dict({name: state[new_name(name)] for name in theirs.state_dict()})
    image = torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(image)
        torch.testing.assert_close(
            reference(image), expected, rtol=0, atol=1e-6 * expected.abs().max().item()
        )
