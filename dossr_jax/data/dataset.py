"""Writing a TFDS data set in ArrayRecord form, shard by shard, so that any stop costs one shard.

An unfinished data set keeps its plan and one tally per complete shard in the folder UNFINISHED;
the file that openers look for, INFO_FILE, is written last.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dossr_jax import files
from dossr_jax.data.sources import FEATURES_FILE, INFO_FILE, SPLITS, UNFINISHED, Split, listed
from dossr_jax.errors import UserError

REPORT_FILE = "prepare.json"
NAME = "photos"
MAX_SHARDS = 512  # a reader keeps every shard open


@dataclasses.dataclass
class Tally:
    """Counts of a shard, and photos left out; `undecodable` maps names to reasons."""

    records: int = 0
    bytes: int = 0
    flat_tiles: int = 0
    too_small: list[str] = dataclasses.field(default_factory=list)
    undecodable: dict[str, str] = dataclasses.field(default_factory=dict)


class Shard(NamedTuple):
    """A file of the data set: number `index` of its split, made of `content`."""

    split: Split
    index: int
    content: Any

    @property
    def file(self) -> str:
        return f"{NAME}-{self.split}.array_record-{self.index:05d}"


def build(
    out: Path,
    plan: dict[str, Any],
    shards: Callable[[], Sequence[Shard]],
    write_missing: Callable[[Sequence[Shard], Sequence[Shard]], None],
    images: Sequence[str],
) -> dict[str, Any]:
    """Make the data set `out`, or what is still missing of it; returns its report.

    Args:
      plan: what determines the content, JSON-able; a folder begun with another one is refused.
      shards: lists the shards; called only if there is something to do.
      write_missing: (all shards, those to write) -> None; calls `write_shard` for each.
      images: names of the features of a record that are images.

    Raises:
      UserError: `out` belongs to something else or cannot be written, or nothing is for training.
    """
    files.check_folder(out)
    plan = json.loads(json.dumps(plan))  # lists for tuples, as in the files it is compared with
    work = out / UNFINISHED
    try:
        if _is_finished(out, plan):
            shutil.rmtree(work, ignore_errors=True)
            return json.loads((out / REPORT_FILE).read_text())
        work.mkdir(parents=True, exist_ok=True)
        _write(work / REPORT_FILE, plan)
        every = shards()
        write_missing(every, [shard for shard in every if not _tally_of(shard, out).exists()])
        report = _finish(every, out, plan, images)
        shutil.rmtree(work)
    except OSError as error:
        raise UserError(
            f"{out}: {error.strerror or error}; free disk space or choose another"
        ) from error
    return report


def write_shard(
    shard: Shard, out: Path, make_records: Callable[[Any, Tally], Iterable[bytes]]
) -> None:
    """Write one shard with the records that `make_records` makes of its content.

    Raises:
      OSError: the disk is full, or similar.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    tally = Tally()
    temporary = out / UNFINISHED / f"{shard.file}.{os.getpid()}"
    try:
        writer = ArrayRecordWriter(os.fspath(temporary), "group_size:1,uncompressed")
        for record in make_records(shard.content, tally):
            writer.write(record)
            tally.records += 1
            tally.bytes += len(record)
        writer.close()  # what went wrong in writing is raised here
    except RuntimeError as error:
        raise OSError(str(error)) from error
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, out / shard.file)
    _write(_tally_of(shard, out), dataclasses.asdict(tally))


def _is_finished(out: Path, plan: dict[str, Any]) -> bool:
    """Whether `out` is the finished data set of this plan; UserError where it is another's."""
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    finished = INFO_FILE in names
    begun = (out if finished else out / UNFINISHED) / REPORT_FILE
    if not begun.exists():
        if names <= {UNFINISHED}:
            return False
        raise UserError(f"{out}: not empty, and not begun by this command; choose another folder")
    before = json.loads(begun.read_text())
    changes = [f"{k} was {before.get(k)}, is {v}" for k, v in plan.items() if before.get(k) != v]
    if changes:
        raise UserError(
            f"{out}: begun otherwise ({', '.join(changes)}); choose another folder or remove it"
        )
    return finished


def _tally_of(shard: Shard, out: Path) -> Path:
    """The file that says that a shard is complete, and what is in it."""
    return out / UNFINISHED / f"{shard.file}.json"


def _finish(
    shards: Sequence[Shard], out: Path, plan: dict[str, Any], images: Sequence[str]
) -> dict[str, Any]:
    """Write what makes the shards a data set; the file that openers look for comes last."""
    tallies = [Tally(**json.loads(_tally_of(shard, out).read_text())) for shard in shards]
    splits = []
    for split in SPLITS:
        own = [tally for s, tally in zip(shards, tallies, strict=True) if s.split == split]
        if any(tally.records for tally in own):
            splits.append(
                {
                    "name": split,
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
                    "shardLengths": [str(tally.records) for tally in own],
                    "numBytes": str(sum(tally.bytes for tally in own)),
                }
            )
    report = plan | {
        "records": {s["name"]: sum(map(int, s["shardLengths"])) for s in splits},
        "flat_tiles": sum(tally.flat_tiles for tally in tallies),
        "too_small": sorted(name for tally in tallies for name in tally.too_small),
        "undecodable": dict(sorted(i for tally in tallies for i in tally.undecodable.items())),
    }
    if "train" not in report["records"]:
        raise UserError(
            f"{out}: no tile for training: {summarize(report)}; remove it, and add larger, sharper "
            "photos or lower --tile"
        )
    _write(out / FEATURES_FILE, _features(images))
    _write(out / REPORT_FILE, report)
    info = {"name": NAME, "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    info["description"] = "Tiles of photos, encoded without loss, for training super-resolution."
    _write(out / INFO_FILE, info)
    return report


def _features(images: Sequence[str]) -> dict[str, Any]:
    """features.json of TFDS: images of any size and the name of the tile."""
    package = "tensorflow_datasets.core.features"
    image = {
        "pythonClassName": f"{package}.image_feature.Image",
        "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"},
    }
    text = {"pythonClassName": f"{package}.text_feature.Text", "text": {}}
    features = dict.fromkeys(images, image) | {"name": text}
    return {
        "pythonClassName": f"{package}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with open(temporary, "w") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def summarize(report: dict[str, Any]) -> str:
    """One line on what a data set holds and what was left out."""
    unit = "pairs" if "copies" in report else "tiles"
    source = "photos" if "photos" in report else "tiles"
    count = ", ".join(f"{n} {split}" for split, n in report["records"].items()) or "no"
    parts = [f"{count} {unit} of {report[source]} {source}"]
    if unit == "tiles":
        parts.append(f"{report['flat_tiles']} flat ones left out")
    if report["too_small"]:
        small = report["too_small"]
        what = "photos" if unit == "tiles" else "tiles"
        parts.append(f"{len(small)} {what} too small: {listed(small)}")
    if report["undecodable"]:
        reasons = list(report["undecodable"].values())
        parts.append(f"{len(reasons)} files undecodable: {listed(reasons)}")
    return "; ".join(parts)
