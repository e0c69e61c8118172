"""Cut photos into tiles and pack them into a TFDS data set that decodes fast.

    python -m dossr_jax.data.prepare PHOTOS OUT --tile 256
    python -m dossr_jax.data.prepare TILES OUT --degrade realesrgan --pre-restore MODEL

PHOTOS is a folder of images or of LR/HR pairs. OUT becomes a data set in ArrayRecord form with
features `hr`, `name` and, for pairs, `lr`; OUT/prepare.json says what went in and what was left
out. With --degrade, LR images are made of the tiles beforehand, and with --pre-restore also the
pre-restored images `pre`; in place of PHOTOS a data set of tiles may be given then. Interrupted at
any moment, the same command continues where it stopped and ends with the same bytes. Needs no
TensorFlow.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dossr_jax.commands import command_line
from dossr_jax.data import dataset, worker
from dossr_jax.data.dataset import MAX_SHARDS, Shard
from dossr_jax.data.sources import (
    SPLITS,
    UNFINISHED,
    Images,
    is_prepared,
    list_images,
)
from dossr_jax.data.tiles import Options, make_examples
from dossr_jax.errors import UserError, require_extra

_SHARD_PHOTOS = 32  # work that an interruption may cost a worker


def prepare(photos: Path, out: Path, options: Options, *, workers: int) -> dict[str, Any]:
    """Build the data set `out`, or what is still missing of it; returns its report.

    Raises:
      UserError: no photos, too few for both splits, none that yields a tile for training, `out`
        belongs to something else, or it cannot be written.
    """
    images = _list_photos(photos, options)

    def write_missing(shards: Sequence[Shard], missing: Sequence[Shard]) -> None:
        _write_shards(shards, missing, out, options, workers)

    features = ("hr", "lr") if images.paired else ("hr",)
    plan = _plan(images, options)
    return dataset.build(
        out, plan, lambda: list(_make_shards(images, options)), write_missing, features
    )


def _list_photos(folder: Path, options: Options) -> Images:
    """The photos of a folder; UserError where they cannot be split, before anything is written."""
    images = list_images(folder)
    images.of_split("train", options.hold_out)
    return images


def _plan(images: Images, options: Options) -> dict[str, Any]:
    """What determines the tiles."""
    return {
        "photos": len(images),
        "fingerprint": images.fingerprint,
        "paired": images.paired,
        **dataclasses.asdict(options),
    }


def _make_shards(images: Images, options: Options) -> Iterator[Shard]:
    """Shards of each split; photos are ordered by a hash of their names, to mix them."""

    def rank(entry: tuple[str, str | None]) -> bytes:
        return hashlib.sha256(f"{options.seed}/{entry[0]}".encode()).digest()

    for split in SPLITS:
        entries = sorted(images.of_split(split, options.hold_out).entries, key=rank)
        size = max(_SHARD_PHOTOS, math.ceil(len(entries) / MAX_SHARDS))
        for index, start in enumerate(range(0, len(entries), size)):
            yield Shard(split, index, Images(images.path, entries[start : start + size]))


def _write_shards(
    shards: Sequence[Shard], missing: Sequence[Shard], out: Path, options: Options, workers: int
) -> None:
    total, left = (sum(len(shard.content) for shard in some) for some in (shards, missing))
    bar = tqdm(total=total, initial=total - left, desc="photos", unit="")
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=worker.end_with_parent
    )
    try:
        jobs = {pool.submit(_write_shard, shard, out, options): shard for shard in missing}
        for job in as_completed(jobs):
            job.result()
            bar.update(len(jobs[job].content))
    except BrokenProcessPool as error:
        raise UserError(
            f"{out}: a worker died, it may have run out of memory; run it with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()


def _write_shard(shard: Shard, out: Path, options: Options) -> None:
    dataset.write_shard(shard, out, lambda photos, tally: make_examples(photos, options, tally))


def _prepare_pairs(
    source: Path, out: Path, options: Options, pairing: dict[str, Any], workers: int
) -> dict[str, Any]:
    """A data set of pairs, of tiles or of photos, which are cut into tiles first."""
    from dossr_jax.data import pairs  # here: cutting tiles needs no JAX

    if is_prepared(source):
        origin, get_tiles = pairs.describe(source), lambda: source
    else:
        origin = _plan(_list_photos(source, options), options)

        def get_tiles() -> Path:
            tiles = out / UNFINISHED / "tiles"
            prepare(source, tiles, options, workers=workers)
            return tiles

    return pairs.make_pairs(get_tiles, out, pairs.PairOptions(**pairing), origin)


@command_line("stopped; the same command continues")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], argument_default=argparse.SUPPRESS
    )
    parser.add_argument(
        "photos",
        type=Path,
        help="folder of images, or of LR/HR pairs; with --degrade also a data set of tiles",
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes that cut tiles"
    )
    tiling = parser.add_argument_group("tiles")
    pairing = parser.add_argument_group(
        "pairs made beforehand", "so that training waits for neither degradation nor pre-restorer"
    )
    options = [
        tiling.add_argument("--tile", type=int, help="side of a tile in pixels"),
        tiling.add_argument(
            "--halve-above",
            type=float,
            metavar="MEGAPIXELS",
            help="halve photos from this size on; 0: none",
        ),
        tiling.add_argument(
            "--halve", nargs="*", metavar="PATTERN", help="halve photos with such names"
        ),
        tiling.add_argument(
            "--hold-out", type=int, metavar="N", help="one photo in N is for validation; 0: none"
        ),
        tiling.add_argument("--seed", type=int, help="of the order of photos"),
    ]
    pair_options = [
        pairing.add_argument(
            "--degrade",
            nargs="+",
            metavar="PRESET",
            help="make an LR image of every tile by one of these degradations, drawn at random",
        ),
        pairing.add_argument(
            "--pre-restore",
            metavar="MODEL",
            help="and of every LR image the pre-restored one; MODEL is realesrgan, a model file, "
            "or any file of an RRDBNet",
        ),
        pairing.add_argument("--copies", type=int, metavar="N", help="degradations of every tile"),
        pairing.add_argument(
            "--limit", type=int, metavar="N", help="use N tiles of a split, evenly spaced"
        ),
        pairing.add_argument("--batch-size", type=int, metavar="N", help="tiles at once"),
    ]
    args = vars(parser.parse_args(argv))

    def given(actions: Sequence[argparse.Action]) -> dict[str, Any]:
        return {a.dest: args[a.dest] for a in actions if a.dest in args}

    for_tiles, for_pairs = given(options), given(pair_options)
    pairs = "degrade" in for_pairs or "pre_restore" in for_pairs
    if for_pairs and not pairs:
        parser.error(f"--{next(iter(for_pairs)).replace('_', '-')}: only with --degrade")
    require_extra("train", "array_record", "google.protobuf")
    source, out, workers = args["photos"], args["out"], max(1, args["workers"])
    if is_prepared(source):
        if not pairs:
            raise UserError(f"{source}: already cut into tiles; add --degrade, or give photos")
        if for_tiles:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in for_tiles)
            raise UserError(f"{source}: already cut into tiles; leave {names} out, or give photos")
    if pairs:
        report = _prepare_pairs(source, out, Options(**for_tiles), for_pairs, workers)
    else:
        report = prepare(source, out, Options(**for_tiles), workers=workers)
    print(dataset.summarize(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
