"""Our model files: tensors by name, with the configuration inside.

One `.safetensors` file (the config in its metadata) or one Orbax checkpoint folder. Names are
the module paths joined by dots; `buffers.*` are the tensors of a PyTorch checkpoint that are not
learned, under their own names, so that converting back loses nothing. Files are read as data,
never as code, and every write goes to a temporary name first.
"""

from dossr_jax.weights.files import (
    BUFFER_PREFIX,
    is_model,
    load_model,
    metadata_for,
    open_model,
    save_model,
)
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
    lazy,
    read_safetensors,
    write_safetensors,
)

__all__ = [
    "BUFFER_PREFIX",
    "DTYPES",
    "Lazy",
    "abstract_model",
    "check_names",
    "fill",
    "is_model",
    "lazy",
    "load_model",
    "make_abstract",
    "metadata_for",
    "names_and_params",
    "new_folder",
    "open_model",
    "read_safetensors",
    "save_model",
    "write_orbax",
    "write_safetensors",
]
