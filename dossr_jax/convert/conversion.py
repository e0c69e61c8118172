"""One conversion, from reading any kind of checkpoint to writing any kind of file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from dossr_jax import weights
from dossr_jax.convert import diffusers, release
from dossr_jax.convert.context import with_context, without_text
from dossr_jax.convert.infer import config_from_release_yaml
from dossr_jax.convert.readers import read_checkpoint
from dossr_jax.convert.release import Model
from dossr_jax.convert.rrdb import read_rrdb
from dossr_jax.convert.state import Lazy, from_safetensors, lazy
from dossr_jax.errors import UserError

DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
}
_ORBAX_FILE = "dossr_jax.json"
_GOLDEN_FILES = ("weights.safetensors", "config.yaml")


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
    overwrite: bool = False,
) -> None:
    """Convert one checkpoint; arguments are those of the command line.

    Raises:
      UserError: anything wrong with the input or the place of the output; nothing is written.
    """
    source, target = Path(input), Path(output)
    _check_target(target, to, overwrite)
    model, own = _read(source, rrdb=rrdb, config=config, head_dim=head_dim)
    if keep_text and model.config.text is None:
        raise UserError(f"{source}: has no text tower that --keep-text could keep")
    if context is None and (source / "golden.npz").is_file():
        context = source / "golden.npz"
    if to in ("dossr", "orbax"):
        model = with_context(model, None if context is None else Path(context))
        if not (keep_text or own):
            model = without_text(model)
    if dtype != "keep":
        model = dataclasses.replace(
            model,
            tensors={
                name: t if name.startswith(weights.BUFFER_PREFIX) else t.astype(DTYPES[dtype])
                for name, t in model.tensors.items()
            },
        )
    _describe(source, model)
    _WRITERS[to](target, model)
    print(f"wrote {target} ({_size(target) / 1e6:.1f} MB)")


def _read(
    path: Path, *, rrdb: str | None, config: str | Path | None, head_dim: int | None
) -> tuple[Model, bool]:
    """(model, whether the file is one of ours)."""
    own = _read_own(path)
    if own is not None:
        if config is not None or head_dim is not None:
            raise UserError(f"{path}: carries its configuration; leave out --config and --head-dim")
        return (own if rrdb is None else release.with_rrdb(own, read_rrdb(rrdb))), True
    pair = None if rrdb is None else read_rrdb(rrdb)
    if path.is_dir():
        if diffusers.is_diffusers(path):
            if config is not None or head_dim is not None:
                raise UserError(
                    f"{path}: its config.json files say it all; leave out --config and --head-dim"
                )
            return diffusers.read_diffusers(path, _need_rrdb(path, pair)), False
        if not all((path / name).is_file() for name in _GOLDEN_FILES):
            raise UserError(
                f"{path}: neither a diffusers folder (unet/, vae/), nor one with "
                f"{' and '.join(_GOLDEN_FILES)}, nor an Orbax checkpoint of ours"
            )
        weights_file, yaml_file = (path / name for name in _GOLDEN_FILES)
        path, config = weights_file, config or yaml_file
    state = read_checkpoint(path)
    settings = None if config is None else config_from_release_yaml(config)
    if settings is not None and head_dim is not None:
        settings = dataclasses.replace(
            settings, unet=dataclasses.replace(settings.unet, head_dim=head_dim)
        )
    if release.is_release(state):
        return release.read_release(state, config=settings, head_dim=head_dim, rrdb=pair), False
    if release.is_ldm(state):
        pair = _need_rrdb(path, pair)
        return release.read_sd(state, pair, config=settings, head_dim=head_dim), False
    if any("conv_first." in name or ".RDB1." in name for name in state.tensors):
        raise UserError(
            f"{path}: an RRDBNet alone; join it to SD 2.1 with --rrdb, or restore with "
            "it as it is: --preprocessor"
        )
    raise UserError(
        f"{path}: neither a DoSSR nor an SD 2.x checkpoint (its first key is "
        f"{next(iter(state.tensors), 'missing')}); check the path"
    )


def _need_rrdb(path: Path, rrdb: release.RRDB | None) -> release.RRDB:
    if rrdb is None:
        raise UserError(
            f"{path}: an SD model without a pre-restorer; add one with --rrdb FILE or "
            "--rrdb realesrgan"
        )
    return rrdb


def _read_own(path: Path) -> Model | None:
    if (path / _ORBAX_FILE).is_file():
        config, arrays = weights.read_orbax(path)
        return Model(config, {name: lazy(array) for name, array in arrays.items()})
    if path.suffix.lower() == ".safetensors" and not path.is_dir():
        file = weights.SafetensorsFile(path)
        if file.metadata.get("format") == weights.FORMAT:
            config = weights.read_config(path, file.metadata)
            return Model(config, from_safetensors(file).tensors)
    return None


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
    ours = (path / _ORBAX_FILE).is_file() or (path / "unet" / "config.json").is_file()
    if path.is_dir() and any(path.iterdir()) and not ours:
        raise UserError(
            f"{path}: a folder with something else in it, which is not replaced; "
            "choose another name"
        )


def _describe(source: Path, model: Model) -> None:
    sizes: Counter[str] = Counter()
    for name, tensor in model.tensors.items():
        sizes[name.split(".")[0]] += int(np.prod(tensor.shape, dtype=np.int64))
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
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


class _OnAccess(Mapping[str, np.ndarray]):
    """Names with arrays that are read when they are looked up."""

    def __init__(self, names: Iterable[str], read: Callable[[str], np.ndarray]):
        self._names, self._read = list(names), read

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextlib.contextmanager
def _reader(tensors: Mapping[str, Lazy]) -> Iterator[Callable[[str], np.ndarray]]:
    """Function that reads a tensor and moves a progress bar by its size."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing") as bar:

        def read(name: str) -> np.ndarray:
            array = tensors[name].load()
            bar.update(tensors[name].nbytes)
            return array

        yield read


