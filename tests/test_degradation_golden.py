"""Every degradation against recorded outputs of the PyTorch release, and whole chains of it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dctn
from scipy.special import ndtr

from dossr_jax.data.degradation import filters, kernels, noise
from dossr_jax.data.degradation import jpeg as jpeg_lib
from dossr_jax.data.degradation.chain import ACCELERATOR, CPU, Chain
from dossr_jax.data.degradation.noise import Noise
from dossr_jax.data.degradation.plan import Blur, Jpeg, PassPlan, Plan
from dossr_jax.data.degradation.presets import choose_presets
from dossr_jax.data.degradation.resize import MODES, Resize

TOLERANCE = 1e-4
LEVEL = 1 / 255
LUMA = np.array([0.2989, 0.587, 0.114], np.float32)
CHAINS = (1, 2, 3, 5)

both_programs = pytest.mark.parametrize(
    "programs", [pytest.param(CPU, id="cpu"), pytest.param(ACCELERATOR, id="accelerator")]
)
blur_kernel, sinc_kernel, compress = map(
    jax.jit, (kernels.blur_kernel, kernels.sinc_kernel, jpeg_lib.jpeg)
)


@functools.cache
def jitted_correlate(programs):
    return jax.jit(programs.correlate)


@functools.cache
def jitted_resize(programs, canvas):
    return jax.jit(functools.partial(programs.resize, canvas=canvas, antialiased=True))


@pytest.fixture(scope="module")
def golden(golden_dir):
    with np.load(golden_dir / "degradation.npz") as file:
        arrays = dict(file)
    return arrays | {"meta": json.loads(str(arrays["meta_json"]))}


def on_canvas(image, canvas=(96, 112)):
    """An image in the corner of a larger canvas of rubbish, and its size."""
    _, height, width = image.shape
    full = np.full((3, *canvas), 7.5, np.float32)
    full[:, :height, :width] = image
    return full, np.array([height, width], np.int32)


def close(ours, theirs, tolerance=TOLERANCE):
    ours = np.asarray(ours)[tuple(slice(n) for n in theirs.shape)]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def padded(kernel):
    return np.pad(kernel, (kernels.CANVAS - kernel.shape[0]) // 2)


def kernel_of(name, size, sigma_x, sigma_y, angle, beta=1.0):
    kind = kernels.KINDS.index(name.replace("generalized", "generalised"))
    return blur_kernel(kind, size, np.array([sigma_x, sigma_y], np.float32), angle, beta)


@pytest.mark.parametrize("kind", range(6))
def test_kernel_with_given_parameters(golden, kind):
    name = list(golden["meta"]["kernel_params"])[kind]
    _, parameters, _ = golden["meta"]["kernel_params"][name]
    close(kernel_of(name, *parameters), padded(golden[f"kernel_{name}"]), 1e-6)


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("s", range(3))
def test_kernel_with_drawn_parameters(golden, kind, s):
    """The release's draws, repeated in its order: sigmas, angle, half of beta and beta."""
    name = list(golden["meta"]["kernel_params"])[kind]
    rng = np.random.RandomState(200 + 10 * kind + s)
    sigma = [rng.uniform(0.2, 3)] * 2
    angle, beta = 0.0, 1.0
    if "aniso" in name:
        sigma[1], angle = rng.uniform(0.2, 3), rng.uniform(-np.pi, np.pi)
    if "_" in name:
        low, high = (0.5, 4) if "generalized" in name else (1, 2)
        beta = rng.uniform(low, 1) if rng.uniform() < 0.5 else rng.uniform(1, high)
    close(
        kernel_of(name, 21 - 2 * s, *sigma, angle, beta), padded(golden[f"mixed_{name}_{s}"]), 1e-6
    )


@pytest.mark.parametrize("i", range(4))
def test_sinc_kernel(golden, i):
    cutoff, size, _ = golden["meta"]["sinc_params"][i]
    close(sinc_kernel(size, cutoff), padded(golden[f"sinc_{i}"]), 1e-6)


