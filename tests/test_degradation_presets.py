"""Laws of the degradation presets and of the function that draws from them."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dossr_jax.data.degradation import PRESETS, choose_presets, degrade, kernels, missing
from dossr_jax.data.degradation.chain import ACCELERATOR, CPU, Chain
from dossr_jax.data.degradation.noise import GAUSSIAN, NONE, POISSON
from dossr_jax.data.degradation.plan import draw_plan
from dossr_jax.errors import UserError

ROOT = Path(__file__).parent.parent
SHAPE = 64, 80
BATCH = 48


@functools.cache
def program(*names):
    return jax.jit(functools.partial(degrade, presets=choose_presets(names)))


def draw_keys(count=BATCH, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def photos(count=BATCH, shape=SHAPE):
    """The same crop of a photo, over and over: (count, h, w, 3) in [0, 1]."""
    photo = Image.open(ROOT / "examples" / "city.png").convert("RGB").crop((0, 0, *shape[::-1]))
    return np.repeat(np.asarray(photo, np.float32)[None] / 255, count, axis=0)


def reduced(images, scale):
    b, h, w, c = images.shape
    return images.reshape(b, h // scale, scale, w // scale, scale, c).mean(axis=(2, 4))


@functools.cache
def results(name):
    return np.asarray(program(name)(draw_keys(), photos()))


each_preset = pytest.mark.parametrize("name", PRESETS)


@each_preset
def test_result_is_an_image_of_8_bits(name):
    lr = results(name)
    scale = PRESETS[name].scale
    assert lr.shape == (BATCH, SHAPE[0] // scale, SHAPE[1] // scale, 3) and lr.dtype == np.float32
    np.testing.assert_allclose(lr * 255, np.round(lr * 255), atol=1e-4)
    assert lr.min() >= 0 and lr.max() <= 1


@each_preset
def test_same_key_same_result_whatever_the_batch(name):
    """Bit for bit, in another order and among other keys; without compiling again."""
    first = results(name)
    order = np.random.default_rng(0).permutation(BATCH)
    np.testing.assert_array_equal(program(name)(draw_keys()[order], photos()), first[order])
    keys = draw_keys(seed=1).at[5].set(draw_keys()[5])
    other = np.asarray(program(name)(keys, photos()))
    np.testing.assert_array_equal(other[5], first[5])
    if name != "bicubic":  # which draws nothing
        assert all((other[i] != first[i]).any() for i in range(BATCH) if i != 5)
    assert program(name)._cache_size() == 1


def test_a_batch_of_one_is_like_any_other():
    one = program("denoise")(draw_keys()[3:4], photos(1))
    np.testing.assert_array_equal(one[0], results("denoise")[3])


@functools.cache
def plans_and_images(*names, count=16):
    presets = choose_presets(names)
    plans = jax.jit(jax.vmap(lambda key: draw_plan(key, presets, SHAPE)))(draw_keys(count))
    return plans, photos(count).transpose(0, 3, 1, 2)


def chain(*names, programs):
    return Chain(choose_presets(names), SHAPE, programs)


def assert_same_but_for_roundings(ours, theirs):
    """One rounding may turn over a coefficient of a JPEG, and with it the pixels of a block."""
    levels = 255 * np.abs(np.asarray(ours) - np.asarray(theirs))
    assert np.mean(levels < 0.5) > 0.98 and levels.mean() < 0.1


@pytest.mark.parametrize("names", [("realesrgan", "light", "bicubic"), ("deblock", "deblur")])
def test_accelerators_program_does_the_same(names):
    plans, hr = plans_and_images(*names)
    ours = jax.jit(chain(*names, programs=CPU).in_turn)(plans, hr)
    together = jax.jit(jax.vmap(chain(*names, programs=ACCELERATOR)))(plans, hr)
    assert_same_but_for_roundings(ours, together)


def test_together_is_like_alone():
    plans, hr = plans_and_images("deblur")
    together = jax.jit(jax.vmap(chain("deblur", programs=ACCELERATOR)))(plans, hr)
    alone = jax.jit(chain("deblur", programs=ACCELERATOR))
    for i in range(4):
        plan = jax.tree.map(lambda leaf, i=i: leaf[i], plans)
        assert_same_but_for_roundings(alone(plan, hr[i]), together[i])


def test_canvas_does_not_matter(monkeypatch):
    """Large images use the smallest of several canvases, with the same result."""
    plans, hr = plans_and_images("light", count=BATCH)
    monkeypatch.setattr("dossr_jax.data.degradation.chain._LARGE_SIDE", 1)
    several = jax.jit(chain("light", programs=CPU).in_turn)(plans, hr)
    assert_same_but_for_roundings(several.transpose(0, 2, 3, 1), results("light"))


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "inpaint"])
def test_nothing_moves_and_no_colour_is_cast(name):
    """On average a result is the averaged HR image; shifted or mirrored it is much further off."""
    area = reduced(photos(1), PRESETS[name].scale)[0]
    mean = results(name).mean(axis=0)
    assert np.abs((mean - area).mean(axis=(0, 1))).max() < 0.02
    inner = slice(2, -2), slice(2, -2)
    error = np.abs(mean - area)[inner].mean()
    moves = [(0, 1), (0, -1), (1, 0), (-1, 0)]
    moved = [np.roll(area, move, axis=(0, 1)) for move in moves]
    for other in [*moved, area[::-1], area[:, ::-1], area[..., ::-1]]:
        assert error < 0.95 * np.abs(mean - other)[inner].mean()


def test_presets_are_as_harsh_as_they_say():
    area = reduced(photos(1), 4)
    error = {name: np.abs(results(name) - area).mean() for name in PRESETS if name in UPSCALING}
    assert error["realesrgan"] > 1.5 * error["light"] > 1.5 * 1.5 * error["bicubic"]


UPSCALING = [name for name, preset in PRESETS.items() if preset.scale == 4]


def test_bicubic_is_pillows():
    photo = Image.fromarray(np.round(photos(1)[0] * 255).astype(np.uint8))
    size = SHAPE[1] // 4, SHAPE[0] // 4
    theirs = np.asarray(photo.resize(size, Image.Resampling.BICUBIC), np.float32)
    assert np.abs(255 * results("bicubic") - theirs).max() < 1.01


def test_deblur_removes_detail_and_denoise_adds_it():
    def detail(images):
        return np.abs(np.diff(images, axis=2)).mean()

    sharp = detail(photos(1))
    assert detail(results("deblur")) < 0.8 * sharp < 1.2 * sharp < detail(results("denoise"))


def test_inpaint_takes_strokes_away_and_leaves_the_rest():
    lr, hr = np.rint(255 * results("inpaint")), np.rint(255 * photos())
    holes = np.asarray(missing(draw_keys(), SHAPE, choose_presets(["inpaint"])))
    assert (lr[holes] == 128).all()
    np.testing.assert_array_equal(lr[~holes], hr[~holes])
    shares = holes.mean(axis=(1, 2))
    assert 0 < shares.min() < 0.02 and 0.2 < shares.max() < 0.8
    assert not missing(draw_keys(2), SHAPE, choose_presets(["denoise"])).any()


def test_deblock_leaves_steps_between_blocks():
    steps = np.abs(np.diff(results("deblock"), axis=2)).mean(axis=(0, 1, 3))
    original = np.abs(np.diff(photos(1), axis=2)).mean(axis=(0, 1, 3))
    edge = np.arange(SHAPE[1] - 1) % 8 == 7
    assert (steps / original)[edge].mean() > 1.3 * (steps / original)[~edge].mean()


@functools.cache
def many_plans(name, count=4000):
    """Plans as arrays, without the kernels' memory."""
    presets = choose_presets([name])
    plans = jax.jit(jax.vmap(lambda key: draw_plan(key, presets, (512, 512))))(draw_keys(count))
    return jax.tree.map(np.asarray, plans)


