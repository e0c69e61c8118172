"""Convolutions of few positions are the same as XLA's."""

import jax
import numpy as np
import pytest

from dossr_jax.models.convolution import convolve
from dossr_jax.models.layers import Factory, Shapes

CHANNELS = 700  # kernels of 3x3 are large enough
OPTIONS = {
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    "feature_group_count": 1,
}


@pytest.mark.parametrize(
    ("stride", "padding"), [(1, ((1, 1), (1, 1))), (2, ((1, 1), (1, 1))), (2, ((0, 1), (0, 1)))]
)
def test_it_is_xlas(stride, padding):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 8, CHANNELS), np.float32)
    kernel = rng.standard_normal((3, 3, CHANNELS, CHANNELS), np.float32) / 80
    args = x, kernel, (stride, stride), padding
    expected = jax.lax.conv_general_dilated(*args, **OPTIONS)
    # Sums of 6300 products, in another order.
    np.testing.assert_allclose(convolve(*args, **OPTIONS), expected, atol=2e-5)


def test_it_is_ours_for_small_images_with_large_kernels_alone():
    def products(channels, *shape, **options):
        kernel = np.zeros((3, 3, channels, channels), np.float32)

        def run(x):
            return convolve(x, kernel, (1, 1), ((1, 1), (1, 1)), **OPTIONS | options)

        return str(jax.make_jaxpr(run)(np.zeros((*shape, channels), np.float32))).count("dot_gen")

    assert products(CHANNELS, 1, 16, 16) == products(CHANNELS, 4, 8, 8) == 1
    assert products(CHANNELS, 2, 16, 16) == products(64, 1, 8, 8) == 0
    assert products(CHANNELS, 1, 8, 8, rhs_dilation=(2, 2)) == 0


def test_the_networks_use_it():
    assert Factory(rngs=Shapes()).conv(4, 4).conv_general_dilated is convolve