@both_programs
@pytest.mark.parametrize(
    "result, kernel",
    [
        ("filter2D_out", lambda g, i: g["filter2D_kernels"][i]),
        ("filter2D_single_out", lambda g, i: g["filter2D_kernels"][0]),
        ("filter2D_asym_out", lambda g, i: g["filter2D_asym_kernel"][0]),
        ("filter2D_sinc_out", lambda g, i: g[f"sinc_{i + 1}"]),
    ],
)
def test_filter(golden, programs, result, kernel):
    for i in range(2):
        image, valid = on_canvas(golden["img"][i])
        ours = jitted_correlate(programs)(image, valid, kernel(golden, i).astype(np.float32))
        close(ours, golden[result][i])


@both_programs
def test_sharpen(golden, programs):
    run = jax.jit(functools.partial(filters.sharpen, correlate=programs.correlate))
    for i in range(2):
        close(run(*on_canvas(golden["img"][i])), golden["usm_out"][i])


RESIZES = [
    (mode, size)
    for mode in MODES
    for size in ("sf0.37", "sf1.3", "16x18", "25x31", "90x101")
    if not (mode == "antialiased" and size.startswith("sf"))
]


@both_programs
@pytest.mark.parametrize("mode, size", RESIZES)
def test_resize(golden, programs, mode, size):
    theirs = golden[f"interp_{'bicubic_aa' if mode == 'antialiased' else mode}_{size}"]
    shape = np.array(theirs.shape[2:], np.int32)
    step = [1 / float(size[2:])] * 2 if size.startswith("sf") else np.array([64, 72]) / shape
    resize = Resize(shape, np.array(step, np.float32), np.int32(MODES.index(mode)))
    for i in range(2):
        image, valid = on_canvas(golden["img"][i])
        close(jitted_resize(programs, (96, 112))(image, valid, resize), theirs[i])


JPEGS = {f"jpeg_q{q}": ("img", [q, q]) for q in (10, 30, 50, 75, 95)}
JPEGS |= {"jpeg_batch": ("img", [33.7, 91.2]), "jpeg_odd_q40": ("jpeg_odd_in", [40, 40])}


@pytest.mark.parametrize("result", JPEGS)
def test_jpeg(golden, result):
    """No coefficient of these lies so near a tie that another order of sums rounds it otherwise."""
    source, qualities = JPEGS[result]
    for i, quality in enumerate(qualities):
        image, valid = on_canvas(golden[source][i])
        close(compress(image, valid, np.float32(quality)), golden[result][i])


def test_gaussian_noise(golden, monkeypatch):
    """The recorded normal draws go in as the uniforms whose quantiles they are."""
    for i in range(2):
        grey = bool(golden["gauss_gray"][i])
        draw = golden["gauss_draw_gray"][None] if grey else golden["gauss_draw_color"][i]
        draw = np.broadcast_to(draw, (3, 64, 72))
        monkeypatch.setattr(noise, "uniform", lambda *_, draw=draw: jnp.asarray(ndtr(draw)))
        step = Noise(
            np.int32(noise.GAUSSIAN), golden["gauss_sigma"][i], np.bool_(grey), np.zeros(2)
        )
        image = golden["img"][i]
        ours = noise.add_noise(image, np.array([64, 72]), step, CPU.levels)
        close(ours, np.clip(image + golden["gauss_noise"][i], 0, 1))


