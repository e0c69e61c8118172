"""Laws of shape classes: every image has one, there are few, and tiles cover what is in them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dossr_jax.pipeline.buckets import Buckets, Canvas

SIDES = st.integers(1, 3000)
# (pixels a latent position, multiple the UNet needs, tile in pixels)
BUCKETS = st.builds(
    Buckets.of_pixels,
    st.sampled_from([4, 8, 16]),
    st.sampled_from([1, 4, 8]),
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
    buckets = Buckets.of_pixels(8, 8, 512)
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


@given(BUCKETS, SIDES, SIDES, st.integers(1, 64))
def test_batches_of_large_images_are_small(buckets, height, width, batch_size):
    canvas = buckets.canvas(height, width)
    capacity = buckets.capacity(canvas, batch_size)
    assert 1 <= capacity <= batch_size
    if canvas.tiled and capacity > 1:
        assert capacity * canvas.height * canvas.width * buckets.unit**2 <= 8 * 2**20
