"""One conversion: reading any kind of checkpoint, writing any kind of file."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dossr_jax import systems, weights
from dossr_jax.convert.card import write_folder
from dossr_jax.convert.reading import Options, read, with_prompts
from dossr_jax.errors import UserError
from dossr_jax.pytorch.tables import TEXT_PREFIX
from dossr_jax.systems import Model
from dossr_jax.systems.dossr import diffusers
from dossr_jax.weights import Lazy

DTYPES = ("float16", "bfloat16", "float32")


def convert(
    inputs: str | Path | Sequence[str | Path],
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
    variant: str | None = None,
    card: bool = False,
    licence: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert one checkpoint, of one file or several; arguments are those of the command line.

    Raises:
      UserError: anything wrong with the input or the place of the output; nothing is written.
    """
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    sources, target = [Path(path) for path in given], Path(output)
    source = sources[0]
    if card and to != "dossr" or licence is not None and not card:
        raise UserError(f"{target}: --card is for --to dossr, and --licence for --card")
    _check_target(target, "card" if card else to, overwrite)
    own = len(sources) == 1 and systems.is_model(source)
    options = Options(rrdb=rrdb, config=config, head_dim=head_dim, ema=ema, variant=variant)
    model = read(sources, options)
    header = systems.read_header(source) if own else {}
    if keep_text and getattr(model.config, "text", None) is None:
        raise UserError(f"{source}: has no text tower that --keep-text could keep")
    if context is None and (source / "golden.npz").is_file():
        context = source / "golden.npz"
    if to in ("dossr", "orbax"):
        model = with_prompts(model, context, keep_text=keep_text or own)
    if dtype != "keep":
        model = dataclasses.replace(
            model,
            tensors={
                name: t if name.startswith(systems.BUFFER_PREFIX) else _cast(source, name, t, dtype)
                for name, t in model.tensors.items()
            },
        )
    _describe(source, model)
    if card:
        _write_card(target, model, header, licence)
    elif to == "diffusers":
        _write_diffusers(target, model)
    else:
        _write(target, to, model, header)
    print(f"wrote {target} ({_size(target) / 1e6:.1f} MB)")


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


def _check_target(path: Path, to: str, overwrite: bool) -> None:
    if to in ("dossr", "release") and path.suffix != ".safetensors":
        raise UserError(f"{path}: --to {to} writes one file; call it {path.name}.safetensors")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; make it first")
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path}: exists already; choose another name or add --overwrite")
    if path.is_dir() != (to in ("orbax", "diffusers", "card")):
        flag = "--card" if to == "card" else f"--to {to}"
        raise UserError(
            f"{path}: is {'a folder' if path.is_dir() else 'a file'}, which {flag} "
            "does not replace; choose another name"
        )
    written = (
        weights.is_own_folder(path)
        or weights.is_hub_folder(path)
        or (path / "unet" / "config.json").is_file()
    )
    if path.is_dir() and any(path.iterdir()) and not written:
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


def _write_card(path: Path, model: Model, header: Mapping[str, str], licence: str | None) -> None:
    _check_space(path, model.tensors.values())
    with weights.new_folder(path) as folder, _progress(model.tensors) as counted:
        counted = dataclasses.replace(model, tensors=counted)
        write_folder(folder, counted, header, licence=licence, name=path.name)


def _write(path: Path, to: str, model: Model, header: Mapping[str, str]) -> None:
    """Write a model as one file of either kind, or as an Orbax folder."""
    write = weights.write_orbax if to == "orbax" else weights.write_safetensors
    tensors, metadata = model.tensors, systems.metadata_for(model.config, header)
    if to == "release":
        system = systems.system_of(model.config)
        tensors, metadata = system.to_pytorch(model), {"format": "pt"}
        text = getattr(model.config, "text", None)
        if model.config.system == "dossr" and (text is None or text.skip_layers == 0):
            print(
                f"  {'no' if text is None else 'a shortened'} text tower in it: the release loads "
                f"this strictly only once the missing {TEXT_PREFIX}* keys are added"
            )
    _check_space(path, tensors.values())
    with _progress(tensors) as counted:
        write(path, counted, metadata)


def _write_diffusers(path: Path, model: Model) -> None:
    if model.config.system != "dossr":
        raise UserError(f"{path}: --to diffusers is for DoSSR, this is {model.config.system}")
    parts = diffusers.export_model(model)
    _check_space(path, (t for part in parts.values() for t in part.tensors.values()))
    print(f"  left out, for diffusers has no place for it: {diffusers.left_out(model.config)}")
    with weights.new_folder(path) as folder:
        for name, part in parts.items():
            with _progress(part.tensors) as tensors:
                diffusers.write_part(folder / name, part._replace(tensors=tensors))
        diffusers.write_scheduler(folder / "scheduler", model.config.process, model.config.sampler)
