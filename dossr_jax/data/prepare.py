"""Cut photos into tiles and pack them into a TFDS data set that decodes fast.

    python -m dossr_jax.data.prepare PHOTOS OUT --tile 256

PHOTOS is a folder of images or of LR/HR pairs. OUT becomes a data set in ArrayRecord form with
features `hr`, `name` and, for pairs, `lr`; OUT/prepare.json says what went in and what was left
out. Interrupted at any moment, the same command continues where it stopped and ends with the same
bytes. Needs no TensorFlow.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dossr_jax.data import worker
from dossr_jax.data.sources import (
    FEATURES_FILE,
    INFO_FILE,
    SPLITS,
    UNFINISHED,
    Images,
    Split,
    list_images,
    listed,
)
from dossr_jax.data.tiles import Options, Tally, make_examples
from dossr_jax.errors import UserError, command_line, require_extra

REPORT_FILE = "prepare.json"
_NAME = "photos"
_SHARD_PHOTOS = 32  # work that an interruption may cost a worker
_MAX_SHARDS = 512  # a reader keeps every shard open


class Shard(NamedTuple):
    """A file of the data set: number `index` of its split, made of the photos `photos`."""

    split: Split
    index: int
    photos: Images

    @property
    def file(self) -> str:
        return f"{_NAME}-{self.split}.array_record-{self.index:05d}"


def prepare(photos: Path, out: Path, options: Options, *, workers: int) -> dict[str, Any]:
    """Build the data set `out`, or what is still missing of it; returns its report.

    Raises:
      UserError: no photos, none that yields a tile for training, `out` belongs to something
        else, or it cannot be written.
    """
    images = list_images(photos)
    plan = {
        "photos": len(images),
        "fingerprint": images.fingerprint,
        "paired": images.paired,
        **dataclasses.asdict(options),
    }
    plan = json.loads(json.dumps(plan))  # lists for tuples, as in the files it is compared with
    work = out / UNFINISHED
    try:
        if _is_finished(out, plan):
            shutil.rmtree(work, ignore_errors=True)
            return json.loads((out / REPORT_FILE).read_text())
        work.mkdir(parents=True, exist_ok=True)
        _write(work / REPORT_FILE, plan)
        shards = list(_make_shards(images, options))
        _write_shards(shards, out, options, workers)
        report = _finish(shards, out, plan)
        shutil.rmtree(work)
    except OSError as error:
        raise UserError(
            f"{out}: {error.strerror or error}; free disk space or choose another"
        ) from error
    return report


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


def _make_shards(images: Images, options: Options) -> Iterator[Shard]:
    """Shards of each split; photos are ordered by a hash of their names, to mix them."""

    def rank(entry: tuple[str, str | None]) -> bytes:
        return hashlib.sha256(f"{options.seed}/{entry[0]}".encode()).digest()

    for split in SPLITS:
        entries = sorted(images.of_split(split, options.hold_out).entries, key=rank)
        size = max(_SHARD_PHOTOS, math.ceil(len(entries) / _MAX_SHARDS))
        for index, start in enumerate(range(0, len(entries), size)):
            yield Shard(split, index, Images(images.path, entries[start : start + size]))


def _write_shards(shards: Sequence[Shard], out: Path, options: Options, workers: int) -> None:
    missing = [shard for shard in shards if not _tally_of(shard, out).exists()]
    total, left = (sum(len(shard.photos) for shard in some) for some in (shards, missing))
    bar = tqdm(total=total, initial=total - left, desc="photos", unit="")
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=worker.end_with_parent
    )
    try:
        jobs = {pool.submit(_write_shard, shard, out, options): shard for shard in missing}
        for job in as_completed(jobs):
            job.result()
            bar.update(len(jobs[job].photos))
    except BrokenProcessPool as error:
        raise UserError(
            f"{out}: a worker died, it may have run out of memory; run it with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()


def _tally_of(shard: Shard, out: Path) -> Path:
    """The file that says that a shard is complete, and what is in it."""
    return out / UNFINISHED / f"{shard.file}.json"


def _write_shard(shard: Shard, out: Path, options: Options) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    tally = Tally()
    temporary = out / UNFINISHED / f"{shard.file}.{os.getpid()}"
    try:
        writer = ArrayRecordWriter(os.fspath(temporary), "group_size:1,uncompressed")
        for example in make_examples(shard.photos, options, tally):
            writer.write(example)
            tally.records += 1
            tally.bytes += len(example)
        writer.close()  # what went wrong in writing is raised here
    except RuntimeError as error:
        raise OSError(str(error)) from error
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, out / shard.file)
    _write(_tally_of(shard, out), dataclasses.asdict(tally))


def _finish(shards: Sequence[Shard], out: Path, plan: dict[str, Any]) -> dict[str, Any]:
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
            f"{out}: no tile for training: {_summary(report)}; remove it, and add larger, sharper "
            "photos or lower --tile"
        )
    _write(out / FEATURES_FILE, _features(plan["paired"]))
    _write(out / REPORT_FILE, report)
    info = {"name": _NAME, "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    info["description"] = "Tiles of photos, encoded without loss, for training super-resolution."
    _write(out / INFO_FILE, info)
    return report


def _features(paired: bool) -> dict[str, Any]:
    """features.json of TFDS: images of any size and the name of the tile."""
    package = "tensorflow_datasets.core.features"
    image = {
        "pythonClassName": f"{package}.image_feature.Image",
        "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"},
    }
    text = {"pythonClassName": f"{package}.text_feature.Text", "text": {}}
    features = {"hr": image, "name": text} | ({"lr": image} if paired else {})
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


def _summary(report: dict[str, Any]) -> str:
    tiles = ", ".join(f"{n} {split}" for split, n in report["records"].items()) or "no"
    parts = [
        f"{tiles} tiles of {report['photos']} photos",
        f"{report['flat_tiles']} flat ones left out",
    ]
    if report["too_small"]:
        parts.append(f"{len(report['too_small'])} photos too small: {listed(report['too_small'])}")
    if report["undecodable"]:
        reasons = list(report["undecodable"].values())
        parts.append(f"{len(reasons)} files undecodable: {listed(reasons)}")
    return "; ".join(parts)


@command_line("stopped; the same command continues")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], argument_default=argparse.SUPPRESS
    )
    parser.add_argument("photos", type=Path, help="folder of images, or of LR/HR pairs")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--tile", type=int, help="side of a tile in pixels")
    parser.add_argument(
        "--halve-above",
        type=float,
        metavar="MEGAPIXELS",
        help="halve photos from this size on; 0: none",
    )
    parser.add_argument(
        "--halve", nargs="*", metavar="PATTERN", help="halve photos with such names"
    )
    parser.add_argument(
        "--hold-out", type=int, metavar="N", help="one photo in N is for validation"
    )
    parser.add_argument("--seed", type=int, help="of the order of photos")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = vars(parser.parse_args(argv))
    photos, out, workers = (args.pop(name) for name in ("photos", "out", "workers"))
    require_extra("train", "array_record", "google.protobuf")
    print(_summary(prepare(photos, out, Options(**args), workers=max(1, workers))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
