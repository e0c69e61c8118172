"""DASR against the public code at reduced width, and what is ours about it."""

import contextlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dossr_jax import weights
from dossr_jax.config import from_json, read_model_config, to_json
from dossr_jax.errors import UserError
from dossr_jax.image import pixels_to_levels
from dossr_jax.pytorch.infer import Settings, read_settings
from dossr_jax.pytorch.state import State, to_ours, to_torch
from dossr_jax.systems.dasr import networks
from dossr_jax.systems.dasr.config import DASRConfig
from dossr_jax.systems.dasr.keys import config_from_yaml, dasr_table, infer_dasr
from dossr_jax.systems.dasr.networks import DASR, ExpertConv, ResidualBlock

FOLDER = Path(__file__).parents[1] / "data" / "zoo" / "dasr"
TOLERANCES = {"float64": 1e-9, "float32": 2e-5}
IMAGES = ("lr", "rect", "odd")
TAPS = {
    "p_conv0": "predictor.convs.0",
    "p_conv3_stride2": "predictor.convs.3",
    "p_conv5": "predictor.convs.5",
    "p_hidden15": "predictor.hidden",
    "g_conv_first": "generator.conv_first",
    "g_body0": "generator.body.0",
    "g_body": "generator.body.3",
    "g_upconv1": "generator.upconvs.0",
    "g_conv_hr": "generator.conv_hr",
}


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "golden.npz") as arrays:
        yield arrays


@pytest.fixture(scope="module")
def settings() -> Settings:
    return read_settings(FOLDER / "config.yaml")


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    """The x4 and the x2 network, each with the predictor."""
    path = FOLDER / "weights.safetensors"
    stored = State(str(path), weights.read_safetensors(path)[0])
    x2 = stored.select(lambda name: not name.startswith("generator."))
    return {
        "network_g": stored.select(lambda name: not name.startswith("generator_x2.")),
        "network_g_x2": x2.rename(lambda name: name.replace("generator_x2.", "generator.")),
    }


@contextlib.contextmanager
def taps_of(module: nnx.Module):
    """Outputs of the layers by their paths in the module, while it is called."""
    names = {id(part): ".".join(map(str, path)) for path, part in nnx.iter_modules(module)}
    taps = {}

    def recording(call):
        def recorded(self, *args):
            taps[names[id(self)]] = out = call(self, *args)
            return out

        return recorded

    with pytest.MonkeyPatch.context() as patch:
        for layer in (nnx.Conv, nnx.Linear, ExpertConv, ResidualBlock):
            patch.setattr(layer, "__call__", recording(layer.__call__))
        yield taps


class Ours:
    """Our networks in one dtype, compiled once per shape; images are stored ones, NCHW."""

    def __init__(self, config: DASRConfig, state: State, dtype: str):
        module = weights.make_abstract(
            lambda rngs: DASR(config, dtype=dtype, param_dtype=dtype, rngs=rngs)
        )
        weights.fill(module, to_ours(dasr_table(config), state), state.source)
        self.dtype = dtype
        self.graphdef, self.state = nnx.split(module)
        self._predict = self._compiled(lambda model, *args: model.predictor(*args))
        self._generate = self._compiled(lambda model, *args: model.generator(*args))

    def _compiled(self, fn):
        def tapped(state, *args):
            model = nnx.merge(self.graphdef, state)
            with taps_of(model) as taps:
                out = fn(model, *args)
            return out, taps

        return jax.jit(tapped)

    @property
    def model(self) -> DASR:
        return nnx.merge(self.graphdef, self.state)

    def image(self, nchw: np.ndarray):
        return jnp.asarray(np.moveaxis(nchw, 1, -1), self.dtype)

    def predict(self, nchw: np.ndarray, size=None):
        """((params, weights), taps) of canvases."""
        return self._predict(self.state, self.image(nchw), size)

    def generate(self, nchw: np.ndarray, mixing):
        """(output NHWC, taps)."""
        return self._generate(self.state, self.image(nchw), jnp.asarray(mixing, self.dtype))


@pytest.fixture(scope="module", params=TOLERANCES)
def ours(request, settings, states):
    with jax.enable_x64(request.param == "float64"):
        yield Ours(config_from_yaml(settings), states["network_g"], request.param)


