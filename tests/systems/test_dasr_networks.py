"""What is ours about DASR's networks, and their keys; test_crosscheck_systems.py compares them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import zoo

from dossr_jax import systems, weights
from dossr_jax.config import from_json, read_model_config, to_json
from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import Settings, read_settings
from dossr_jax.pytorch.state import State, to_ours, to_torch
from dossr_jax.systems.dasr import networks
from dossr_jax.systems.dasr.config import DASRConfig
from dossr_jax.systems.dasr.keys import config_from_yaml, dasr_table, infer_dasr
from dossr_jax.systems.dasr.networks import DASR

FOLDER = zoo.FOLDER / "dasr"


@pytest.fixture(scope="module")
def settings() -> Settings:
    return read_settings(FOLDER / "config.yaml")


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    """The x4 and the x2 network, each with the predictor."""
    stored = zoo.read_state("dasr")
    x2 = stored.select(lambda name: not name.startswith("generator."))
    return {
        "network_g": stored.select(lambda name: not name.startswith("generator_x2.")),
        "network_g_x2": x2.rename(lambda name: name.replace("generator_x2.", "generator.")),
    }


@pytest.mark.usefixtures("x64")
def test_what_lies_beside_an_image_has_no_influence(settings, states):
    config = config_from_yaml(settings)
    tensors = to_ours(dasr_table(config), states["network_g"])
    model = systems.build_model(config, tensors, "stored", dtype=jnp.float64)
    predict = nnx.jit(lambda predictor, *args: predictor(*args))
    rng = np.random.default_rng(0)
    odd, square = rng.uniform(size=(1, 17, 23, 3)), rng.uniform(size=(1, 32, 32, 3))
    canvases = np.concatenate([np.full_like(square, np.nan), square, np.full_like(square, 7)])
    canvases[::2, :17, :23] = odd
    size = jnp.array([[17, 23], [32, 32], [17, 23]], jnp.int32)
    together = predict(model.predictor, canvases, size)
    alone = [predict(model.predictor, image) for image in (odd, square, odd)]
    for ours, *parts in zip(together, *alone, strict=True):
        expected = np.concatenate(parts)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_convolutions_of_either_platform_agree():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 4, 5, 2)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 2, 7)), jnp.float32)
    one = networks.one_by_one(x, kernel)
    assert one.shape == (3, 4, 5, 7)
    np.testing.assert_allclose(one, networks.side_by_side(x, kernel), atol=1e-5)


def test_half_precision_keeps_weights_and_result_exact():
    config = DASRConfig(num_features=4, num_blocks=1, predictor_features=4, upscale=3)
    model = weights.make_abstract(lambda rngs: DASR(config, dtype=jnp.bfloat16, rngs=rngs))
    graphdef, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((2, 6, 5, 3), jnp.float32)

    def run(state, image):
        model = nnx.merge(graphdef, state)
        return *model.predictor(image), model(image)

    params, mixing, out = jax.eval_shape(run, state, image)
    assert (params.shape, mixing.shape, out.shape) == ((2, 33), (2, 5), (2, 18, 15, 3))
    assert params.dtype == mixing.dtype == out.dtype == jnp.float32


# --- configuration and keys ---------------------------------------------------------------------


def full_size(rng: np.random.Generator | None = None) -> State:
    """A checkpoint of the published size, of random bits or of none."""
    shapes = json.loads((FOLDER / "full_state_shapes.json").read_text())

    def tensor(shape: tuple[int, ...]) -> weights.Lazy:
        if rng is None:
            return weights.lazy(np.broadcast_to(np.float32(0), shape))
        return weights.lazy(rng.integers(2**32, size=shape, dtype=np.uint32).view(np.float32))

    return State("net.pth", {name: tensor(tuple(shape)) for name, shape in shapes.items()})


def test_published_configuration():
    assert infer_dasr(full_size()) == DASRConfig()
    model = weights.make_abstract(lambda rngs: DASR(DASRConfig(), rngs=rngs))
    for part, parameters in ((model.predictor, 468_143), (model.generator, 7_587_855)):
        sizes = [param.size for _, param in weights.names_and_params(part)]
        assert sum(sizes) == parameters


def test_there_and_back_bit_for_bit():
    state = full_size(np.random.default_rng(0))
    table = dasr_table(DASRConfig())
    tensors = to_ours(table, state)
    model = weights.make_abstract(lambda rngs: DASR(DASRConfig(), rngs=rngs))
    shapes = {name: param.shape for name, param in weights.names_and_params(model)}
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    loaded = {name: weights.lazy(tensor.load()) for name, tensor in tensors.items()}
    back = to_torch(table, State("ours", loaded))
    assert set(back) == set(state.tensors)
    for name, tensor in back.items():
        assert tensor.load().tobytes() == state.tensors[name].load().tobytes(), name


def test_every_key_has_to_fit():
    tensors = dict(full_size().tensors)
    del tensors["predictor.MappingNet.1.bias"]
    tensors["generator.conv_body.weight"] = weights.lazy(np.zeros((5, 2, 2, 3, 3)))
    tensors["generator.conv_hr.weight"] = weights.lazy(np.zeros((64, 64, 3, 3)))
    with pytest.raises(UserError) as error:
        to_ours(dasr_table(DASRConfig()), State("net.pth", tensors))
    for says in (
        "net.pth",
        "missing predictor.MappingNet.1.bias (5,)",
        "extra generator.conv_body.weight (5, 2, 2, 3, 3)",
        "misshapen generator.conv_hr.weight: file (64, 64, 3, 3), expected (5, 64, 64, 3, 3)",
    ):
        assert says in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("generator.conv_first.weight", None, "has no generator.conv_first.weight"),
        ("generator.upconv1.weight", (5, 64, 64, 3, 3), "upscale"),
        ("generator.conv_first.weight", (64,), "not the networks of DASR"),
        ("generator.upconv1.weight", (), "not the networks of DASR"),
    ],
)
def test_other_networks_are_refused(name, shape, says):
    tensors = dict(full_size().tensors)
    for upconv in ("generator.upconv2.weight", "generator.upconv2.bias"):
        del tensors[upconv]
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = weights.lazy(np.zeros(shape))
    with pytest.raises(UserError, match=says):
        infer_dasr(State("net.pth", tensors))


def test_configuration_from_keys_yaml_and_json(settings, states):
    config = config_from_yaml(settings)
    assert config == DASRConfig(num_features=24, num_blocks=4, predictor_features=16)
    assert infer_dasr(states["network_g"]) == config
    x2 = config_from_yaml(settings, "network_g_x2")
    assert (x2.upscale, x2.num_blocks) == (2, 1)
    assert infer_dasr(states["network_g_x2"]) == x2
    assert from_json(DASRConfig, to_json(config)) == config
    assert read_model_config(to_json(config)) == config


@pytest.mark.parametrize(
    ("network", "changes", "says"),
    [
        ("network_g", {"num_in_ch": 1}, "network_g.num_in_ch is 1: images have 3 channels"),
        ("network_g", {"upscale": 8}, "upscale 8"),
        ("network_g", {"num_feat": "wide"}, "num_features"),
        ("network_p", {"num_networks": 4}, "network_p.num_networks is 4: the generator has 5"),
    ],
)
def test_wrong_settings(settings, network, changes, says):
    tree = settings.tree | {network: settings.tree[network] | changes}
    with pytest.raises(UserError, match=says):
        config_from_yaml(Settings(settings.path, tree))
