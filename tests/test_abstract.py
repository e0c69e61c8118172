"""A module of shapes is the one that is built with draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.models import TINY

from dossr_jax import systems, weights
from dossr_jax.config import RRDBConfig, TextConfig
from dossr_jax.models import layers
from dossr_jax.models.discriminator import Discriminator
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.efficientnet import EfficientNetLite0
from dossr_jax.models.rrdbnet import RRDBNet

TEXT = TextConfig(width=8, layers=3, heads=2, skip_layers=0, vocab_size=11, projection_dim=4)
WHOLE = dataclasses.replace(TINY, text=TEXT, shared_encoder=False)


class OneKey:
    """nnx.Rngs, but quick to trace."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


MAKERS = {
    "DoSSR": lambda **options: DoSSR(WHOLE, remat="full", **options),
    "RRDBNet": lambda **options: RRDBNet(
        RRDBConfig(num_features=8, num_blocks=2, growth=4), **options
    ),
    "EfficientNet": EfficientNetLite0,
    "discriminator": lambda **options: Discriminator(8, **options),
    "raw": lambda *, dtype, param_dtype, rngs: nnx.Linear(
        2, 3, dtype=dtype, param_dtype=param_dtype, rngs=rngs
    ),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes_build_what_draws_build(name, dtype):
    def make(rngs):
        return MAKERS[name](dtype=dtype, param_dtype=dtype, rngs=rngs)

    abstract = weights.make_abstract(make)
    drawn = nnx.eval_shape(lambda: make(OneKey()))
    (graphdef, state), (graphdef_drawn, state_drawn) = nnx.split(abstract), nnx.split(drawn)
    assert graphdef == graphdef_drawn
    assert jax.tree.structure(state) == jax.tree.structure(state_drawn)
    leaves = jax.tree.leaves(state)
    assert leaves == jax.tree.leaves(state_drawn)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def test_layers_that_are_alike_share_no_parameter():
    config = RRDBConfig(num_features=4, num_blocks=3, growth=2)
    model = weights.make_abstract(lambda rngs: RRDBNet(config, rngs=rngs))
    shapes = {name: param.shape for name, param in weights.names_and_params(model)}
    arrays = {name: np.full(shape, i, np.float32) for i, (name, shape) in enumerate(shapes.items())}
    weights.fill(model, arrays, "counted")
    filled = dict(weights.names_and_params(model))
    assert len(filled) == len(shapes) == 2 * (3 * 15 + 6)
    for name, array in arrays.items():
        np.testing.assert_array_equal(filled[name][...], array)


def test_nothing_is_drawn(monkeypatch):
    def draw(*args, **options):
        raise AssertionError("drawn")

    monkeypatch.setattr(layers.Shapes, "params", lambda self: None)
    monkeypatch.setattr(jax.random, "normal", draw)
    monkeypatch.setattr(jax.random, "truncated_normal", draw)
    systems.abstract_model(WHOLE)
