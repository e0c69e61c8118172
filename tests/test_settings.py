"""Settings: what may be set is set, what cannot be is one line that says what may."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dossr_jax.config import SCHEMES, SamplerConfig
from dossr_jax.errors import UserError
from dossr_jax.pipeline import MAX_STEPS, Settings, choices


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "scale": [0, -1, math.nan, math.inf, 1e9, "4"],
        "steps": [0, MAX_STEPS + 1, 2.5, "5"],
        "order": [0, 4, "3"],
        "scheme": ["fast"],
        "solver": ["euler", ""],
        "start": ["hr", ""],
        "grid": ["karras"],
        "seed": [-1, 2**32, 0.5, "0", [1, 2**32], [0.5], None],
        "cfg_scale": [math.nan, math.inf, None],
        "strength": [math.nan, "1"],
        "fidelity": [-0.1, 1.5, math.nan],
        "color_fix": ["hue", ""],
        "batch_size": [0, 1.5],
    }.items(),
)
def test_impossible_values_are_one_line_that_names_them(name, values):
    for value in values:
        with pytest.raises(UserError) as error:
            Settings(**{name: value})
        assert str(error.value).startswith(f"{name} {value!r} is not ")
        assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_numbers():
    settings = Settings(
        scale=np.float32(2), steps=np.int64(3), seed=np.uint32(7), fidelity=np.float64(0.5)
    )
    assert settings.seed_of(0) == settings.seed_of(9) == 7
    assert Settings(seed=np.arange(3)).seed_of(2) == 2


def test_choices_are_what_the_annotations_list():
    assert choices("order") == (1, 2, 3)
    assert choices("color_fix") == ("wavelet", "residual", "adain", "none")
    assert choices("solver") == ("sde", "ode", "span")
    assert choices("scale") == choices("prompt") == ()


@given(st.sampled_from([None, 2]), st.sampled_from([None, "ode"]), st.sampled_from([None, True]))
def test_what_is_left_open_is_as_stored(order, solver, final_denoise):
    stored = SamplerConfig(steps=7, order=1, grid="jump", fidelity=0.3)
    done = Settings(order=order, solver=solver, final_denoise=final_denoise, scale=2)
    done = done.completed(stored)
    assert (done.steps, done.grid, done.fidelity, done.scale) == (7, "jump", 0.3, 2)
    assert done.order == (order or 1)
    assert done.solver == (solver or "sde")
    assert done.final_denoise is bool(final_denoise)


def test_a_scheme_replaces_what_is_stored_and_yields_to_what_is_given():
    assert choices("scheme") == tuple(SCHEMES)
    stored = SamplerConfig(steps=7, order=1, grid="jump", final_denoise=True, fidelity=0.3)
    done = Settings(scheme="span", final_denoise=True).completed(stored)
    assert (done.solver, done.order, done.grid) == ("span", 2, "span")
    assert done.final_denoise and (done.steps, done.fidelity) == (7, 0.3)
    done = Settings(scheme="published").completed(stored)
    plain = SamplerConfig()
    assert all(getattr(done, name) == getattr(plain, name) for name in SCHEMES["published"])