@both_programs
@pytest.mark.parametrize("prefix", ["poisson", "poisson_nogray"])
def test_poisson_noise(golden, monkeypatch, programs, prefix):
    """The rates are the recorded ones, and the recorded counts make the recorded noise."""
    for i in range(2):
        grey = prefix == "poisson" and bool(golden["poisson_gray"][i])
        name = {True: "poisson_{}_gray", False: "poisson_{}_color"}[grey]
        if prefix == "poisson_nogray":
            name = "poisson_nogray_{}"
        rate, counts = (golden[name.format(what)][i] for what in ("rate", "count"))
        image, valid = on_canvas(golden["img"][i])
        planes = np.einsum("c,chw->hw", LUMA, image)[None] if grey else image
        ours = noise.poisson_rate(planes, valid, programs.levels)[1]
        close(ours, rate)
        full = np.zeros((counts.shape[0], *image.shape[1:]), np.float32)
        full[:, :64, :72] = counts
        monkeypatch.setattr(noise, "poisson_counts", lambda *_, full=full: jnp.asarray(full))
        strength = golden["poisson_scale"][i]
        step = Noise(np.int32(noise.POISSON), strength, np.bool_(grey), np.zeros(2, np.uint32))
        ours = noise.add_noise(image, valid, step, programs.levels)
        theirs = np.clip(golden["img"][i] + golden[f"{prefix}_noise"][i], 0, 1)
        close(ours, theirs)


def recorded_steps(golden, s):
    """Operations of a recorded chain: name, options, input and output, (3, h, w) each."""
    x = golden["bt_hq"][0]
    for i, (name, options) in enumerate(golden["meta"][f"bt{s}_ops"]):
        result = golden[f"bt{s}_op{i:02d}_{name}"][0]
        yield name, options, x, result
        x = result


def recorded_resize(options, before, after):
    shape = np.array(after.shape[1:], np.int32)
    factor = options.get("scale_factor")
    step = 1 / factor if factor else before.shape[1] / shape[0]
    return Resize(shape, np.full(2, step, np.float32), np.int32(MODES.index(options["mode"])))


@both_programs
@pytest.mark.parametrize("s", CHAINS)
def test_recorded_chain_step_by_step(golden, programs, s):
    filters_left = [golden[f"bt{s}_{name}"] for name in ("kernel1", "kernel2", "sinc_kernel")]
    names = [name for name, *_ in recorded_steps(golden, s)]
    if names.count("filter2D") == 2:  # no second blur was drawn
        del filters_left[1]
    for name, options, before, after in recorded_steps(golden, s):
        image, valid = on_canvas(before, (128, 128))
        if name == "filter2D":
            ours = jitted_correlate(programs)(image, valid, filters_left.pop(0))
        elif name == "interpolate":
            resize = recorded_resize(options, before, after)
            ours = jitted_resize(programs, (128, 128))(image, valid, resize)
        elif name == "jpeg":
            ours = compress(np.clip(image, 0, 1), valid, np.float32(options["quality"]))
        else:
            continue  # its draws were not recorded
        close(ours, after)
    hint, recorded = np.round(np.clip(ours, 0, 1) * 255), 255 * golden[f"bt{s}_hint"][0]
    levels = np.abs(np.moveaxis(hint, 0, -1) - recorded)
    assert levels.max() < 1.01 and np.mean(levels < 0.01) > 0.9999  # next to a level's edge


def recorded_plan(golden, s):
    """The plan of a recorded chain, and its two noises, of which seeds are the numbers."""
    steps = list(recorded_steps(golden, s))
    names = [name for name, *_ in steps]
    added = [after - before for name, _, before, after in steps if name in ("gaussian", "poisson")]
    resizes = [recorded_resize(*rest) for name, *rest in steps if name == "interpolate"]
    quality = [options["quality"] for name, options, *_ in steps if name == "jpeg"]
    kernel = [golden[f"bt{s}_{name}"] for name in ("kernel1", "kernel2", "sinc_kernel")]
    applied = [True, names.count("filter2D") == 3, True]
    first, second = (
        PassPlan(
            blur=Blur(np.bool_(applied[i]), kernel[i]),
            resize=resizes[i],
            noise=Noise(np.int32(1), np.float32(0), np.bool_(False), np.uint32([i, 0])),
            jpeg=Jpeg(np.bool_(True), np.float32(quality[i])),
        )
        for i in range(2)
    )
    plan = Plan(
        sharpen=np.bool_(False),
        first=first,
        second=second,
        last_resize=resizes[2],
        sinc=Blur(np.bool_(True), kernel[2]),
        jpeg_last=np.bool_(names[-2] == "jpeg"),
    )
    return plan, added


