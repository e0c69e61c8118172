"""One conversion: reading any kind of checkpoint, writing any kind of file."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dossr_jax import weights
from dossr_jax.convert import diffusers, release
from dossr_jax.convert.context import with_context, without_text
from dossr_jax.convert.infer import config_from_release_yaml
from dossr_jax.convert.readers import read_checkpoint
from dossr_jax.convert.release import Model
from dossr_jax.convert.rrdb import read_rrdb
from dossr_jax.convert.tables import CONTROL_PREFIX, TEXT_PREFIX, UNET_PREFIX
from dossr_jax.errors import UserError
from dossr_jax.weights import CROSSCHECK_FILES, Kind, Lazy

DTYPES = ("float16", "bfloat16", "float32")


def convert(
    input: str | Path,
    output: str | Path,
    *,
    to: str = "dossr",
    rrdb: str | None = None,
    config: str | Path | None = None,
    head_dim: int | None = None,
    keep_text: bool = False,
    context: str | Path | None = None,
    dtype: str = "keep",
    ema: bool = False,
    overwrite: bool = False,
) -> None:
    """Convert one checkpoint; arguments are those of the command line.

    Raises:
      UserError: anything wrong with the input or the place of the output; nothing is written.
    """
    source, target = Path(input), Path(output)
    _check_target(target, to, overwrite)
    own = weights.is_model(source)
    model = _read(source, own=own, rrdb=rrdb, config=config, head_dim=head_dim, ema=ema)
    if keep_text and model.config.text is None:
        raise UserError(f"{source}: has no text tower that --keep-text could keep")
    if context is None and (source / "golden.npz").is_file():
        context = source / "golden.npz"
    if to in ("dossr", "orbax"):
        model = with_context(model, context)
        if not (keep_text or own):
            model = without_text(model)
    if dtype != "keep":
        model = dataclasses.replace(
            model,
            tensors={
                name: t if name.startswith(weights.BUFFER_PREFIX) else _cast(source, name, t, dtype)
                for name, t in model.tensors.items()
            },
        )
    _describe(source, model)
    if to == "diffusers":
        _write_diffusers(target, model)
    else:
        _write(target, to, model)
    print(f"wrote {target} ({_size(target) / 1e6:.1f} MB)")


def _read(
    path: Path,
    *,
    own: bool,
    rrdb: str | None,
    config: str | Path | None,
    head_dim: int | None,
    ema: bool,
) -> Model:
    """Read a model from any kind of file or folder; `own` where it is one of our model files."""
    configured = config is not None or head_dim is not None
    if own and configured:
        raise UserError(f"{path}: carries its configuration; leave out --config and --head-dim")
    kind = weights.kind_of(path)
    if ema and (own or kind is Kind.DIFFUSERS):
        raise UserError(f"{path}: has one set of weights; leave out --ema")
    pair = None if rrdb is None else read_rrdb(rrdb)
    if own:
        model = Model(*weights.open_model(path))
        return model if pair is None else release.with_rrdb(model, pair)
    if kind is Kind.DIFFUSERS:
        if configured:
            raise UserError(
                f"{path}: has its configuration in config.json files; leave out --config and "
                "--head-dim"
            )
        return diffusers.read_diffusers(path, _need_rrdb(path, pair))
    if kind is Kind.CROSSCHECK:
        weights_file, yaml_file = (path / name for name in CROSSCHECK_FILES)
        path, config = weights_file, config or yaml_file
    state = read_checkpoint(path)
    options: dict[str, Any] = {
        "config": None if config is None else config_from_release_yaml(config),
        "head_dim": head_dim,
        "ema": ema,
    }
    if state.has(CONTROL_PREFIX):
        return release.read_release(state, rrdb=pair, **options)
    if state.has(UNET_PREFIX):
        return release.read_sd(state, _need_rrdb(path, pair), **options)
    if any("conv_first." in name or ".RDB1." in name for name in state.tensors):
        raise UserError(
            f"{path}: an RRDBNet alone; join it to SD 2.1 with --rrdb, or restore with "
            "it as it is: --preprocessor"
        )
    raise UserError(
        f"{path}: neither a DoSSR nor an SD 2.x checkpoint (its first key is "
        f"{next(iter(state.tensors), 'missing')}); check the path"
    )


def _cast(source: Path, name: str, tensor: Lazy, dtype: str) -> Lazy:
    cast = tensor.astype(dtype)

    def load() -> np.ndarray:
        with np.errstate(over="ignore"):  # the error says it
            array = cast.load()
        if not weights.is_finite(array):
            raise UserError(
                f"{source}: {name} has values out of the range of {dtype}; choose bfloat16 or "
                "float32"
            )
        return array

    return dataclasses.replace(cast, load=load)


def _need_rrdb(path: Path, rrdb: release.RRDB | None) -> release.RRDB:
    if rrdb is None:
        raise UserError(
            f"{path}: an SD model without a pre-restorer; add one with --rrdb FILE or "
            "--rrdb realesrgan"
        )
    return rrdb


def _check_target(path: Path, to: str, overwrite: bool) -> None:
    if to in ("dossr", "release") and path.suffix != ".safetensors":
        raise UserError(f"{path}: --to {to} writes one file; call it {path.name}.safetensors")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; make it first")
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path}: exists already; choose another name or add --overwrite")
    if path.is_dir() != (to in ("orbax", "diffusers")):
        raise UserError(
            f"{path}: is {'a folder' if path.is_dir() else 'a file'}, which --to {to} "
            "does not replace; choose another name"
        )
    if (
        path.is_dir()
        and any(path.iterdir())
        and not (weights.is_own_folder(path) or (path / "unet" / "config.json").is_file())
    ):
        raise UserError(
            f"{path}: a folder with something else in it, which is not replaced; "
            "choose another name"
        )


def _describe(source: Path, model: Model) -> None:
    sizes: Counter[str] = Counter()
    for name, tensor in model.tensors.items():
        sizes[name.split(".")[0]] += math.prod(tensor.shape)
    kinds = Counter(str(tensor.dtype) for tensor in model.tensors.values())
    print(
        f"{source}: {sum(sizes.values()) / 1e6:.1f} M numbers in {len(model.tensors)} tensors "
        f"({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})"
    )
    print("  " + ", ".join(f"{part} {size / 1e6:.1f} M" for part, size in sizes.items()))
    for note in model.notes:
        print(f"  {note}")


def _check_space(path: Path, tensors: Iterable[Lazy]) -> None:
    # A disk that fills up halfway makes Orbax's threads print their own tracebacks.
    needed = sum(tensor.nbytes for tensor in tensors)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"{path}: needs {needed / 1e6:.0f} MB where {free / 1e6:.0f} MB are free; free space "
            "or choose another place"
        )


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


@contextlib.contextmanager
def _progress(tensors: Mapping[str, Lazy]) -> Iterator[dict[str, Lazy]]:
    """Show a progress bar; each tensor moves it by its size when it is read."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing") as bar:

        def counted(tensor: Lazy) -> Lazy:
            def load() -> np.ndarray:
                array = tensor.load()
                bar.update(tensor.nbytes)
                return array

            return dataclasses.replace(tensor, load=load)

        yield {name: counted(tensor) for name, tensor in tensors.items()}


def _write(path: Path, to: str, model: Model) -> None:
    """Write a model in one of the forms but diffusers'."""
    write = weights.write_orbax if to == "orbax" else weights.write_safetensors
    tensors, metadata = model.tensors, weights.metadata_for(model.config)
    if to == "release":
        tensors, metadata = release.export_release(model), {"format": "pt"}
        text = model.config.text
        if text is None or text.skip_layers == 0:
            print(
                f"  {'no' if text is None else 'a shortened'} text tower in it: the release loads "
                f"this strictly only once the missing {TEXT_PREFIX}* keys are added"
            )
    _check_space(path, tensors.values())
    with _progress(tensors) as counted:
        write(path, counted, metadata)


def _write_diffusers(path: Path, model: Model) -> None:
    parts = diffusers.export_diffusers(model)
    _check_space(path, (t for _, tensors in parts.values() for t in tensors.values()))
    print(
        "  a diffusers folder has no place for DoSSR's ControlNet, hint encoder and "
        "pre-restorer: they are left out"
    )
    with weights.new_folder(path) as folder:
        for name, (config, exported) in parts.items():
            with _progress(exported) as tensors:
                diffusers.write_part(folder / name, config, tensors)
