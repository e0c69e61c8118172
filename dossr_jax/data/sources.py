"""Where training images come from: a folder, paired LR/HR folders, or a prepared data set.

Every source gives random access to decoded images, can be pickled, and knows which of its images
belong to training and which to validation. See docs/data.md.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

from dossr_jax import image_io
from dossr_jax.data import examples
from dossr_jax.errors import UserError

if TYPE_CHECKING:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

# HR side by LR side of pairs that were prepared, and of those that are read.
SCALE = 4
SCALES = (SCALE, 1)
SPLITS = ("train", "validation")
INFO_FILE, FEATURES_FILE = "dataset_info.json", "features.json"
IMAGES = ("hr", "image", "lr", "pre")  # features; `image` where there is no `hr`
UNFINISHED = "unfinished"  # folder inside a data set that is still being prepared

Split = Literal["train", "validation"]
Side = Literal["hr", "lr"]

_log = logging.getLogger(__name__)
# Folders and ends of names that say which side of a pair a file is.
_MARKS: dict[Side, re.Pattern[str]] = {
    "lr": re.compile(r"lr(_?x?4)?", re.IGNORECASE),
    "hr": re.compile(r"hr|gt", re.IGNORECASE),
}
_LISTED = 5  # file names in a message


class Record(NamedTuple):
    """One image: `hr` (h, w, 3) uint8 and, in paired data, `lr` (h/4, w/4, 3) or as `hr`.

    `pre` (h, w, 3) uint8 is the pre-restored image, where it was made beforehand.
    """

    name: str
    hr: np.ndarray
    lr: np.ndarray | None
    pre: np.ndarray | None = None

    @property
    def scale(self) -> int:
        """HR side by LR side; 1 without LR."""
        return 1 if self.lr is None else max(1, len(self.hr) // len(self.lr))


class Source(Protocol):
    """Images by number.

    `fingerprint` is the same for the same data in any place; `path` is for messages. Reading an
    image that cannot be decoded raises UserError.
    """

    @property
    def path(self) -> Path: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def held_out(names: Sequence[str], hold_out: int) -> set[str]:
    """The photos that are for validation: the share 1 / `hold_out` that ranks first by a hash.

    The hash is of the file name alone, so the result does not depend on the order of `names`,
    which are paths, and every photo that is added moves at most one other. At `hold_out` 0 none
    is for validation, at 1 all are; above, at least one of several photos is, and one is not.
    """
    if hold_out < 2:
        return set(names) if hold_out else set()

    def rank(name: str) -> tuple[int, bytes, str]:
        digest = hashlib.sha256(PurePosixPath(name).name.encode()).digest()
        # Data sets of earlier versions hold out the remainder 0: those photos come first.
        return int.from_bytes(digest[:4], "big") % hold_out, digest, name

    count = min(max(1, round(len(names) / hold_out)), len(names) - 1)
    return set(sorted(names, key=rank)[:count])


def is_prepared(path: Path) -> bool:
    """Whether `path` is a prepared data set, and not a folder of images.

    Raises:
      UserError: it is a data set that is not finished.
    """
    # os.path: what may not be read is reported when its images are listed.
    if os.path.exists(path / INFO_FILE):
        return True
    if os.path.exists(path / UNFINISHED):
        raise UserError(f"{path}: not finished; run python -m dossr_jax.data.prepare on it again")
    return False


def open_source(path: Path, *, split: Split, hold_out: int) -> Source:
    """The images of `path` that belong to `split`.

    `path` may also be "tfds:NAME[/SPLIT]" (dossr_jax.data.catalog). A prepared data set has its own
    splits; elsewhere one image in `hold_out` is for validation
    (see :func:`held_out`).

    Raises:
      UserError: there is nothing there, or nothing of that split, or it is damaged.
    """
    if str(path).startswith("tfds:"):
        from dossr_jax.data.catalog import open_catalog  # which imports this module

        return open_catalog(str(path), split=split, hold_out=hold_out)
    if is_prepared(path):
        return Prepared(path, split)
    images = list_images(path)
    chosen = images.of_split(split, hold_out)
    if not chosen.entries:
        raise UserError(
            f"{path}: none of its {len(images)} images is for {split} at hold_out {hold_out}; "
            "change hold_out"
        )
    return chosen


class Images:
    """Image files below a folder, by sorted name, with LR partners where the folder holds pairs.

    `entries` are paths relative to `path`, of an HR image and of its partner or None.
    """

    def __init__(self, path: Path, entries: Sequence[tuple[str, str | None]]):
        self.path = path
        self.entries = list(entries)

    @property
    def paired(self) -> bool:
        return self.entries[0][1] is not None

    @property
    def names(self) -> list[str]:
        return [hr for hr, _ in self.entries]

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in filter(None, itertools.chain(*self.entries)):
            try:
                size = (self.path / name).stat().st_size
            except OSError as error:
                raise UserError(
                    f"{self.path / name}: {error.strerror}; check name and permissions"
                ) from error
            digest.update(f"{name}\0{size}\0".encode())
        return digest.hexdigest()[:16]

    def of_split(self, split: Split, hold_out: int) -> Images:
        """The images of a split, by :func:`held_out`.

        Raises:
          UserError: there is one image, which cannot be in both splits.
        """
        if len(self) < 2 <= hold_out:
            raise UserError(
                f"{self.path}: holds one image, but training and validation need one each; add "
                "images"
            )
        chosen = held_out(self.names, hold_out)
        validates = split == "validation"
        return Images(self.path, [e for e in self.entries if (e[0] in chosen) == validates])

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Record:
        name, partner = self.entries[index]
        hr = image_io.read_image(self.path / name)
        lr = None if partner is None else image_io.read_image(self.path / partner)
        return checked(Record(name, hr, lr), self.path / name)


def list_images(path: Path) -> Images:
    """Every image below a folder.

    Images are paired where some file's name says LR: subfolders HR and LR (LR4, LRx4, LR_x4), or
    names ending in _HR and _LR (_LR4, ...); partners agree in the rest of their paths up to the
    suffix. Files without one are left out with a warning.

    Raises:
      UserError: no folder, no images, or no pairs, or pairs of wrong sizes.
    """
    names = [image.relative_to(path).as_posix() for image in image_io.find_images(path)]
    sides: dict[str, dict[str, str]] = {"hr": {}, "lr": {}}
    strays = []
    for name in names:
        side, key = _side_of(name)
        if side is None or key in sides[side]:
            strays.append(name)
        else:
            sides[side][key] = name
    if not sides["lr"]:
        return Images(path, [(name, None) for name in names])
    matched = sides["hr"].keys() & sides["lr"].keys()
    strays += [name for side in sides.values() for key, name in side.items() if key not in matched]
    if strays:
        problem = f"{path}: {len(strays)} of {len(names)} images have no LR or HR partner"
        problem += f" ({listed(sorted(strays))})"
        remedy = "name partners as in HR/a.png and LR/a.png, or a_HR.png and a_LR4.png"
        if not matched:
            raise UserError(f"{problem}; {remedy}")
        _log.warning("%s and are left out; %s", problem, remedy)
    pairs = Images(path, sorted((sides["hr"][key], sides["lr"][key]) for key in matched))
    _check_pairs(pairs)
    return pairs


def _side_of(name: str) -> tuple[Side | None, str]:
    """Side of a pair that a file is by its path, and the part of the path that partners share."""
    path = PurePosixPath(name)
    stem, _, tail = path.stem.rpartition("_")
    words = [*path.parent.parts, tail if stem else ""]
    for side, pattern in _MARKS.items():
        marks = [i for i, word in enumerate(words) if pattern.fullmatch(word)]
        if marks:
            folders = [word for i, word in enumerate(words[:-1]) if i not in marks]
            return side, "/".join([*folders, stem if len(words) - 1 in marks else path.stem])
    return None, name


def _check_pairs(pairs: Images) -> None:
    def sizes_of(entry: tuple[str, str | None]) -> list[tuple[int, int]] | None:
        sizes = []
        for name in entry:
            try:
                with Image.open(pairs.path / str(name)) as image:  # reads the header alone
                    sizes.append(image.size)
            except Exception:  # Reading skips damaged files.
                return None
        return sizes

    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(sizes_of, pairs.entries))
    read = [(entry, both) for entry, both in zip(pairs.entries, sizes, strict=True) if both]
    unfit = {
        scale: [
            f"{entry[0]} is {hr[0]}x{hr[1]}, {entry[1]} {lr[0]}x{lr[1]}"
            for entry, (hr, lr) in read
            if hr != (scale * lr[0], scale * lr[1])
        ]
        for scale in SCALES
    }
    scale = min(SCALES, key=lambda scale: len(unfit[scale]))
    if bad := unfit[scale]:
        size = f"exactly {scale} times as large as" if scale > 1 else "of the size of"
        raise UserError(
            f"{pairs.path}: {len(bad)} HR images are not {size} their LR partners: {listed(bad)}; "
            "crop or remove them"
        )


def splits_of(path: Path) -> list[Split]:
    """The splits for training and validation that a prepared data set has.

    Raises:
      UserError: it is damaged.
    """
    names = {split.get("name") for split in _read_json(path / INFO_FILE).get("splits", ())}
    return [split for split in SPLITS if split in names]


class Prepared:
    """One split of a TFDS data set in ArrayRecord form, as dossr_jax.data.prepare writes it.

    It needs a feature `hr` or `image`; `lr`, `pre` and `name` are optional.

    Raises:
      UserError: the split or such features are missing, or its files are damaged.
    """

    def __init__(self, path: Path, split: Split):
        self.path = path
        info = _read_json(path / INFO_FILE)
        features = _read_json(path / FEATURES_FILE)
        try:
            splits = {entry["name"]: entry for entry in info["splits"]}
            names = set(features["featuresDict"]["features"])
            kind = info["fileFormat"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not a TFDS data set (no {error}); prepare it anew") from error
        if kind != "array_record":
            raise UserError(f"{path}: its files are {kind}; convert the data set to array_record")
        if split not in splits:
            raise UserError(
                f"{path}: has no split {split!r}, but {', '.join(splits)}; prepare more images"
            )
        if not names & {"hr", "image"}:
            raise UserError(f"{path}: has no feature 'hr' or 'image', but {', '.join(names)}")
        self.fingerprint = hashlib.sha256(
            json.dumps([splits[split], sorted(names)], sort_keys=True).encode()
        ).hexdigest()[:16]
        self._split = split
        self._records = _open_shards(path, info["name"], splits[split])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        number = f"{self._split}[{index}]"
        return read_record(lambda: examples.parse(self._records[index]), str(self.path), number)


def read_record(read: Callable[[], Mapping[str, Any]], place: str, number: str) -> Record:
    """The record of what `read` gives: encoded images of the features IMAGES, and a `name`.

    Raises:
      UserError: it is damaged; `place` and `number` are for messages, and `number` for the name
        where there is none.
    """
    from google.protobuf.message import DecodeError

    try:
        features = read()
        hr, lr, pre = (_decode(features[k]) if k in features else None for k in ("hr", "lr", "pre"))
        hr = _decode(features["image"]) if hr is None else hr
        record = Record(bytes(features.get("name", number.encode())).decode(), hr, lr, pre)
    # Pillow's decoders raise almost anything on damaged data.
    except (DecodeError, KeyError, RuntimeError, ValueError, SyntaxError, OSError) as error:
        raise UserError(f"{place}: record {number} is damaged ({error})") from error
    return checked(record, Path(place) / record.name)


def _open_shards(path: Path, name: str, split: dict) -> ArrayRecordDataSource:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    count = len(split["shardLengths"])
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    files = []
    for index, length in enumerate(map(int, split["shardLengths"])):
        file = os.fspath(
            path
            / template.format(
                DATASET=name,
                SPLIT=split["name"],
                FILEFORMAT="array_record",
                SHARD_INDEX=f"{index:05d}",
                NUM_SHARDS=f"{count:05d}",
                SHARD_X_OF_Y=f"{index:05d}-of-{count:05d}",
            )
        )
        if length == 0:
            continue
        try:
            found = len(ArrayRecordDataSource(file))
        except RuntimeError as error:
            raise UserError(
                f"{file}: not a whole ArrayRecord file ({error}); prepare it anew"
            ) from error
        if found != length:
            raise UserError(f"{file}: holds {found} records instead of {length}; prepare it anew")
        files.append(file)
    if not files:
        raise UserError(f"{path}: split {split['name']!r} is empty; prepare it from more images")
    return ArrayRecordDataSource(files)


def _decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def checked(record: Record, path: Path) -> Record:
    """The record; UserError where its images do not fit each other."""
    hr, lr = record.hr, record.lr
    if lr is not None and hr.shape not in [(s * lr.shape[0], s * lr.shape[1], 3) for s in SCALES]:
        raise UserError(
            f"{path}: neither exactly {SCALE} times as large as its LR partner nor of its size; "
            "crop it"
        )
    if record.pre is not None and (lr is None or record.pre.shape != hr.shape):
        raise UserError(f"{path}: its pre-restored image fits no LR and HR image; prepare it anew")
    return record


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); prepare the data set anew") from error


def listed(names: Sequence[str]) -> str:
    """The first few of some names, for a message."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
