"""What moves a run's parameters: the learning rate, and low-rank updates of projections."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small import make_config

from dossr_jax.training import params
from dossr_jax.training.state import learning_rate


def test_learning_rate_warms_up_and_ends_at_zero():
    config = make_config("vae", optimizer={"warmup": 10, "learning_rate": 2.0}).optimizer
    rate = [float(learning_rate(config, 100)(s)) for s in range(101)]
    assert 0 < rate[0] < 0.2 and rate[100] == pytest.approx(0, abs=1e-6)
    assert np.argmax(rate) == 10 and (np.diff(rate[10:]) < 0).all()
    constant = learning_rate(dataclasses.replace(config, schedule="constant"), 100)
    assert float(constant(10)) == float(constant(99)) == 2.0


def test_low_rank_updates_merge_into_the_projections():
    name = "unet.encoder.mid.stage.transformer.blocks.0.attn1.to_q.kernel"
    factors = params.lora_shapes({name: (8, 8), "unet.conv_in.kernel": (3, 3, 4, 8)}, 2)
    assert factors == {f"lora.{name}.a": (8, 2), f"lora.{name}.b": (2, 8)}
    rng = np.random.default_rng(0)
    values = {n: rng.standard_normal(shape) for n, shape in factors.items()}
    weight = rng.standard_normal((8, 8))
    merged = params.with_lora({name: jnp.asarray(weight), **values})
    assert list(merged) == [name]
    want = weight + values[f"lora.{name}.a"] @ values[f"lora.{name}.b"]
    np.testing.assert_allclose(merged[name], want, rtol=1e-5, atol=1e-6)
    assert not params.lora_start(f"lora.{name}.b", (2, 8), 0).any()
