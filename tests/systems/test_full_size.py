"""Checkpoints of the published size on Stable Diffusion: to ours and back, bit for bit."""

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest

from dossr_jax import systems, weights
from dossr_jax.config import LatentConfig, TextConfig
from dossr_jax.pytorch.state import State
from dossr_jax.pytorch.tables import Row
from dossr_jax.systems.diffbir.config import DiffBIRConfig
from dossr_jax.systems.diffbir.keys import diffbir_table
from dossr_jax.systems.one_step.config import OSEDiffConfig, PiSASRConfig
from dossr_jax.systems.one_step.keys import osediff_table, pisasr_table
from dossr_jax.weights import Lazy

CONFIGS: dict[str, tuple[LatentConfig, Callable[..., list[Row]]]] = {
    "diffbir": (DiffBIRConfig(text=TextConfig()), diffbir_table),
    "osediff": (OSEDiffConfig(text=TextConfig()), osediff_table),
    "pisasr": (PiSASRConfig(text=TextConfig()), pisasr_table),
}
PARAMETERS = {"diffbir": 1682.5, "osediff": 1308.0, "pisasr": 1311.7}  # millions, as of the table


def draw(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random bits as float16, repeated where there are many."""
    count = math.prod(shape)
    bits = np.random.default_rng(seed).integers(2**16, size=min(count, 65537), dtype=np.uint16)
    return np.resize(bits, shape).view(np.float16)


def random_state(table: list[Row]) -> dict[str, Lazy]:
    half = np.dtype(np.float16)
    return {
        row.torch: Lazy(row.shape, half, functools.partial(draw, i, row.shape))
        for i, row in enumerate(table)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_comes_back(name):
    config, table = CONFIGS[name]
    tensors = random_state(table(config))
    if name == "osediff":  # its trained first convolution stands in Stable Diffusion's place
        for kind in ("weight", "bias"):
            original = tensors[f"model.diffusion_model.input_blocks.0.0.{kind}"]
            tensors[f"state_dict_unet.conv_in.base_layer.{kind}"] = original
    system = systems.system_of(config)
    assert system.read is not None and system.export is not None
    model = system.read(State("full size", tensors), "v1" if system.variants else None)
    assert model.config == config
    abstract = systems.abstract_model(config)
    shapes = {n: p.shape for n, p in weights.names_and_params(abstract)}
    shapes = {n: s for n, s in shapes.items() if n not in ("context", "negative_context")}
    assert {n: t.shape for n, t in model.tensors.items()} == shapes
    assert sum(map(math.prod, shapes.values())) / 1e6 == pytest.approx(PARAMETERS[name], abs=0.1)
    back = system.export(model)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert back[key].load().tobytes() == tensor.load().tobytes(), key
