"""SwinIR's keys at full size, and what is refused; test_crosscheck_systems.py compares it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import zoo

from dossr_jax import weights
from dossr_jax.config import ConfigError, from_json, read_model_config, to_json
from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import Settings, read_settings
from dossr_jax.pytorch.state import State, to_ours
from dossr_jax.systems.swinir.config import SwinIRConfig
from dossr_jax.systems.swinir.keys import BUFFERS, config_from_yaml, infer_swinir, swinir_table
from dossr_jax.systems.swinir.networks import SwinIR

PUBLISHED = {
    "realsr_m_x4": SwinIRConfig(),
    "realsr_l_x4": SwinIRConfig(embed_dim=240, depths=(6,) * 9, heads=8, residual="3conv"),
    "diffbir_unshuffle8": SwinIRConfig(depths=(6,) * 8, scale=8, unshuffle=8),
}
PARAMETERS = {
    "realsr_m_x4": 11_715_559,
    "realsr_l_x4": 28_013_059,
    "diffbir_unshuffle8": 15_792_587,
}


@pytest.fixture(scope="module")
def settings() -> Settings:
    return read_settings(zoo.FOLDER / "swinir" / "config.yaml")


def learned(state: State) -> State:
    return state.select(lambda name: not BUFFERS.fullmatch(name))


def test_half_precision():
    config = SwinIRConfig(embed_dim=8, depths=(2,), heads=2, unshuffle=4)
    model = weights.make_abstract(lambda rngs: SwinIR(config, dtype=jnp.bfloat16, rngs=rngs))
    image = jax.ShapeDtypeStruct((2, config.multiple, 2 * config.multiple, 3), jnp.float32)
    out = jax.eval_shape(lambda model, image: model(image), model, image)
    assert config.upscale == 1
    assert out.shape == image.shape and out.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name):
    state, config = zoo.full_size("swinir", f"{name}."), PUBLISHED[name]
    assert infer_swinir(state) == config
    state = learned(state)
    assert infer_swinir(state) == config
    assert sum(np.prod(tensor.shape) for tensor in state.tensors.values()) == PARAMETERS[name]
    zoo.assert_there_and_back(swinir_table(config), state, lambda rngs: SwinIR(config, rngs=rngs))


def test_every_key_has_to_fit():
    config = PUBLISHED["realsr_m_x4"]
    tensors = dict(learned(zoo.full_size("swinir", "realsr_m_x4.")).tensors)
    del tensors["norm.bias"]
    tensors["conv_up3.bias"] = weights.lazy(np.zeros(64))
    tensors["conv_last.weight"] = weights.lazy(np.zeros((3, 64, 1, 1)))
    with pytest.raises(UserError) as error:
        to_ours(swinir_table(config), State("model.pth", tensors))
    for says in (
        "model.pth",
        "missing norm.bias (180,)",
        "extra conv_up3.bias (64,)",
        "misshapen conv_last.weight: file (3, 64, 1, 1), expected (3, 64, 3, 3)",
    ):
        assert says in str(error.value)


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("conv_up", "another head than nearest\\+conv"),
        ("conv_up2", "scale 2"),
        ("conv_first", "has no conv_first.weight"),
        ("layers.0", "has no layers.0.residual_group.blocks.0"),
    ],
)
def test_other_networks_are_refused(prefix, says):
    state = zoo.full_size("swinir", "realsr_m_x4.")
    with pytest.raises(UserError, match=says):
        infer_swinir(state.select(lambda name: not name.startswith(prefix)))


def test_a_weight_of_another_rank_is_refused():
    tensors = dict(zoo.full_size("swinir", "realsr_m_x4.").tensors)
    tensors["conv_first.weight"] = weights.lazy(np.zeros(64))
    with pytest.raises(UserError, match="this SwinIR is not supported"):
        infer_swinir(State("model.pth", tensors))


@pytest.mark.parametrize("name", ["x4", "unshuffle", "x4l"])
def test_configuration_from_keys_yaml_and_json(settings, name):
    config = config_from_yaml(settings.at(name))
    assert config.embed_dim == 32 and config.upscale == (1 if name == "unshuffle" else 4)
    assert infer_swinir(zoo.read_state("swinir").below(f"{name}.")) == config
    assert from_json(SwinIRConfig, to_json(config)) == config
    assert read_model_config(to_json(config)) == config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"upsampler": "pixelshuffle"}, "upsampler is 'pixelshuffle': only nearest"),
        ({"img_range": 255.0}, "img_range"),
        ({"num_heads": [4, 2]}, "num_heads"),
        ({"img_size": 8}, "never shift"),
        ({"sf": 3}, "scale 3"),
        ({"depths": 2}, "correct the file"),
    ],
)
def test_wrong_settings(settings, changes, says):
    tree = settings.tree["x4"] | changes
    with pytest.raises(UserError, match=says):
        config_from_yaml(Settings(settings.path, tree))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"heads": 7}, "heads 7: must divide embed_dim 180"),
        ({"residual": "3conv", "embed_dim": 30}, "multiple of 4"),
        ({"unshuffle": 8}, "unshuffle 8: must divide scale 4"),
        ({"window": 7}, "multiple of 2"),
    ],
)
def test_impossible_configurations(fields, says):
    with pytest.raises(ConfigError, match=says):
        SwinIRConfig(**fields)
