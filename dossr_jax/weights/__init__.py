"""Our model files: tensors by name, with the configuration inside.

One `.safetensors` file (the config in its metadata) or one Orbax checkpoint folder. Names are
the module paths joined by dots; `buffers.*` are the tensors of a PyTorch checkpoint that are not
learned, under their own names, so that converting back loses nothing. `kinds` decides what a file
is. Files are read as data, never as code; a tensor with NaN or infinity is refused when it is read,
and every write goes to a temporary name first.
"""

from dossr_jax.weights.files import (
    BUFFER_PREFIX,
    is_model,
    load_model,
    metadata_for,
    open_model,
    save_model,
)
from dossr_jax.weights.kinds import CROSSCHECK_FILES, Kind, check_content, is_own_folder, kind_of
from dossr_jax.weights.orbax import new_folder, write_orbax
from dossr_jax.weights.params import (
    abstract_model,
    check_names,
    fill,
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

__all__ = [
    "BUFFER_PREFIX",
    "CROSSCHECK_FILES",
    "DTYPES",
    "Kind",
    "Lazy",
    "abstract_model",
    "check_content",
    "check_names",
    "fill",
    "finite",
    "is_finite",
    "is_model",
    "is_own_folder",
    "kind_of",
    "lazy",
    "load_model",
    "make_abstract",
    "metadata_for",
    "names_and_params",
    "new_folder",
    "open_model",
    "read_safetensors",
    "read_shards",
    "read_tensors",
    "save_model",
    "write_orbax",
    "write_safetensors",
]
