"""A model as a folder in Hugging Face's layout: config.json, model.safetensors and a model card."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dossr_jax import systems, weights
from dossr_jax.config import LatentConfig, UNetConfig, VAEConfig
from dossr_jax.systems import Model, System

_README = "README.md"
# What models on Stable Diffusion 2.1 were made of, by the sizes of their networks.
_BASE = "stabilityai/stable-diffusion-2-1-base"
_BASE_LICENCE = (
    "UNet, autoencoder and text tower have the sizes of Stable Diffusion 2.1-base. Weights that "
    "derive from it are under the CreativeML Open RAIL++-M License."
)
_LICENCE_NOTES = ("licence", "license")
_LICENCE_ID = re.compile(r"[a-z0-9.+-]+")


def write_folder(
    folder: Path, model: Model, header: Mapping[str, str], *, licence: str | None, name: str
) -> None:
    """Fill an empty folder.

    Args:
      header: entries of the model's file: what it tells of its making.
      licence: identifier of the weights' licence; by default what the header or the system says.
      name: of the model, as people read it.
    """
    if licence is not None:
        header = {**header, _LICENCE_NOTES[0]: licence}
    metadata = systems.metadata_for(model.config, header)
    config_file, weights_file = weights.HUB_FILES
    config = {"format": metadata["format"], **json.loads(metadata["config"])}
    (folder / config_file).write_text(json.dumps(config, indent=2) + "\n")
    (folder / _README).write_text(make_card(model, header, name=name))
    weights.write_safetensors(folder / weights_file, model.tensors, metadata)


def make_card(model: Model, header: Mapping[str, str], *, name: str) -> str:
    """The text of a model card; arguments as of :func:`write_folder`."""
    system = systems.system_of(model.config)
    identifier, said = _licence(system, header)
    base = isinstance(model.config, LatentConfig) and _is_base(model.config)
    factor = system.geometry(model.config).factor
    what = ["super-resolution"] if factor > 1 else []
    tags = [*what, "image-restoration", "jax", "flax", system.name]
    front = {
        "license": identifier,
        "library_name": "dossr_jax",
        "pipeline_tag": "image-to-image",
        "tags": tags + ["diffusion"] * system.samples,
        **({"base_model": _BASE} if base else {}),
    }
    if base:
        said = f"{said} {_BASE_LICENCE}"
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}",
        f"A model of {system.title} that {'enlarges and ' * (factor > 1)}restores photos with "
        "dossr_jax (JAX). "
        f"{_networks(model)}",
        _usage(name, factor),
        f"## Licence\n\n{said}",
    ]
    if told := _provenance(model, header):
        sections.append("## Where it comes from\n\n" + told)
    if system.samples:
        fields = json.loads(systems.metadata_for(model.config)["config"])["sampler"]
        rows = "\n".join(f"| `{field}` | {json.dumps(value)} |" for field, value in fields.items())
        sections.append(f"## Its sampler\n\n| field | value |\n|---|---|\n{rows}")
    return "\n\n".join(sections) + "\n"


def _is_base(config: LatentConfig) -> bool:
    sizes = (config.unet, config.vae) == (UNetConfig(), VAEConfig())
    return sizes and config.process.prediction == "eps"


def _licence(system: System, header: Mapping[str, str]) -> tuple[str, str]:
    """An identifier for the card's metadata, and what its text says."""
    if noted := next((header[name] for name in _LICENCE_NOTES if name in header), None):
        if _LICENCE_ID.fullmatch(noted):
            return noted, f"The weights are under `{noted}`."
        return "other", noted
    if system.licence is not None:
        return "other", system.licence
    return "unknown", "The file does not tell the licence of its weights."


def _networks(model: Model) -> str:
    others = (systems.BUFFER_PREFIX, "context", "negative_context")
    learned = {name: t for name, t in model.tensors.items() if not name.startswith(others)}
    sizes: Counter[str] = Counter()
    for name, tensor in learned.items():
        sizes[name.split(".")[0]] += math.prod(tensor.shape)
    kinds = Counter(str(tensor.dtype) for tensor in learned.values())
    total = f"{sum(sizes.values()) / 1e6:.1f} M parameters in {' and '.join(kinds)}"
    if systems.system_of(model.config).single:
        return f"{total}."
    return f"{total}: {', '.join(f'{part} {size / 1e6:.1f} M' for part, size in sizes.items())}."


def _usage(name: str, factor: int) -> str:
    return f"""\
## How to use it

Nothing is downloaded at run time: give the folder that holds this file.

```sh
dossr-restore photo.jpg --output restored --model {name}
```

```python
import dossr_jax

upscaler = dossr_jax.Upscaler.from_pretrained("{name}")
restored = upscaler.restore("photo.jpg", scale={factor})
```"""


def _provenance(model: Model, header: Mapping[str, str]) -> str:
    """What the header tells, and what the conversion noted."""
    lines = [f"- {note}" for note in model.notes]
    for entry, text in header.items():
        if entry not in _LICENCE_NOTES:
            lines += [f"- {entry}: {line}" for line in _told(text)]
    return "\n".join(lines)


def _told(text: str) -> list[str]:
    """A header entry in lines; of lists of records, which runs of training leave, one for each."""
    try:
        records: Any = json.loads(text)
    except ValueError:
        return [" ".join(text.split())]
    if not (isinstance(records, list) and all(isinstance(r, dict) for r in records)):
        return [" ".join(text.split())]
    plain = ({k: v for k, v in r.items() if not isinstance(v, dict | list)} for r in records)
    return [", ".join(f"{name} {value}" for name, value in r.items()) for r in plain]
