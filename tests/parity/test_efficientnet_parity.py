"""EfficientNet-Lite0's feature maps and distances against PyTorch, and what the distance orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dossr_jax.errors import UserError
from dossr_jax.models.efficientnet import feature_distance
from dossr_jax.pytorch.efficientnet import feature_network, find_efficientnet
from dossr_jax.pytorch.state import State
from dossr_jax.weights import lazy

torch = pytest.importorskip("torch")

from helpers.compare import nchw  # noqa: E402
from torch.nn import functional as F  # noqa: E402

# Channels in and out, kernel, stride, expansion: the sixteen blocks, written out.
BLOCKS = [
    (32, 16, 3, 1, 1),
    (16, 24, 3, 2, 6),
    (24, 24, 3, 1, 6),
    (24, 40, 5, 2, 6),
    (40, 40, 5, 1, 6),
    (40, 80, 3, 2, 6),
    (80, 80, 3, 1, 6),
    (80, 80, 3, 1, 6),
    (80, 112, 5, 1, 6),
    (112, 112, 5, 1, 6),
    (112, 112, 5, 1, 6),
    (112, 192, 5, 2, 6),
    (192, 192, 5, 1, 6),
    (192, 192, 5, 1, 6),
    (192, 192, 5, 1, 6),
    (192, 320, 3, 1, 6),
]


class SameConv(torch.nn.Conv2d):
    """Pads to ceil(size / stride) outputs; of an odd number of rows, the last is below."""

    def forward(self, x):
        pads = []
        for size in (x.shape[3], x.shape[2]):  # F.pad takes the last dimension first
            outputs = -(-size // self.stride[0])
            total = max((outputs - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def conv(c_in, c_out, size, stride=1, groups=1):
    return SameConv(c_in, c_out, size, stride, groups=groups, bias=False)


def norm(channels):
    return torch.nn.BatchNorm2d(channels, eps=1e-3)


class MBConv(torch.nn.Module):
    def __init__(self, c_in, c_out, size, stride, expand):
        super().__init__()
        width = c_in * expand
        if expand > 1:
            self._expand_conv, self._bn0 = conv(c_in, width, 1), norm(width)
        self._depthwise_conv = conv(width, width, size, stride, groups=width)
        self._bn1 = norm(width)
        self._project_conv, self._bn2 = conv(width, c_out, 1), norm(c_out)
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x):
        h = x
        if hasattr(self, "_expand_conv"):
            h = F.relu6(self._bn0(self._expand_conv(h)))
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return h + x if self.adds else h


class Reference(torch.nn.Module):
    """The whole network under its published names, so that its keys are those of the file."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = conv(3, 32, 3, 2), norm(32)
        self._blocks = torch.nn.ModuleList(MBConv(*block) for block in BLOCKS)
        self._conv_head, self._bn1 = conv(320, 1280, 1), norm(1280)
        self._fc = torch.nn.Linear(1280, 1000)
        self.eval()

    def forward(self, images):
        x = (images - 127 / 255) / (128 / 255)
        x = F.relu6(self._bn0(self._conv_stem(x)))
        maps = []
        for i, block in enumerate(self._blocks[:11]):
            x = block(x)
            if i in (0, 2, 4, 10):
                maps.append(x)
        return maps


def distance(a, b):
    """Per image: 2 - 2 cos of the angle between features, averaged."""
    return (
        sum((2 - 2 * F.cosine_similarity(x, y)).mean((1, 2)) for x, y in zip(a, b, strict=True)) / 4
    )


def relative_error(ours, theirs):
    """Max abs difference / max abs value."""
    theirs = theirs.detach().numpy()
    theirs = theirs if theirs.ndim == 1 else np.moveaxis(theirs, 1, -1)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def random_network(seed=0):
    """Random weights; at every ReLU6 up to a tenth of what comes in is above 6."""
    network = Reference()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.ndim:
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.normal_(generator=generator).mul_(fan_in**-0.5)
            if tensor.ndim == 1 and name.endswith("weight"):
                tensor.add_(1)
    return network