def is_share(values, odds):
    """Whether a Boolean array of draws can have these odds."""
    return abs(np.mean(values) - odds) < 5 * np.sqrt(odds * (1 - odds) / np.size(values)) + 1e-9


def test_realesrgan_draws_the_releases_odds_and_ranges():
    plan = many_plans("realesrgan")
    first, second = plan.first, plan.second
    assert first.blur.apply.all() and is_share(second.blur.apply, 0.8)
    factor = 1 / first.resize.step[:, 0]
    assert is_share(factor > 1, 0.2) and is_share(factor < 1, 0.7)
    assert 0.15 <= factor.min() < 0.16 and 1.49 < factor.max() <= 1.5
    np.testing.assert_array_equal(first.resize.size[:, 0], np.floor(512 * factor + 1e-4))
    second_factor = second.resize.size[:, 0] / 128
    assert is_share(second_factor > 1, 0.3 * (1 - 1 / 128 / 0.2))  # not those rounded down to 1
    assert 0.29 < second_factor.min() and second_factor.max() <= 1.2
    np.testing.assert_allclose(
        second.resize.step, first.resize.size / second.resize.size, rtol=1e-6
    )
    assert (plan.last_resize.size == 128).all()
    for resize in (first.resize, second.resize, plan.last_resize):
        assert all(is_share(resize.mode == mode, 1 / 3) for mode in range(3))
    for noise, sigma, scale in ((first.noise, 30, 3), (second.noise, 25, 2.5)):
        assert is_share(noise.kind == GAUSSIAN, 0.5) and not (noise.kind == NONE).any()
        for kind, low, high in ((GAUSSIAN, 1, sigma), (POISSON, 0.05, scale)):
            strength = noise.strength[noise.kind == kind]
            assert low <= strength.min() and strength.max() <= high
            assert abs(strength.mean() - (low + high) / 2) < 0.03 * high
        assert is_share(noise.grey, 0.4)
    for jpeg in (first.jpeg, second.jpeg):
        assert jpeg.apply.all() and 30 <= jpeg.quality.min() and jpeg.quality.max() <= 95
    assert is_share(plan.sinc.apply, 0.8) and is_share(plan.jpeg_last, 0.5)
    assert not plan.sharpen.any()
    assert len(np.unique(np.concatenate([first.noise.seed, second.noise.seed]), axis=0)) == 8000


