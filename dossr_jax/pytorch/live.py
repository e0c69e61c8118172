"""Modules of PyTorch that are in memory: their tensors, and modules made of ours."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dossr_jax import weights
from dossr_jax.errors import UserError, require_extra
from dossr_jax.pytorch.state import State
from dossr_jax.weights import Lazy

# What DataParallel and torch.compile put into names, in front of the module that they wrap.
_WRAPPING_MODULES = ("module", "_orig_mod")


def plain_name(name: str) -> str:
    """A tensor's name without the modules that wrap others."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPING_MODULES)


def unwrapped(module: Any) -> Any:
    """A module without DataParallel and torch.compile around it."""
    for name in _WRAPPING_MODULES:
        module = getattr(module, name, module)
    return module


def state_of(module: Any, source: str) -> State:
    """The tensors of a torch.nn.Module, each copied when it is read; a GPU's come to the host.

    Args:
      source: what it is, for messages.

    Raises:
      UserError: it has none, or some of a dtype or layout that has no counterpart.
    """
    if not hasattr(module, "state_dict"):
        raise UserError(f"{source}: a {type(module).__name__}; give a torch.nn.Module")
    import torch

    tensors = module.state_dict()
    return State(
        source, {name: from_torch(torch, source, name, t) for name, t in tensors.items()}
    ).rename(plain_name)


def from_torch(torch: Any, source: Any, name: str, tensor: Any) -> Lazy:
    """A tensor of PyTorch's, which is refused when it is read and not finite.

    Raises:
      UserError: of a dtype or layout that has no counterpart, or without data.
    """
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        raise UserError(f"{source}: {name} is on the meta device, without data; load its weights")
    if kind not in map(str, weights.DTYPES.values()) or tensor.layout != torch.strided:
        raise UserError(
            f"{source}: {name} is of {tensor.dtype} ({tensor.layout}); convert it to float32, "
            "float16 or bfloat16 first"
        )
    dtype = np.dtype(kind)

    def load() -> np.ndarray:
        data = tensor.detach().cpu().contiguous()
        if kind == "bfloat16":  # NumPy's is ml_dtypes', which PyTorch does not know
            data = data.view(torch.int16)
        return data.numpy().view(dtype).copy()

    return weights.finite(Lazy(tuple(tensor.shape), dtype, load), source, name)


def build_module(name: str, config: Mapping[str, Any], tensors: Mapping[str, Lazy]) -> Any:
    """A network of diffusers, or the text tower of transformers, in evaluation mode on the host.

    Args:
      name: of the class. config: its config.json. tensors: its tensors, all of them.

    Raises:
      UserError: PyTorch, diffusers or transformers is not installed.
    """
    text = name == "CLIPTextModel"
    library = "transformers" if text else "diffusers"
    require_extra("diffusers", "torch", library, wanted_by=name)
    import torch

    classes: Any = importlib.import_module(library)
    if text:  # it has a buffer that no file holds
        module = classes.CLIPTextModel(classes.CLIPTextConfig(**config))
    else:
        with torch.device("meta"):
            module = getattr(classes, name).from_config(dict(config))
    # transformers before 5 has one more module around the tower.
    prefix = "text_model." if any(n.startswith("text_model.") for n in module.state_dict()) else ""
    given = {prefix + n: _as_torch(torch, tensor) for n, tensor in tensors.items()}
    module.load_state_dict(given, strict=True, assign=True)
    return module.eval()


def _as_torch(torch: Any, tensor: Lazy) -> Any:
    array = np.array(tensor.load(), order="C")  # writable, and PyTorch's alone
    if str(array.dtype) == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
