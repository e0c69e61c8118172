"""Laws of dossr_jax.tiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from dossr_jax import tiling


def uniform(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32))


def rows(*plans):
    """Tile rows (image, row, col) of one plan per image."""
    indexed = [np.insert(plan, 0, i, axis=1) for i, plan in enumerate(plans)]
    return jnp.asarray(np.concatenate(indexed), jnp.int32)


@st.composite
def plans(draw):
    align = draw(st.integers(1, 8))
    tile = align * draw(st.integers(2, 12))
    overlap = draw(st.integers(0, tile - align))
    height, width = (tile + align * draw(st.integers(0, 40)) for _ in range(2))
    return height, width, tile, overlap, align


@given(plans())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_plan_covers_evenly_and_in_line(plan):
    height, width, tile, overlap, align = plan
    corners = tiling.plan_tiles(*plan)
    assert corners.dtype == np.int32
    assert not (corners % align).any()
    for axis, length in enumerate((height, width)):
        starts = np.unique(corners[:, axis])
        assert starts[0] == 0 and starts[-1] == length - tile
        steps = np.diff(starts)
        assert (steps <= tile - overlap).all()
        assert np.ptp(steps) <= align if len(steps) else length == tile
        # No more tiles than the overlap makes necessary.
        stride = (tile - overlap) // align * align
        assert len(starts) == -(-(length - tile) // stride) + 1


@pytest.mark.parametrize(
    "arguments", [(30, 32, 16, 4, 4), (8, 32, 16, 4, 4), (32, 32, 18, 4, 4), (32, 32, 16, 16, 1)]
)
def test_impossible_plans_are_errors(arguments):
    with pytest.raises(ValueError):
        tiling.plan_tiles(*arguments)


@pytest.mark.parametrize(
    ("side", "overlap", "margin"), [(16, 8, 0), (33, 12, 3), (8, 4, 2), (8, 0, 0)]
)
def test_weights_of_neighbours_sum_to_one(side, overlap, margin):
    weight = tiling.window(side, overlap, margin)
    assert weight.shape == (side, side)
    assert (weight > 0).all() and (weight <= 1).all()
    line = np.sqrt(np.diagonal(weight))
    both = line[side - overlap :] + line[:overlap]
    np.testing.assert_allclose(both, 1, atol=2e-6)


def test_window_refuses_what_cannot_blend():
    for arguments in [(16, 9, 0), (16, 4, 3), (16, 4, -1)]:
        with pytest.raises(ValueError):
            tiling.window(*arguments)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("margin", [0, 1])
def test_identity_returns_the_input(batch, margin):
    x = uniform(2, 40, 56, 3)
    plan = tiling.plan_tiles(20, 28, 8, 3)
    tiles = rows(plan, plan)
    run = jax.jit(
        lambda x, tiles, count: tiling.tiled(
            lambda index, x: x, [x], tiles, count, tile=8, overlap=3, margin=margin,
            in_px=[2], out_px=2, out_channels=3, batch=batch,
        )
    )  # fmt: skip
    np.testing.assert_allclose(run(x, tiles, len(tiles)), x, atol=1e-6)


def test_only_counted_tiles_run_and_the_rest_is_zero():
    x = uniform(1, 16, 16, 1)
    tiles = jnp.asarray([[0, 0, 0], [0, 0, 4], [0, 8, 8], [0, 8, 0]], jnp.int32)
    run = jax.jit(
        lambda x, count: tiling.tiled(
            lambda index, x: x, [x], tiles, count, tile=8, overlap=4, in_px=[1], out_px=1,
            out_channels=1, batch=3,
        )
    )  # fmt: skip
    for count, covered in ((0, (0, 0)), (1, (8, 8)), (2, (8, 12))):
        want = np.zeros_like(x)
        want[:, : covered[0], : covered[1]] = x[:, : covered[0], : covered[1]]
        np.testing.assert_allclose(run(x, jnp.int32(count)), want, atol=1e-6)
    assert run._cache_size() == 1


def convolve(x, kernel, stride=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_tiled_network_equals_whole_where_the_margin_covers_its_reach():
    """Two 3x3 convolutions, zero padded, reach 2 px: a margin of 2 hides what tile borders do."""
    first, second = uniform(3, 3, 2, 8), uniform(3, 3, 8, 2, seed=1)

    def network(x):
        return convolve(jnp.tanh(convolve(x, first)), second)

    x = uniform(1, 40, 52, 2, seed=2)
    tiles = rows(tiling.plan_tiles(20, 26, 8, 3))

    def tiled(margin):
        return tiling.tiled(
            lambda index, x: network(x), [x], tiles, len(tiles), tile=8, overlap=3, margin=margin,
            in_px=[2], out_px=2, out_channels=2, batch=4,
        )  # fmt: skip

    whole = network(x)
    assert jnp.abs(tiled(1) - whole).max() < 1e-5 * jnp.abs(whole).max()
    assert jnp.abs(tiled(0) - whole).max() > 1e-2


def test_canvases_of_several_resolutions_and_an_enlarging_network():
    fine, coarse = uniform(2, 32, 48, 3), uniform(2, 8, 12, 4, seed=1)
    gain = jnp.asarray([1.0, -2.0])

    def network(index, fine, coarse):
        enlarge = lambda x, k: jnp.repeat(jnp.repeat(x, k, 1), k, 2)  # noqa: E731
        sums = fine.sum(-1, keepdims=True)
        return gain[index, None, None, None] * enlarge(sums, 2) + enlarge(coarse[..., :1], 8)

    plan = tiling.plan_tiles(8, 12, 4, 1)
    tiles = rows(plan, plan)
    out = tiling.tiled(
        network, [fine, coarse], tiles, len(tiles), tile=4, overlap=1, in_px=[4, 1], out_px=8,
        out_channels=1, batch=4,
    )  # fmt: skip
    np.testing.assert_allclose(out, network(jnp.arange(2), fine, coarse), atol=2e-6)


def test_every_image_gives_what_it_gives_alone():
    """Images of several sizes, one canvas, groups that mix images, junk outside the images."""
    sizes = [(8, 8), (24, 8), (16, 20)]
    kernel = uniform(3, 3, 3, 3)
    canvas = np.full((3, 24, 20, 3), np.nan, np.float32)
    for i, (h, w) in enumerate(sizes):
        canvas[i, :h, :w] = uniform(h, w, 3, seed=i)
    options = dict(tile=8, overlap=4, in_px=[1], out_px=1, out_channels=3, batch=4)
    plans = [tiling.plan_tiles(h, w, 8, 4, 4) for h, w in sizes]

    def network(index, x):
        return convolve(x, kernel)

    tiles = rows(*plans)
    batch = tiling.tiled(network, [jnp.asarray(canvas)], tiles, len(tiles), **options)
    for i, (h, w) in enumerate(sizes):
        alone = jnp.asarray(canvas[i : i + 1, :h, :w])
        single = rows(plans[i])
        want = tiling.tiled(network, [alone], single, len(single), **options)
        np.testing.assert_allclose(batch[i, :h, :w], want[0], atol=1e-6)
        assert not batch[i, h:].any() and not batch[i, :, w:].any()


def test_accumulates_in_float32_at_least():
    tiles = rows(tiling.plan_tiles(8, 8, 4, 2))
    options = dict(tile=4, overlap=2, in_px=[1], out_px=1, out_channels=1, batch=2)
    half = uniform(1, 8, 8, 1).astype(jnp.bfloat16)
    out = tiling.tiled(lambda index, x: x, [half], tiles, len(tiles), **options)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, half.astype(jnp.float32), atol=1e-6)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 8, 8, 1)))
        out = tiling.tiled(lambda index, x: x, [x], tiles, len(tiles), **options)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, x, atol=1e-14)


def test_mismatched_canvases_are_an_error():
    tiles = rows(tiling.plan_tiles(4, 4, 4, 0))
    options = dict(tile=4, overlap=0, out_px=1, out_channels=1, batch=1)
    for canvases, in_px in [
        ([jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 4, 5, 1))], [2, 1]),
        ([jnp.zeros((1, 9, 8, 1))], [2]),
        ([jnp.zeros((1, 8, 8, 1)), jnp.zeros((2, 8, 8, 1))], [1, 1]),
    ]:
        with pytest.raises(ValueError, match="do not match"):
            tiling.tiled(lambda index, *x: x[0], canvases, tiles, 1, in_px=in_px, **options)


def test_devices_share_the_tile_batch():
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    kernel = uniform(3, 3, 3, 3)
    x = uniform(1, 24, 24, 3)
    tiles = rows(tiling.plan_tiles(24, 24, 8, 2))

    @jax.jit
    def both(x):
        options = dict(
            tile=8, overlap=2, in_px=[1], out_px=1, out_channels=3, batch=2 * len(devices)
        )
        run = lambda **more: tiling.tiled(  # noqa: E731
            lambda index, x: convolve(x, kernel), [x], tiles, len(tiles), **options, **more
        )
        return run(), run(constrain=lambda x: lax.with_sharding_constraint(x, split))

    plain, shared = both(x)
    np.testing.assert_allclose(plain, shared, atol=1e-6)
