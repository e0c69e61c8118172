"""Tensors by name, in files of every form that they come in.

`kinds` decides what a file is. Files are read as data, never as code; a tensor with NaN or infinity
is refused when it is read, and every write goes to a temporary name first.
"""

from typing import TYPE_CHECKING, Any

from dossr_jax.weights.folders import new_folder
from dossr_jax.weights.kinds import (
    CROSSCHECK_FILES,
    HUB_FILES,
    Kind,
    check_content,
    checkpoints_in,
    is_hub_folder,
    is_own_folder,
    kind_of,
)
from dossr_jax.weights.params import (
    check_names,
    fill,
    filler,
    keep_dtypes,
    make_abstract,
    names_and_params,
)
from dossr_jax.weights.safetensors import (
    DTYPES,
    Lazy,
    finite,
    is_finite,
    lazy,
    read_safetensors,
    write_safetensors,
)
from dossr_jax.weights.shards import read_shards, read_tensors

if TYPE_CHECKING:
    from dossr_jax.weights.orbax import write_orbax

__all__ = [
    "CROSSCHECK_FILES",
    "DTYPES",
    "HUB_FILES",
    "Kind",
    "Lazy",
    "check_content",
    "check_names",
    "checkpoints_in",
    "fill",
    "filler",
    "finite",
    "is_finite",
    "is_hub_folder",
    "is_own_folder",
    "keep_dtypes",
    "kind_of",
    "lazy",
    "make_abstract",
    "names_and_params",
    "new_folder",
    "read_safetensors",
    "read_shards",
    "read_tensors",
    "write_orbax",
    "write_safetensors",
]


def __getattr__(name: str) -> Any:
    # On demand: Orbax takes longer to import than a small model to load.
    if name != "write_orbax":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dossr_jax.weights.orbax import write_orbax

    return write_orbax
