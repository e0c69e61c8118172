"""What restoring asks of XLA on GPUs, each with its share in docs/scaling.md."""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Sharding

# Other platforms take these options and ignore them.
COMPILER_OPTIONS = {
    # cuBLASLt adds bias and residual where it writes a product; XLA's Triton kernels do not.
    "xla_gpu_enable_triton_gemm": False,
    # Queries, keys and values as one product would be copied apart afterwards.
    "xla_gpu_dot_merger_threshold_mb": 0,
    # What CUDA graphs hold by default, and convolutions.
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,"
    "DYNAMIC_SLICE_FUSION,CONVOLUTION",
}
_NAMES = ("gpu", "cuda")
# (height, width, in, out) with the output's channels outermost, as cuDNN reads kernels.
_OUTPUT_FIRST = (3, 0, 1, 2)


def weight_formats(state: Any, sharding: Sharding) -> Any:
    """How a network's weights lie on devices: a tree of what jax.device_put takes.

    Elsewhere than on GPUs that is the sharding alone. There the kernels of convolutions lie as
    cuDNN wants them; otherwise every run would transpose all of them, and hold them twice.
    """
    kernels = Format(Layout(_OUTPUT_FIRST), sharding)
    return jax.tree.map(lambda leaf: kernels if _laid_out(leaf, sharding) else sharding, state)


def place_of(leaf: Any) -> Any:
    """Where an array, or a shape that is placed, lies; on GPUs with its layout."""
    return leaf.format if _laid_out(leaf, leaf.sharding) else leaf.sharding


def _laid_out(leaf: Any, sharding: Sharding) -> bool:
    """Whether it has a layout of its own: of what a network has, kernels of convolutions do."""
    return leaf.ndim == 4 and next(iter(sharding.device_set)).platform in _NAMES