def test_kernels_are_normalised_and_of_every_size():
    plan = many_plans("realesrgan")
    for blur in (plan.first.blur, plan.second.blur, plan.sinc):
        np.testing.assert_allclose(blur.kernel.sum(axis=(1, 2)), 1, atol=1e-5)
        np.testing.assert_allclose(blur.kernel, blur.kernel[:, ::-1, ::-1], atol=1e-6)
    # A sinc kernel is nowhere zero but by chance, so its size shows.
    size = np.sum(np.any(plan.sinc.kernel != 0, axis=1), axis=1)
    assert all(is_share(size == side, 1 / 8) for side in range(7, kernels.CANVAS + 1, 2))


def test_each_preset_of_a_run_is_as_likely():
    presets = choose_presets(["realesrgan", "light", "bicubic"])
    plan = jax.jit(jax.vmap(lambda key: draw_plan(key, presets, (64, 64))))(draw_keys(3000))
    bicubic = np.asarray(plan.last_resize.mode) == 3
    assert is_share(bicubic, 1 / 3)
    assert is_share(np.asarray(plan.sinc.apply), 0.8 / 3)
    assert not np.asarray(plan.first.blur.apply | plan.first.jpeg.apply)[bicubic].any()


def test_wrong_presets_are_user_errors():
    for names in ([], ["blurry"], ["light", "denoise"]):
        with pytest.raises(UserError, match="preset"):
            choose_presets(names)


def test_sides_that_do_not_fit_the_scale_are_an_error():
    for height, width in ((62, 64), (64, 62)):
        with pytest.raises(ValueError, match="not multiples of the scale 4"):
            degrade(draw_keys(1), jnp.zeros((1, height, width, 3)), choose_presets(["light"]))


SPLIT = """
import functools, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from dossr_jax.data.degradation import choose_presets
from dossr_jax.data.degradation.chain import ACCELERATOR, Chain, degrade
from dossr_jax.data.degradation.plan import draw_plan

mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, P("data"))
presets = choose_presets(["realesrgan"])
chain = Chain(presets, (32, 32), ACCELERATOR)

def run(keys, hr):
    return jax.vmap(chain)(jax.vmap(lambda key: draw_plan(key, presets, (32, 32)))(keys), hr)

keys = jax.device_put(jax.random.split(jax.random.key(0), 8), split)
hr = jax.device_put(np.random.default_rng(0).random((8, 3, 32, 32), np.float32), split)
compiled = jax.jit(run, in_shardings=split, out_shardings=split).lower(keys, hr).compile()
found = [word for word in ("all-", "collective", "send") if word in compiled.as_text()]
assert not found, found
apart = compiled(keys, hr)
program = functools.partial(degrade, presets=presets)
specs = {"in_specs": P("data"), "out_specs": P("data"), "check_vma": False}
alone = jax.shard_map(program, mesh=mesh, **specs)
alone = jax.jit(alone)(keys, hr.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
assert np.mean(np.abs(np.asarray(apart) - np.asarray(alone)) < 0.002) > 0.95
"""


def test_split_batches_need_no_communication():
    """The accelerator's program on four devices; the CPU's inside shard_map."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    subprocess.run([sys.executable, "-c", SPLIT], env=environment, check=True)