def _write_dossr(path: Path, model: Model) -> None:
    _check_space(path, model.tensors.values())
    with _reader(model.tensors) as read:
        weights.write_safetensors(path, model.tensors, read, weights.metadata_for(model.config))


def _write_release(path: Path, model: Model) -> None:
    tensors = release.export_release(model)
    _check_space(path, tensors.values())
    text = model.config.text
    if text is None or text.skip_layers == 0:
        print(
            f"  {'no' if text is None else 'a shortened'} text tower in it: the release loads this "
            f"strictly only once the missing {release.TEXT_PREFIX}* keys are added"
        )
    with _reader(tensors) as read:
        weights.write_safetensors(path, tensors, read, {"format": "pt"})


def _write_orbax(path: Path, model: Model) -> None:
    _check_space(path, model.tensors.values())
    with _replacing(path) as work, _reader(model.tensors) as read:
        weights.save_orbax(work / path.name, model.config, _OnAccess(model.tensors, read))


def _write_diffusers(path: Path, model: Model) -> None:
    parts = diffusers.export_diffusers(model)
    _check_space(path, (t for _, tensors in parts.values() for t in tensors.values()))
    print(
        "  a diffusers folder has no place for DoSSR's ControlNet, hint encoder and "
        "pre-restorer: they are left out"
    )
    with _replacing(path) as work:
        folder = work / path.name
        folder.mkdir()
        for name, (config, tensors) in parts.items():
            with _reader(tensors) as read:
                diffusers.write_part(folder / name, config, tensors, read)


_WRITERS: dict[str, Callable[[Path, Model], None]] = {
    "dossr": _write_dossr,
    "orbax": _write_orbax,
    "release": _write_release,
    "diffusers": _write_diffusers,
}


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A working folder beside `path`; what is made in it under path's name takes its place."""
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another place"
        ) from error
    try:
        yield work
        if path.exists():
            os.replace(path, work / "old")
        os.replace(work / path.name, path)
    except UserError as error:  # about a file that nobody will find
        raise UserError(str(error).replace(str(work / path.name), str(path))) from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another place"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
