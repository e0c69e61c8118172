"""Laws of shape classes: every image has one, there are few, and tiles cover what is in them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dossr_jax.pipeline.buckets import Buckets, Canvas
from dossr_jax.systems import Geometry

SIDES = st.integers(1, 3000)
# (pixels per latent position, multiple the UNet needs, enlargement), tile in pixels
BUCKETS = st.builds(
    Buckets.of_pixels,
    st.builds(
        Geometry,
        st.sampled_from([4, 8, 16]),
        st.sampled_from([1, 4, 8]),
        st.sampled_from([1, 4]),
    ),
    st.sampled_from([0, 1, 128, 500, 512, 768]),
)


def input_sides(buckets: Buckets, canvas: Canvas) -> tuple[int, int]:
    return canvas.height * buckets.unit_px, canvas.width * buckets.unit_px


@given(BUCKETS, SIDES, SIDES)
def test_the_canvas_holds_the_image_and_suits_the_networks(buckets, height, width):
    canvas = buckets.canvas(height, width)
    rows, cols = input_sides(buckets, canvas)
    assert rows >= height and cols >= width
    assert canvas.height % buckets.align == canvas.width % buckets.align == 0
    if buckets.tile is None:
        assert not canvas.tiled
    elif canvas.tiled:
        assert min(canvas.height, canvas.width) >= buckets.tile < max(canvas.height, canvas.width)
    else:
        assert canvas.height == canvas.width <= buckets.tile


@given(BUCKETS, SIDES, SIDES)
def test_a_canvas_is_its_own_class(buckets, height, width):
    canvas = buckets.canvas(height, width)
    assert buckets.canvas(*input_sides(buckets, canvas)) == canvas


def test_classes_are_few():
    """A side at most doubles in two classes: a hundred-odd shapes for a whole photo album."""
    buckets = Buckets.of_pixels(Geometry(8, 8), 512)
    sides = range(1, 4001, 7)
    classes = {buckets.canvas(h, w) for h in sides for w in sides}
    assert sum(not c.tiled for c in classes) == 3
    # Sides 64, 96, 128, 192, ... 2048: eleven, in pairs.
    assert len(classes) <= 3 + 11**2


@given(BUCKETS.filter(lambda b: b.tile), st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3))
def test_tiles_cover_every_image_and_their_number_is_that_of_the_class(buckets, sizes):
    places = len(sizes) + 1
    largest = [max(side) for side in zip(*sizes, strict=True)]
    canvas = buckets.canvas(*largest)
    tiles, count = buckets.tiles(canvas, sizes, places)
    if not canvas.tiled:
        assert (len(tiles), count) == (0, 0)
        return
    full, _ = buckets.tiles(canvas, [input_sides(buckets, canvas)] * places, places)
    assert tiles.shape == full.shape and tiles.dtype == np.int32 and count <= len(tiles)
    assert not tiles[count:].any()
    for i, (height, width) in enumerate(sizes):
        covered = np.zeros((canvas.height, canvas.width), bool)
        for _, row, col in tiles[:count][tiles[:count, 0] == i]:
            assert row + buckets.tile <= canvas.height and col + buckets.tile <= canvas.width
            covered[row : row + buckets.tile, col : col + buckets.tile] = True
        assert covered[: -(-height // buckets.unit_px), : -(-width // buckets.unit_px)].all()


@given(BUCKETS, SIDES, SIDES, st.integers(1, 64), st.integers(1, 2**25))
def test_batches_of_large_images_are_small(buckets, height, width, batch_size, together):
    canvas = buckets.canvas(height, width)
    capacity = buckets.capacity(canvas, batch_size, together)
    assert 1 <= capacity <= batch_size
    if capacity > 1:
        pixels = capacity * buckets.pixels(canvas)
        assert pixels <= together and (pixels <= 8 * 2**20 or not canvas.tiled)


@given(BUCKETS, SIDES, SIDES, st.integers(1, 4), st.integers(1, 64))
def test_tiles_that_run_together_leave_few_places_empty(buckets, height, width, images, batch_size):
    canvas = buckets.canvas(height, width)
    tile_batch = buckets.tile_batch(canvas, images, batch_size, float("inf"))
    tiles, _ = buckets.tiles(canvas, [input_sides(buckets, canvas)] * images, images)
    assert 1 <= tile_batch <= batch_size
    if canvas.tiled:
        runs = -(-len(tiles) // tile_batch)
        assert runs == -(-len(tiles) // batch_size) and runs * tile_batch - len(tiles) < runs


@given(BUCKETS, st.lists(st.tuples(SIDES, SIDES), max_size=8))
def test_rare_classes_share_a_program_where_tiles_stay_the_same(buckets, sizes):
    merged = buckets.merge(sizes)
    assert set(merged) == {buckets.canvas(*size) for size in sizes}
    for size in sizes:
        canvas = buckets.canvas(*size)
        shared = merged[canvas]
        assert shared == canvas or (canvas.tiled and shared.tiled and merged[shared] == shared)
        assert shared.height >= canvas.height and shared.width >= canvas.width
        (tiles, count), (others, number) = (buckets.tiles(c, [size], 1) for c in (canvas, shared))
        np.testing.assert_array_equal(tiles[:count], others[:number])


def test_sixty_four_small_pictures_of_mixed_sizes_need_six_programs():
    buckets = Buckets.of_pixels(Geometry(4, 4), 512)
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = rng.integers(30, 131, (64, 2)).tolist()
        assert len(set(buckets.merge(sizes).values())) <= 6
