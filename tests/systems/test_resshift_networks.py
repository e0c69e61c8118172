"""ResShift's codes, and its keys at full size; test_crosscheck_systems.py compares its networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import zoo

from dossr_jax import weights
from dossr_jax.config import ConfigError, SamplerConfig, from_json, read_model_config, to_json
from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import Settings, read_settings
from dossr_jax.pytorch.state import State, to_ours
from dossr_jax.systems.resshift.config import (
    ResShiftConfig,
    ResShiftProcess,
    SwinUNetConfig,
    VQConfig,
    published_sampler,
)
from dossr_jax.systems.resshift.keys import (
    BUFFERS,
    config_from_yaml,
    infer_resshift,
    resshift_table,
)
from dossr_jax.systems.resshift.networks import VQ, SwinUNet

PARAMETERS = {"unet.": 118.6, "autoencoder.": 55.3}  # millions
CONFERENCE = ResShiftProcess(steps=15, min_noise=0.04)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return read_settings(zoo.FOLDER / "resshift" / "config.yaml")


@pytest.fixture(scope="module")
def config(settings) -> ResShiftConfig:
    return config_from_yaml(settings)


def learned(state: State) -> State:
    return state.select(lambda name: not BUFFERS.fullmatch(name))


def test_nearest_codes_of_large_maps_and_of_equals():
    rng = np.random.default_rng(0)
    config = VQConfig(base_channels=32, channel_mult=(1,), num_res_blocks=1, codes=12)
    vq = weights.make_abstract(lambda rngs: VQ(config, rngs=rngs))
    codes = np.tile(rng.normal(size=(6, 3)), (2, 1)).astype(np.float32)
    vq.codebook.set_value(jnp.asarray(codes))
    z = rng.normal(size=(2, 41, 61, 3)).astype(np.float32)  # more than are compared at once
    distances = np.linalg.norm(z[..., None, :] - codes[:6], axis=-1)
    np.testing.assert_array_equal(vq.nearest_code(jnp.asarray(z)), distances.argmin(-1))


def test_half_precision():
    options = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    config = SwinUNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=(1, 1))
    unet = weights.make_abstract(lambda rngs: SwinUNet(config, **options, rngs=rngs))
    x = jax.ShapeDtypeStruct((2, config.multiple, 2 * config.multiple, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((2,), jnp.int32)
    out = jax.eval_shape(lambda unet, *args: unet(*args), unet, x, t, x)
    assert out.shape == x.shape and out.dtype == jnp.bfloat16
    vq = weights.make_abstract(lambda rngs: VQ(VQConfig(), **options, rngs=rngs))
    z = jax.eval_shape(VQ.encode, vq, x)
    index, image = jax.eval_shape(lambda vq, z: (vq.nearest_code(z), vq.decode(z)), vq, z)
    assert vq.codebook.dtype == jnp.float32  # as wrong codes are visible
    assert index.shape == z.shape[:-1] == (2, 4, 8) and index.dtype == jnp.int32
    assert image.shape == x.shape and z.dtype == image.dtype == jnp.bfloat16


class Both(nnx.Module):
    """The two networks of a model under the names that the table gives them."""

    def __init__(self, config: ResShiftConfig, rngs: nnx.Rngs):
        self.unet = SwinUNet(config.unet, rngs=rngs)
        self.vq = VQ(config.vq, rngs=rngs)


def test_published_model():
    state, config = zoo.full_size("resshift"), ResShiftConfig()
    assert infer_resshift(state) == config
    conference = ResShiftConfig(process=CONFERENCE, sampler=published_sampler(15))
    assert infer_resshift(state, CONFERENCE) == conference
    state = learned(state)
    assert infer_resshift(state) == config
    for prefix, millions in PARAMETERS.items():
        tensors = state.below(prefix).tensors.values()
        assert round(sum(np.prod(tensor.shape) for tensor in tensors) / 1e6, 1) == millions
    zoo.assert_there_and_back(resshift_table(config), state, lambda rngs: Both(config, rngs))


def test_every_key_has_to_fit():
    tensors = dict(learned(zoo.full_size("resshift")).tensors)
    del tensors["unet.out.2.bias"]
    tensors["unet.feature_extractor.0.bias"] = weights.lazy(np.zeros(16))
    tensors["autoencoder.quant_conv.weight"] = weights.lazy(np.zeros((6, 6, 1, 1)))
    with pytest.raises(UserError) as error:
        to_ours(resshift_table(ResShiftConfig()), State("model.pth", tensors))
    for says in (
        "model.pth",
        "missing unet.out.2.bias (3,)",
        "extra unet.feature_extractor.0.bias (16,)",
        "misshapen autoencoder.quant_conv.weight: file (6, 6, 1, 1), expected (3, 3, 1, 1)",
    ):
        assert says in str(error.value)


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("unet.", "has no input_blocks.0.0.weight"),
        ("unet.input_blocks.1.1.", "has no input_blocks.1.1.patch_embed.proj.weight"),
        ("autoencoder.quantize.", "has no quantize.embedding.weight"),
    ],
)
def test_other_networks_are_refused(prefix, says):
    state = zoo.full_size("resshift")
    with pytest.raises(UserError, match=says):
        infer_resshift(state.select(lambda name: not name.startswith(prefix)))


def test_a_weight_of_another_rank_is_refused():
    tensors = dict(zoo.full_size("resshift").tensors)
    tensors["unet.input_blocks.0.0.weight"] = weights.lazy(np.zeros(64))
    with pytest.raises(UserError, match="no ResShift of the kind"):
        infer_resshift(State("model.pth", tensors))


def test_configuration_from_keys_yaml_and_json(settings, config):
    assert infer_resshift(zoo.read_state("resshift")) == config
    assert [config.unet.shifts(level) for level in range(4)] == [True, True, True, False]
    conference = config_from_yaml(settings, "diffusion_v1")
    assert (conference.process, conference.sampler.steps) == (CONFERENCE, 15)
    assert from_json(ResShiftConfig, to_json(config)) == config
    assert read_model_config(to_json(config)) == config


def test_one_number_of_blocks_stands_for_all_levels(settings):
    changed = changed_settings(settings, "model.params.num_res_blocks", 2)
    assert config_from_yaml(changed).unet.num_res_blocks == (2, 2, 2, 2)


def changed_settings(settings: Settings, path: str, value) -> Settings:
    def replaced(tree, names):
        name, *below = names
        return tree | {name: replaced(tree[name], below) if below else value}

    return Settings(settings.path, replaced(settings.tree, path.split(".")))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("model.params.lq_size", 64, "lq_size is 64: only 32 is supported"),
        ("model.params.use_scale_shift_norm", False, "only True is supported"),
        ("model.params.attention_resolutions", [32, 16], "attention_resolutions"),
        ("model.params.window_size", 5, "window"),
        ("autoencoder.params.embed_dim", 8, "embed_dim is 8: only 3 is supported"),
        ("autoencoder.params.ddconfig.double_z", True, "double_z"),
        ("diffusion_v3.predict_type", "epsilon", "only 'xstart' is supported"),
        ("diffusion_v3.steps", 0, "steps 0"),
    ],
)
def test_wrong_settings(settings, path, value, says):
    with pytest.raises(UserError, match=says):
        config_from_yaml(changed_settings(settings, path, value))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SwinUNetConfig(num_res_blocks=(2,)), "one number per level"),
        (lambda: SwinUNetConfig(head_dim=5), "head_dim 5: must divide swin_embed_dim 192"),
        (lambda: SwinUNetConfig(model_channels=48), "norm_groups 32: must divide 48"),
        (lambda: ResShiftConfig(vq=VQConfig(z_channels=4)), "must equal vq.z_channels 4"),
        (lambda: ResShiftConfig(sampler=SamplerConfig()), "at most process.steps 4"),
    ],
)
def test_impossible_configurations(make, says):
    with pytest.raises(ConfigError, match=says):
        make()
