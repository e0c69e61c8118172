"""Settings: what may be set is set, what cannot be is one line that names it and says what may."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dossr_jax.config import MAX_STEPS, SAMPLERS, SamplerConfig
from dossr_jax.errors import UserError
from dossr_jax.pipeline import make_settings

STORED = SamplerConfig(steps=7, order=1, final_denoise=True, fidelity=0.3)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "scale": [0, -1, math.nan, math.inf, 1e9, "4"],
        "steps": [0, MAX_STEPS + 1, 2.5, "5", True],
        "order": [0, 4, "3"],
        "sampler": ["fast"],
        "solver": ["euler", ""],
        "start": ["hr", ""],
        "grid": ["karras"],
        "final_denoise": [1, "yes"],
        "seed": [-1, 2**32, 0.5, "0", [1, 2**32], [0.5]],
        "cfg_scale": [math.nan, math.inf],
        "strength": [math.nan, "1"],
        "fidelity": [-0.1, 1.5, math.nan],
        "color_fix": ["hue", ""],
        "batch_size": [0, 1.5],
        "prompt": [3],
        "sharpness": [1],
    }.items(),
)
def test_impossible_values_are_one_line_that_names_them(name, values):
    for value in values:
        with pytest.raises(UserError) as error:
            make_settings(STORED, **{name: value})
        assert str(error.value).startswith(name)
        assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_numbers():
    settings = make_settings(
        STORED, scale=np.float32(2), steps=np.int64(3), seed=np.uint32(7), fidelity=np.float64(0.5)
    )
    assert (settings.scale, settings.sampler.steps, settings.sampler.fidelity) == (2, 3, 0.5)
    assert settings.seed_of(0) == settings.seed_of(9) == 7
    assert make_settings(STORED, seed=np.arange(3)).seed_of(2) == 2
    with pytest.raises(UserError, match="3 seeds for more images"):
        make_settings(STORED, seed=[1, 2, 3]).seed_of(3)


@given(st.sampled_from([None, 2]), st.sampled_from([None, "ode"]), st.sampled_from([None, False]))
def test_what_is_not_given_is_as_stored(order, solver, final_denoise):
    fields = {"order": order, "solver": solver, "final_denoise": final_denoise}
    settings = make_settings(STORED, **fields, scale=2)
    sampler = settings.sampler
    assert (sampler.steps, sampler.fidelity, settings.scale) == (7, 0.3, 2)
    assert sampler.order == (order or 1)
    assert sampler.solver == (solver or "sde")
    assert sampler.final_denoise is (final_denoise is None)


def test_a_named_sampler_replaces_what_is_stored_and_yields_to_what_is_given():
    sampler = make_settings(STORED, sampler="asinh", final_denoise=True).sampler
    assert (sampler.solver, sampler.order, sampler.grid) == ("asinh", 2, "asinh")
    assert sampler.final_denoise and (sampler.steps, sampler.fidelity) == (7, 0.3)
    published = make_settings(STORED, sampler="published").sampler
    for name in SAMPLERS["published"]:
        assert getattr(published, name) == getattr(SamplerConfig(), name)
    assert make_settings(STORED, sampler=SamplerConfig(), steps=2).sampler == SamplerConfig(steps=2)