@pytest.fixture
def agrees(ours, golden):
    """Asserts that an array in our layout is a stored one, in units of the stored maximum."""

    def check(name: str, array) -> None:
        stored = golden[name + ("__f64" if ours.dtype == "float64" else "")]
        array = np.asarray(array)
        assert array.dtype == ours.dtype and np.isfinite(array).all()
        if array.ndim == 4:
            array = np.moveaxis(array, -1, 1)
        array = array[: len(stored)]
        if stored.ndim > 1:
            array = array[:, : stored.shape[1]]
        assert array.shape == stored.shape, name
        error = np.abs(array - stored).max() / np.abs(stored).max()
        print(f"{name} {ours.dtype}: {error:.1e}")
        assert error <= TOLERANCES[ours.dtype], name

    return check


@pytest.mark.parametrize("name", IMAGES)
def test_outputs_and_layers(ours, golden, agrees, name):
    image = golden[f"in_{name}"]
    (params, mixing), predictor_taps = ours.predict(image)
    out, generator_taps = ours.generate(image, mixing)
    agrees(f"{name}_params", params)
    agrees(f"{name}_weights", mixing)
    agrees(f"{name}_out", out)
    taps = predictor_taps | generator_taps
    stored = [tap for tap in TAPS if f"{name}_{tap}" in golden]
    assert stored == list(TAPS) if name == "lr" else len(stored) == 2
    for tap in stored:
        agrees(f"{name}_{tap}", taps[TAPS[tap]])
    base = networks.enlarge_bilinearly(ours.image(image[:1]), 4)
    agrees(f"{name}_bilinear", base)
    levels = np.asarray(pixels_to_levels(out)).astype(int)
    difference = np.abs(levels - golden[f"{name}_uint8_rgb_hwc"])
    # Rounding in float32 tips values that lie half-way between two levels, and no others.
    half_way = np.abs(255 * np.asarray(out) % 1 - 0.5) < 0.01
    assert (difference <= half_way).all()


def test_every_image_has_its_own_kernels(ours, golden, agrees):
    (_, mixing), _ = ours.predict(golden["in_lr"])
    kernel, bias = ours.model.generator.body[0].conv1.mix(mixing)
    # The stored ones are (b, o, i, h, w).
    agrees("mixed_body0_conv1_weight", jnp.transpose(kernel, (0, 4, 3, 1, 2)))
    agrees("mixed_body0_conv1_bias", bias)


def test_given_weights(ours, golden, agrees):
    image = golden["in_lr"]
    (_, mixing), _ = ours.predict(image)
    for name, given in {
        "expert1": np.eye(5)[[1, 1, 1]],
        "mean": np.full((3, 5), 1 / 5),
        "weights_of_image0": np.asarray(mixing)[[0, 0, 0]],
    }.items():
        agrees(f"lr_out_{name}", ours.generate(image, given)[0])


def test_x2(ours, golden, agrees, settings, states):
    config = config_from_yaml(settings, "network_g_x2")
    assert (config.upscale, config.num_blocks) == (2, 1)
    assert infer_dasr(states["network_g_x2"]) == config
    x2 = Ours(config, states["network_g_x2"], ours.dtype)
    (_, mixing), _ = ours.predict(golden["in_lr"])
    agrees("lr_out_x2", x2.generate(golden["in_lr"], mixing)[0])


def test_what_lies_beside_an_image_has_no_influence(ours, golden):
    odd, square = golden["in_odd"], golden["in_lr"][:1]
    canvases = np.concatenate([np.full_like(square, np.nan), square, np.full_like(square, 7)])
    canvases[::2, :, :17, :23] = odd
    size = jnp.array([[17, 23], [32, 32], [17, 23]], jnp.int32)
    (params, mixing), _ = ours.predict(canvases, size)
    tolerance = 1e-12 if ours.dtype == "float64" else 2e-6
    (params_odd, mixing_odd), _ = ours.predict(odd)
    (params_lr, mixing_lr), _ = ours.predict(golden["in_lr"])
    for together, alone in (
        (params, [params_odd[0], params_lr[0], params_odd[0]]),
        (mixing, [mixing_odd[0], mixing_lr[0], mixing_odd[0]]),
    ):
        np.testing.assert_allclose(together, alone, rtol=0, atol=tolerance * np.abs(alone).max())


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