def tie_distance(golden, s):
    """How near to a tie, in quantisation steps, a coefficient of a chain's JPEGs comes at best."""
    nearest = 0.5
    for name, options, before, _ in recorded_steps(golden, s):
        if name == "jpeg":
            for rounded in jpeg_coefficients(before, options["quality"]):
                nearest = min(nearest, np.abs(np.abs(rounded - np.floor(rounded)) - 0.5).min())
    return nearest


def jpeg_coefficients(image, quality):
    """Coefficients of (3, h, w) in quantisation steps, before rounding, in float64."""
    height, width = image.shape[1:]
    rgb = np.clip(image.astype(float), 0, 1) * 255
    rgb = np.pad(rgb, ((0, 0), (0, -height % 16), (0, -width % 16)))
    y, cb, cr = np.tensordot(jpeg_lib._TO_YCC, rgb, 1)
    chroma = (c.reshape(c.shape[0] // 2, 2, -1, 2).mean(axis=(1, 3)) for c in (cb, cr))
    factor = (5000 / quality if quality < 50 else 200 - 2 * quality) / 100
    for plane, table in (
        (y - 128, jpeg_lib.LUMA_TABLE),
        *((c, jpeg_lib.CHROMA_TABLE) for c in chroma),
    ):
        blocks = plane.reshape(plane.shape[0] // 8, 8, -1, 8).transpose(0, 2, 1, 3)
        yield dctn(blocks, axes=(2, 3), norm="ortho") / (table * factor)


@pytest.mark.parametrize("quality", [30, 75])
def test_tie_distance_counts_as_recorded(golden, quality):
    for i, plane in enumerate(("y", "cb", "cr")):
        ours = [list(jpeg_coefficients(image, quality))[i] for image in golden["img"]]
        theirs = golden[f"jpeg_q{quality}_coef_{plane}_unrounded"]
        close(np.reshape(ours, theirs.shape), theirs)
        np.testing.assert_array_equal(
            np.round(np.reshape(ours, theirs.shape)), golden[f"jpeg_q{quality}_coef_{plane}"]
        )


@both_programs
def test_recorded_chains_from_end_to_end(golden, programs, monkeypatch):
    """With their draws and noises, the four chains end on the recorded 8-bit images.

    An error of 1e-6 may round one coefficient of a JPEG the other way, which moves some pixels of
    its block by a level; only where such a tie is shown to be near.
    """
    plans, added = zip(*(recorded_plan(golden, s) for s in CHAINS), strict=True)
    plans = jax.tree.map(lambda *leaves: np.stack(leaves), *plans)
    fields = np.zeros((len(CHAINS), 2, 3, 192, 192), np.float32)
    for chain, pair in enumerate(added):
        for i, field in enumerate(pair):
            fields[chain, i, :, : field.shape[1], : field.shape[2]] = field
    # Which chain it is takes the place of the other word of the seed.
    for step in (plans.first, plans.second):
        step.noise.seed[:, 1] = np.arange(len(CHAINS))

    def recorded_noise(x, size, step, levels):
        return x + jnp.asarray(fields)[step.seed[1], step.seed[0]][:, : x.shape[1], : x.shape[2]]

    monkeypatch.setattr(noise, "add_noise", recorded_noise)
    chain = Chain(choose_presets(["realesrgan"]), (128, 128), programs)
    run = chain.in_turn if programs is CPU else jax.vmap(chain)
    images = np.broadcast_to(golden["bt_hq"], (len(CHAINS), 3, 128, 128))
    ours = np.asarray(jax.jit(run)(plans, images))
    for i, s in enumerate(CHAINS):
        *_, (_, _, theirs, _) = recorded_steps(golden, s)
        theirs = np.round(np.clip(theirs, 0, 1) * 255) / 255
        close(ours[i], theirs, 1.01 * LEVEL)
        off = np.abs(ours[i] - theirs) > TOLERANCE
        assert off.mean() < 1e-3 or (off.mean() < 0.05 and tie_distance(golden, s) < 1e-4)
