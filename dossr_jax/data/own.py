"""Images of a source that comes from elsewhere: a list, a Grain source, a grain.MapDataset."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dossr_jax.data.sources import Record, Source, checked
from dossr_jax.errors import UserError


class RandomAccess(Protocol):
    """Anything with a length and items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def as_source(source: Source | RandomAccess) -> Source:
    """The source itself, or a :class:`Source` of its items.

    An item is an HR image (h, w, 3) uint8, or a mapping with `hr` and optionally `lr`, `pre` and
    `name` as in :class:`Record`.

    Raises:
      UserError: there is nothing in it.
    """
    if hasattr(source, "fingerprint") and hasattr(source, "path"):
        return source  # pyright: ignore[reportReturnType]
    if not len(source):
        raise UserError(f"{type(source).__name__}: holds no images; give a source with some")
    return _Own(source)


class _Own:
    """The items of `source` as records; picklable where that is."""

    def __init__(self, source: RandomAccess):
        self._source = source
        self.path = Path(type(source).__name__)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        item = self._source[index]
        values = item if isinstance(item, Mapping) else {"hr": item}
        images: dict[str, Any] = {key: values.get(key) for key in ("hr", "lr", "pre")}
        name = values.get("name", f"{self.path}[{index}]")
        name = name.decode() if isinstance(name, bytes) else str(name)
        for key, image in images.items():
            if image is None and key != "hr":
                continue
            if not (isinstance(image, np.ndarray) and image.dtype == np.uint8):
                kind = getattr(image, "dtype", type(image).__name__)
                raise UserError(f"{name}: {key} is {kind}; give an array (h, w, 3) of uint8")
            if image.ndim != 3 or image.shape[-1] != 3:
                raise UserError(f"{name}: {key} has shape {image.shape}; give (h, w, 3)")
        return checked(Record(name, **images), Path(name))

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        """A hash of the number of items and of the first, middle and last one."""
        digest = hashlib.sha256(json.dumps(len(self)).encode())
        for index in sorted({0, len(self) // 2, len(self) - 1}):
            try:
                record = self[index]
            except UserError as error:
                digest.update(str(error).encode())
                continue
            for image in (record.hr, record.lr, record.pre):
                digest.update(b"" if image is None else image.tobytes())
        return digest.hexdigest()[:16]
