"""Degradations against PyTorch, Pillow, SciPy and the distributions they are to draw from."""

import functools
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from dossr_jax.data.degradation import jpeg as jpeg_lib
from dossr_jax.data.degradation import noise
from dossr_jax.data.degradation.chain import ACCELERATOR, CPU
from dossr_jax.data.degradation.noise import Noise
from dossr_jax.data.degradation.resize import MODES, Resize

CANVAS = (48, 56)
EXAMPLES = Path(__file__).parent.parent / "examples"

both_programs = pytest.mark.parametrize(
    "programs", [pytest.param(CPU, id="cpu"), pytest.param(ACCELERATOR, id="accelerator")]
)


def random_image(rng, height, width, canvas=CANVAS):
    """A random image in the corner of a larger canvas of rubbish, and its size."""
    full = np.full((3, *canvas), 7.5, np.float32)
    full[:, :height, :width] = rng.random((3, height, width), np.float32)
    return full, np.array([height, width], np.int32)


@both_programs
def test_resize_is_pytorchs(programs):
    """Random sizes and scale factors, down to one pixel and up past the input's size."""
    torch = pytest.importorskip("torch")
    run = jax.jit(functools.partial(programs.resize, canvas=CANVAS, antialiased=True))
    rng = np.random.default_rng(0)
    for trial in range(120):
        mode = trial % 4
        height, width = rng.integers(1, 49), rng.integers(1, 57)
        image, valid = random_image(rng, height, width)
        tensor = torch.from_numpy(image[None, :, :height, :width].copy())
        options = {"mode": ("area", "bilinear", "bicubic", "bicubic")[mode]}
        if mode == 3:
            options["antialias"] = True
        smallest = max(height, width) / 48
        if mode in (1, 2) and trial % 8 < 4:  # a scale factor; else a size
            factor = float(np.float32(rng.uniform(1 / min(height, width), 1 / smallest)))
            theirs = torch.nn.functional.interpolate(tensor, scale_factor=factor, **options)
            step = [1 / factor] * 2
        else:
            size = int(rng.integers(1, 49)), int(rng.integers(1, 57))
            theirs = torch.nn.functional.interpolate(tensor, size=size, **options)
            step = [height / size[0], width / size[1]]
        theirs = theirs[0].numpy()
        size = np.array(theirs.shape[1:], np.int32)
        ours = run(image, valid, Resize(size, np.array(step, np.float32), np.int32(mode)))
        ours = np.asarray(ours)[:, : size[0], : size[1]]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=f"{MODES[mode]} {size}")


@both_programs
def test_filter_reflects_images_of_any_size(programs):
    run = jax.jit(programs.correlate)
    rng = np.random.default_rng(1)
    kernel = rng.random((21, 21), np.float32)
    kernel /= kernel.sum()
    for height, width in [(48, 56), (11, 12), (10, 30), (2, 3), (1, 7), (1, 1)]:
        image, valid = random_image(rng, height, width)
        inside = image[:, :height, :width]
        padded = np.pad(inside, ((0, 0), (10, 10), (10, 10)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (21, 21), axis=(1, 2))
        theirs = np.einsum("cyxij,ij->cyx", windows, kernel)
        ours = np.asarray(run(image, valid, kernel))[:, :height, :width]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["city", "snow"])
