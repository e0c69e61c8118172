"""The discriminator against PyTorch with exact spectral norms: logits and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dossr_jax.models.discriminator import Discriminator, spectral_norm
from dossr_jax.models.layers import bilinear_x2
from dossr_jax.pytorch.state import State
from dossr_jax.pytorch.tables import Row
from dossr_jax.weights import Lazy, names_and_params

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from helpers.compare import build, nchw, relative_error  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_networks import randomise  # noqa: E402

# Ours by PyTorch's names, in order.
NAMES = {
    "conv0": "first",
    **{f"conv{i + 1}": f"down.{i}.conv" for i in range(3)},
    **{f"conv{i + 4}": f"up.{i}.conv" for i in range(3)},
    **{f"conv{i + 7}": f"extra.{i}.conv" for i in range(2)},
    "conv9": "last",
}


class Exact(torch.nn.Module):
    """Divides a weight by its norm as a (c_out, rest) matrix, by singular value decomposition."""

    def forward(self, weight):
        return weight / torch.linalg.matrix_norm(weight.flatten(1), 2)


def exact(conv):
    torch.nn.utils.parametrize.register_parametrization(conv, "weight", Exact())
    return conv


def iterated(conv):
    """PyTorch's own: power iteration with a vector that it keeps."""
    return torch.nn.utils.parametrizations.spectral_norm(conv, n_power_iterations=100)


class Reference(torch.nn.Module):
    def __init__(self, features, norm=exact):
        super().__init__()
        f = features

        def down(c):
            return norm(torch.nn.Conv2d(c, 2 * c, 4, 2, 1, bias=False))

        def same(c_in, c_out):
            return norm(torch.nn.Conv2d(c_in, c_out, 3, padding=1, bias=False))

        self.conv0 = torch.nn.Conv2d(3, f, 3, padding=1)
        self.conv1, self.conv2, self.conv3 = down(f), down(2 * f), down(4 * f)
        self.conv4, self.conv5, self.conv6 = same(8 * f, 4 * f), same(4 * f, 2 * f), same(2 * f, f)
        self.conv7, self.conv8 = same(f, f), same(f, f)
        self.conv9 = torch.nn.Conv2d(f, 1, 3, padding=1)

    def forward(self, x):
        def act(h):
            return F.leaky_relu(h, 0.2)

        def double(h):
            return F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)

        full = act(self.conv0(x))
        half = act(self.conv1(full))
        quarter = act(self.conv2(half))
        h = act(self.conv3(quarter))
        h = act(self.conv4(double(h))) + quarter
        h = act(self.conv5(double(h))) + half
        h = act(self.conv6(double(h))) + full
        return self.conv9(act(self.conv8(act(self.conv7(h)))))

    def weights(self):
        """Parameters by our names, before they are divided."""
        for name, p in self.named_parameters():
            layer, _, kind = name.replace(".parametrizations.weight.original", ".weight").partition(
                "."
            )
            yield f"{NAMES[layer]}.{'kernel' if kind == 'weight' else 'bias'}", p


def ours_of(reference, features, dtype):
    table, tensors = [], {}
    for name, p in reference.weights():
        array = p.detach().numpy()
        table.append(Row(name, name, "conv" if array.ndim == 4 else "copy", array.shape))
        tensors[name] = Lazy(array.shape, array.dtype, lambda array=array: array)
    return build(
        lambda rngs: Discriminator(features, dtype=dtype, param_dtype=dtype, rngs=rngs),
        table,
        State("PyTorch", tensors),
    )


def loss_and_gradients(module, image, target):
    """sum(logits * target), with its gradients by parameter and by the image."""
    graphdef, state = nnx.split(module)

    def loss(state, image):
        logits = nnx.merge(graphdef, state)(image)
        return jnp.sum(logits * target), logits

    by, logits = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(state, image)
    gradients = {".".join(map(str, path)): g[...] for path, g in nnx.to_flat_state(by[0])}
    return logits, gradients, by[1]


