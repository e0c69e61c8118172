"""SwinIR against the public code at reduced width, and its keys at full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import zoo

from dossr_jax import weights
from dossr_jax.config import ConfigError, from_json, read_model_config, to_json
from dossr_jax.errors import UserError
from dossr_jax.models.windows import band_regions, position_index, region_mask
from dossr_jax.pytorch.infer import Settings, read_settings
from dossr_jax.pytorch.state import State, to_ours
from dossr_jax.systems.swinir.config import SwinIRConfig
from dossr_jax.systems.swinir.keys import BUFFERS, config_from_yaml, infer_swinir, swinir_table
from dossr_jax.systems.swinir.networks import SwinIR

TOLERANCES = {"float64": 1e-9, "float32": 1e-5}
TAPS = {
    "conv_first": "conv_first",
    "patch_embed": "norm_in",
    "block0": "groups.0.blocks.0",
    "block1_shifted": "groups.0.blocks.1",
    "rstb0": "groups.0",
    "norm": "norm_out",
    "after_body": "conv_body",
    "before_upsample": "conv_head",
    "up1": "ups.0",
}
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


@pytest.fixture(scope="module", params=TOLERANCES)
def golden(request):
    with jax.enable_x64(request.param == "float64"):
        yield zoo.Golden("swinir", request.param, TOLERANCES[request.param])


@pytest.fixture(scope="module")
def ours(golden, settings):
    """Networks by name: functions of NCHW images to (output, outputs of layers)."""

    def load(name: str):
        config = config_from_yaml(settings.at(name))
        state = learned(zoo.read_state("swinir").below(f"{name}."))
        network = zoo.Network(
            lambda **options: SwinIR(config, **options), swinir_table(config), state, golden.dtype
        )
        return network.compiled(SwinIR.__call__, TAPS.values())

    return {name: load(name) for name in ("x4", "unshuffle", "x4l")}


def learned(state: State) -> State:
    return state.select(lambda name: not BUFFERS.fullmatch(name))


def reflected(image: np.ndarray, multiple: int = 8) -> np.ndarray:
    """Bottom and right reflected, edges not repeated, up to the next multiple."""
    pads = [(0, -side % multiple) for side in image.shape[2:]]
    return np.pad(image, ((0, 0), (0, 0), *pads), mode="reflect")


def mirrored(image: np.ndarray, multiple: int = 8) -> np.ndarray:
    """Bottom and right mirrored, edges repeated, always to a larger multiple."""
    pads = [(0, multiple - side % multiple) for side in image.shape[2:]]
    return np.pad(image, ((0, 0), (0, 0), *pads), mode="symmetric")


@pytest.mark.parametrize(
    ("run", "image"),
    [("x4_sq", "in_sq"), ("unshuffle_rect", "in_rect_128x192"), ("x4l_sq", "in_sq")],
)
def test_outputs_and_layers(ours, golden, run, image):
    network = run.split("_")[0]
    out, taps = ours[network](golden[image])
    golden.check(f"{run}_out", out)
    stored = [name for name in TAPS if f"{run}_{name}" in golden.arrays]
    assert stored == list(TAPS)[:6] if network == "x4l" else list(TAPS)
    for name in stored:
        golden.check(f"{run}_{name}", taps[TAPS[name]])


def test_sides_that_are_no_multiples(ours, golden):
    rect = golden["in_rect"]
    padded = reflected(rect)
    np.testing.assert_array_equal(padded, golden["padded_rect"])
    golden.check("x4_rect_out", ours["x4"](padded)[0][:, :84, :172])
    mirror = mirrored(rect)
    np.testing.assert_array_equal(mirror, golden["x4_rect_mirror_padded"])
    golden.check("x4_rect_mirror_out", ours["x4"](mirror)[0][:, :84, :172])
    out, _ = ours["x4"](mirrored(golden["in_sq"]))
    golden.check("x4_sq_mirror_out", out[:, :128, :128])


def test_windows(golden):
    np.testing.assert_array_equal(position_index(8), golden["rel_index"])
    mask = region_mask(jnp.asarray(band_regions(16, 24, 8)), jnp.float32)
    np.testing.assert_array_equal(mask, golden["mask_shifted"])


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