@pytest.fixture
def published():
    try:
        path = find_efficientnet()
    except UserError as error:
        pytest.skip(str(error))
    network = Reference()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network


def state_of(network):
    tensors = {name: lazy(t.numpy()) for name, t in network.state_dict().items()}
    return State("PyTorch", tensors)


def compare(reference, image, dtype, tolerance):
    """Maps of two images, their distance, and its gradient by the first."""
    reference = reference.to(getattr(torch, dtype))
    ours = feature_network(state_of(reference), dtype)
    image = image.astype(dtype)
    other = np.clip(image + np.random.default_rng(1).normal(0, 0.1, image.shape), 0, 1).astype(
        dtype
    )
    first, second = nchw(image).requires_grad_(), nchw(other)
    expected = reference(first)
    expected_distance = distance(expected, reference(second))
    expected_distance.sum().backward()
    graphdef, state = nnx.split(ours)

    @jax.jit
    def both(state, image, other):
        network = nnx.merge(graphdef, state)
        target = network(other)

        def loss(image):
            maps = network(image)
            each = feature_distance(maps, target)
            return each.sum(), (maps, each)

        by_image, (maps, each) = jax.grad(loss, has_aux=True)(image)
        return maps, each, by_image

    maps, each, by_image = both(state, jnp.asarray(image), jnp.asarray(other))
    errors = [
        relative_error(ours, theirs)
        for ours, theirs in zip((*maps, each), (*expected, expected_distance), strict=True)
    ]
    assert first.grad is not None
    gradient = relative_error(by_image, first.grad)
    print(f"EfficientNet-Lite0, {dtype}: " + ", ".join(f"{e:.1e}" for e in (*errors, gradient)))
    # In float32, values that round across 0 or 6 switch ReLU6's gradient.
    assert max(*errors, gradient if dtype == "float64" else 0) <= tolerance


# Float32: rounding through 33 convolutions, folded in ours. Float64 would show another epsilon,
# padding or constant of the input; 1e-11 of it is the number that keeps features of zero finite.
TOLERANCES = [("float32", 2e-5), pytest.param("float64", 5e-11, marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", [(64, 96), (45, 70)], ids=["even", "odd"])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_random_weights(size, dtype, tolerance, x64):
    image = np.random.default_rng(0).uniform(0, 1, (2, *size, 3))
    compare(random_network(), image, dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_published_weights(published, photo, dtype, tolerance, x64):
    compare(published, photo[None], dtype, tolerance)


def blurred(image, sigma):
    filters = pytest.importorskip("scipy.ndimage")
    return filters.gaussian_filter(image, (0, sigma, sigma, 0))


@pytest.fixture
def astronaut():
    data = pytest.importorskip("skimage.data")
    return data.astronaut()[None, :256, 100:356].astype(np.float32) / 255


def test_distance_grows_with_blur_and_noise(published, astronaut):
    """And tells the same photo one pixel to the side from noise of the same squared error."""
    network = nnx.jit(feature_network())
    clean = network(astronaut)

    def to(image):
        return float(feature_distance(clean, network(image))[0])

    rng = np.random.default_rng(0)
    noise = rng.normal(size=astronaut.shape).astype(np.float32)
    assert to(astronaut) == 0
    for row in (
        [to(blurred(astronaut, sigma)) for sigma in (0.5, 1, 2, 4)],
        [to(astronaut + deviation * noise) for deviation in (0.01, 0.03, 0.1, 0.3)],
    ):
        print([f"{d:.4f}" for d in row])
        assert 0 < row[0] and row == sorted(row)
    moved = np.roll(astronaut, 1, axis=2)
    same_error = np.sqrt(np.mean((moved - astronaut) ** 2)) * noise
    assert to(moved) < to(astronaut + same_error)
