"""Data sets of the TensorFlow Datasets catalogue, read without TensorFlow: `tfds:NAME[/SPLIT]`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dossr_jax.data.sources import IMAGES, Record, Split, held_out, read_record
from dossr_jax.errors import UserError, require_extra

PREFIX = "tfds:"


def open_catalog(name: str, *, split: Split, hold_out: int) -> Catalog:
    """The images of `name`, "tfds:NAME[/SPLIT]", that belong to `split`.

    NAME is as tfds.builder takes it, with configuration and version; SPLIT may be sliced, as in
    train[:90%]. Without SPLIT a data set's own splits for training and validation count; where
    there is none for validation, or a SPLIT is given, one image in `hold_out` is for validation.

    Raises:
      UserError: no such data set or split, it was not prepared for random access, or it has no
        images.
    """
    require_extra("tfds", "tensorflow_datasets", wanted_by=name)
    import tensorflow_datasets as tfds

    from dossr_jax.data import tfds_builder  # noqa: F401 - it registers itself

    builder, base, asked = _find(tfds, name)
    splits = list(builder.info.splits)
    if not splits:
        raise UserError(
            f"{name}: not prepared in {builder.data_path}; run tfds build {base} "
            "--file_format=array_record, or set TFDS_DATA_DIR"
        )
    own = asked is None and "validation" in splits
    taken = split if own else asked or "train"
    features = builder.info.features
    keys = [key for key in IMAGES if key in features]
    if not keys or keys[0] not in ("hr", "image"):
        raise UserError(f"{name}: has no feature 'hr' or 'image', but {', '.join(features)}")
    # Images stay as they are stored: decoded here, they are those that other sources give.
    raw = dict.fromkeys(keys, tfds.decode.SkipDecoding())
    try:
        items = tfds.data_source(
            base, split=taken, data_dir=_data_dir(), decoders=raw, download=False
        )
    except (ValueError, NotImplementedError, OSError, RuntimeError) as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}") from error
    path = Path(f"{PREFIX}{base}/{taken}")
    numbers = range(len(items))
    if not own:
        chosen = held_out([f"{taken}[{i}]" for i in numbers], hold_out)
        numbers = [i for i in numbers if (f"{taken}[{i}]" in chosen) == (split == "validation")]
    if not numbers:
        raise UserError(f"{path}: has no images for {split} at hold_out {hold_out}; change it")
    stored = {n: [s.num_examples, s.num_bytes] for n, s in builder.info.splits.items()}
    return Catalog(path, items, numbers, [builder.info.full_name, taken, stored, keys])


class Catalog:
    """The images `numbers` of a data source of TFDS, whose images are still encoded.

    `about` determines the content, JSON-able.
    """

    def __init__(self, path: Path, items: Any, numbers: Sequence[int], about: Any):
        self.path = path
        self._items, self._numbers = items, numbers
        text = json.dumps([about, len(numbers)], sort_keys=True, default=str)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        number = self._numbers[index]
        return read_record(
            lambda: self._items[number], str(self.path), f"{self.path.name}[{number}]"
        )


def _data_dir() -> str | None:
    return os.environ.get("TFDS_DATA_DIR")  # which TFDS itself reads only when imported


def _find(tfds: Any, name: str) -> tuple[Any, str, str | None]:
    """Builder, its name, and the split that is behind it, if any."""
    from google.protobuf.json_format import ParseError

    whole = name.removeprefix(PREFIX)
    base, _, last = whole.rpartition("/")
    reason = "no name"
    for candidate, split in ((whole, None), (base, last)):
        try:
            if candidate:
                builder = tfds.builder(candidate, data_dir=_data_dir())
                if builder.info.features:  # read now, so that damage shows here
                    return builder, candidate, split
        except (ValueError, OSError, ParseError) as error:
            reason = str(error).splitlines()[0]
    raise UserError(
        f"{name}: {reason}; give tfds:NAME or tfds:NAME/SPLIT of a data set in TFDS_DATA_DIR"
    )