@pytest.mark.parametrize("norm", [exact, iterated])
@pytest.mark.parametrize(
    ("dtype", "features", "tolerance"),
    [
        # Rounding, through ten convolutions.
        ("float32", 8, 5e-6),
        # The same. Gradients follow the singular vectors, which converge as the gap between the
        # largest two values allows: these few channels leave 3 % or more.
        ("float64", 3, 1e-11),
    ],
)
def test_logits_and_gradients(norm, dtype, features, tolerance, x64):
    reference = randomise(Reference(features, norm)).to(getattr(torch, dtype))
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (2, 24, 40, 3)).astype(dtype)
    target = rng.normal(size=(2, 24, 40, 1)).astype(dtype)
    if norm is iterated:
        with torch.no_grad():
            for _ in range(20):
                reference(nchw(image))  # turns the vectors, as training steps do
        reference.eval()
    theirs = nchw(image).requires_grad_()
    expected = reference(theirs)
    (expected * nchw(target)).sum().backward()

    logits, gradients, by_image = loss_and_gradients(
        ours_of(reference, features, dtype), jnp.asarray(image), jnp.asarray(target)
    )
    assert logits.dtype == dtype
    errors = {
        "logits": relative_error(np.moveaxis(logits, -1, 1), expected.detach()),
        "image": relative_error(np.moveaxis(by_image, -1, 1), theirs.grad),
    }
    for name, p in reference.weights():
        gradient = np.asarray(gradients.pop(name))
        gradient = gradient.transpose(3, 2, 0, 1) if gradient.ndim == 4 else gradient
        expected = p.grad.numpy()
        errors[name] = float(np.abs(gradient - expected).max() / np.abs(expected).max())
    assert not gradients
    print(f"discriminator, {dtype}: " + ", ".join(f"{n} {e:.1e}" for n, e in errors.items()))
    # In float32, values that round across 0 switch leaky ReLU's gradient.
    assert (errors["logits"] if dtype == "float32" else max(errors.values())) <= tolerance


def test_published_size():
    module = nnx.eval_shape(lambda: Discriminator(rngs=nnx.Rngs(0)))
    assert sum(np.prod(p.shape) for _, p in names_and_params(module)) == 4_376_897
    image = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.bfloat16)
    half = nnx.eval_shape(lambda: Discriminator(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    logits = nnx.eval_shape(lambda m, x: m(x), half, image)
    assert logits.shape == (1, 64, 96, 1) and logits.dtype == jnp.bfloat16


def with_singular_values(values, rows, seed=0):
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(rows, len(values))))
    right, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return (left * values @ right.T).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "below"),
    [
        pytest.param(np.linspace(1, 0.01, 64), 2e-6, id="spread"),
        pytest.param(np.ones(64), 2e-6, id="all equal"),
        pytest.param(np.r_[1, np.full(63, 0.999)], 1e-3, id="nearly equal"),
        pytest.param(np.r_[1, np.full(511, 0.997)], 3e-3, id="512 nearly equal"),
        pytest.param(np.r_[1, np.zeros(63)], 2e-6, id="rank one"),
        pytest.param(np.r_[1e-12, np.zeros(63)], 2e-6, id="tiny"),
    ],
)
def test_spectral_norm_is_within_its_bound(values, below):
    """At most 0.3 % below the exact norm at 512 channels, and never above but for rounding."""
    kernel = with_singular_values(values, 9 * len(values)).reshape(3, 3, len(values), len(values))
    ratio = jax.jit(spectral_norm)(kernel) / values.max()
    print(f"spectral norm, relative: {ratio - 1:.1e}")
    assert 1 - below <= ratio <= 1 + 2e-6


@pytest.mark.slow
def test_spectral_norm_of_an_untrained_network():
    """At the published size, where neighbouring singular values are close."""
    module = Discriminator(rngs=nnx.Rngs(0))
    for conv in (*module.down, *module.up, *module.extra):
        kernel = np.asarray(conv.conv.kernel[...])
        exact = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]).astype(np.float64), 2)
        ratio = float(jax.jit(spectral_norm)(kernel)) / exact
        print(f"{kernel.shape}: {ratio - 1:.1e}")
        assert 1 - 2e-4 <= ratio <= 1 + 2e-6


def test_bilinear_x2_is_pytorchs():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    expected = F.interpolate(nchw(x), scale_factor=2, mode="bilinear", align_corners=False)
    # One rounding per sum.
    assert relative_error(np.moveaxis(bilinear_x2(jnp.asarray(x)), -1, 1), expected) <= 3e-7