@pytest.mark.parametrize("quality", [10, 25, 50, 75])
def test_jpeg_is_pillows(name, quality):
    """The results differ by a small part of what either changes.

    Pillow rounds colours before the transform and smooths the chroma it enlarges, so they are not
    equal; its tables are ours rounded, the same at the three lower qualities. Our luma table is
    turned over, which is the same as coding the turned image.
    """
    photo = Image.open(EXAMPLES / f"{name}.png").convert("RGB")
    image = np.asarray(photo.crop((0, 0, *(side // 16 * 16 for side in photo.size))))
    file = io.BytesIO()
    turned = Image.fromarray(image.transpose(1, 0, 2))
    turned.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    decoded = Image.open(file)
    theirs = np.asarray(decoded, np.float32).transpose(1, 0, 2)

    factor = (5000 / quality if quality < 50 else 200 - 2 * quality) / 100
    for i, table in enumerate((jpeg_lib.LUMA_TABLE.T, jpeg_lib.CHROMA_TABLE)):
        rounded = np.clip(np.floor(table * factor + 0.5), 1, 255)
        np.testing.assert_array_equal(decoded.quantization[i], rounded.ravel())

    planes = (image / np.float32(255)).transpose(2, 0, 1)
    ours = jax.jit(jpeg_lib.jpeg)(planes, np.array(image.shape[:2]), np.float32(quality))
    ours = 255 * np.asarray(ours).transpose(1, 2, 0)
    change = np.abs(theirs - image).mean()
    assert np.abs(ours - theirs).mean() < (0.2 if factor == round(factor) else 0.35) * change
    assert np.abs(ours - image).mean() == pytest.approx(change, rel=0.05)


def draws(count=2**20, seed=(11, 12)):
    return noise.uniform(jnp.array(seed, jnp.uint32), (1, 1024, count // 1024))


def test_uniforms_are_uniform_and_independent():
    """Also between neighbours, channels and seeds next to each other."""
    u = np.asarray(noise.uniform(jnp.array([0, 1], jnp.uint32), (3, 512, 512)), np.float64)
    assert 0 < u.min() and u.max() < 1
    counts = np.histogram(u, 256, (0, 1))[0]
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    others = [
        np.asarray(noise.uniform(jnp.array(seed, jnp.uint32), (3, 512, 512)), np.float64)
        for seed in ([1, 1], [0, 2], [1, 0])
    ]
    pairs = [(u[:, 1:], u[:, :-1]), (u[:, :, 1:], u[:, :, :-1]), (u[1:], u[:-1])]
    pairs += [(u[:, 2:, 1:], u[:, :-2, :-1]), *((u, other) for other in others)]
    for a, b in pairs:
        bound = 5 / np.sqrt(a.size)
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < bound
        # Of the squares about the middle too, which shows dependence of another form.
        assert abs(np.corrcoef((a.ravel() - 0.5) ** 2, (b.ravel() - 0.5) ** 2)[0, 1]) < bound


def test_normals_are_normal():
    z = np.asarray(jax.jit(noise.normal)(draws()), np.float64).ravel()
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-4
    n = z.size
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(scipy.stats.skew(z)) < 5 * np.sqrt(6 / n)
    assert abs(scipy.stats.kurtosis(z)) < 5 * np.sqrt(24 / n)


RATES = [0.0, 0.01, 0.1, 0.5, 1, 2, 3.9, 4.1, 5, 7, 10, 20, 50, 100, 255]


@pytest.mark.parametrize("rate", RATES)
def test_counts_are_poissons(rate):
    """Mean, variance, skewness within five standard errors, and the whole distribution."""
    u = draws(seed=(13, int(100 * rate)))
    k = np.asarray(jax.jit(noise.poisson_counts)(jnp.full(u.shape, rate), u), np.float64).ravel()
    assert (k >= 0).all() and (k == np.round(k)).all()
    if rate == 0:
        assert not k.any()
        return
    n, law = k.size, scipy.stats.poisson(rate)
    mean, variance, skewness, kurtosis = law.stats("mvsk")
    assert abs(k.mean() - rate) < 5 * np.sqrt(variance / n)
    assert abs(k.var() - rate) < 5 * rate * np.sqrt((kurtosis + 2) / n)
    # The spread of the skewness, from samples of the true law.
    true = scipy.stats.skew(law.rvs((20, n // 16), random_state=0), axis=1)
    assert abs(scipy.stats.skew(k) - skewness) < 5 * true.std() / 4 + 1e-3
    edges = np.arange(law.ppf(1e-4), law.ppf(1 - 1e-4) + 2)
    edges = np.concatenate([[-np.inf], edges - 0.5, [np.inf]])
    expected = n * np.diff(law.cdf(edges))
    found = np.histogram(k, np.clip(edges, -1, 1e4))[0]
    keep = expected > 10
    statistic = np.sum((found[keep] - expected[keep]) ** 2 / expected[keep])
    assert scipy.stats.chi2.sf(statistic, keep.sum() - 1) > 1e-4


@both_programs
@pytest.mark.parametrize("count", [1, 2, 3, 100, 129, 256])
def test_levels_are_counted_inside_the_image_alone(programs, count):
    """The rate of full scale is the power of two from the number of levels."""
    rng = np.random.default_rng(count)
    image, valid = random_image(rng, 31, 41)
    values = rng.permutation(256)[:count]
    pixels = np.concatenate([values, rng.choice(values, 3 * 31 * 41 - count)])
    image[:, :31, :41] = pixels.reshape(3, 31, 41) / 255
    clean, rate, full = jax.jit(functools.partial(noise.poisson_rate, levels=programs.levels))(
        image, valid
    )
    assert full == 2 ** np.ceil(np.log2(count))
    np.testing.assert_allclose(rate, clean * full, rtol=1e-6)


@pytest.mark.parametrize("kind", [noise.GAUSSIAN, noise.POISSON])
@pytest.mark.parametrize("grey", [False, True])
def test_noise_has_the_strength_and_colour_asked_for(kind, grey):
    image = np.full((3, 256, 256), 0.5, np.float32)
    image[:, :64] = np.linspace(0.3, 0.7, 256, dtype=np.float32)  # more than 64 levels
    strength = {noise.GAUSSIAN: 10.0, noise.POISSON: 0.8}[kind]
    step = Noise(np.int32(kind), np.float32(strength), np.bool_(grey), np.array([3, 4], np.uint32))
    run = jax.jit(functools.partial(noise.add_noise, levels=CPU.levels))
    added = np.asarray(run(image, np.array([256, 256]), step), np.float64)[:, 64:] - 0.5
    level = np.round(0.5 * 255) / 255
    std = {noise.GAUSSIAN: 10 / 255, noise.POISSON: 0.8 * np.sqrt(level / 128)}[kind]
    assert added.std() == pytest.approx(std, rel=0.02)
    assert abs(added.mean()) < 5 * std / np.sqrt(added[0].size)
    between = np.corrcoef(added.reshape(3, -1))[np.triu_indices(3, 1)]
    np.testing.assert_allclose(between, float(grey), atol=0.02)
