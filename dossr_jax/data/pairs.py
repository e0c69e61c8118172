"""A data set of pairs made beforehand: LR images, and pre-restored ones, of tiles.

Training on it waits for neither: at the size of SD 2.1 the pre-restorer alone takes 0.6 TFLOP a
sample of 512 px. See docs/data.md.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from tqdm import tqdm

from dossr_jax import parallel
from dossr_jax.data import dataset, degradation, tiles
from dossr_jax.data.dataset import MAX_SHARDS, Shard, Tally
from dossr_jax.data.sources import SCALE, Prepared, Record, splits_of
from dossr_jax.errors import UserError
from dossr_jax.systems.rrdb import preprocessor, read_rrdb

_SHARD_TILES = 128  # work that an interruption may cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How pairs are made of tiles.

    Every tile is degraded `copies` times, each time by one of the presets `degrade`, drawn
    uniformly; tiles that bring their LR images need none. `pre_restore` names a model (see
    dossr_jax.systems.rrdb.read_rrdb). `limit` tiles of a split are used, evenly spaced; 0: all.
    `batch_size` tiles are computed at once, over all devices.
    """

    degrade: Sequence[str] = ()
    pre_restore: str = ""
    copies: int = 1
    limit: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.copies < 1 or self.limit < 0 or self.batch_size < 1:
            raise UserError("--copies, --limit and --batch-size are 1 or more")


class _Tiles(NamedTuple):
    """Tiles `numbers` of a split, `side` pixels high and wide."""

    source: Prepared
    side: int
    numbers: Sequence[int]


def describe(path: Path) -> dict[str, Any]:
    """What determines the pairs of a prepared data set: its size and fingerprints.

    Raises:
      UserError: the data set is damaged.
    """
    sources = [Prepared(path, split) for split in splits_of(path)]
    return {
        "tiles": sum(map(len, sources)),
        "fingerprint": [source.fingerprint for source in sources],
    }


def tile_side(path: Path) -> int:
    """Side in pixels of the tiles of a prepared data set.

    Raises:
      UserError: dossr_jax.data.prepare did not make it.
    """
    try:
        return int(json.loads((path / dataset.REPORT_FILE).read_text())["tile"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: not cut into tiles by this command ({error}); give the photos"
        ) from error


def make_pairs(
    get_tiles: Callable[[], Path], out: Path, options: PairOptions, origin: dict[str, Any]
) -> dict[str, Any]:
    """Build the data set of pairs `out`, or what is still missing of it; returns its report.

    Args:
      get_tiles: the folder of a data set of tiles; called only if something is to be made.
      origin: what determines the tiles, JSON-able.

    Raises:
      UserError: no such model or preset, tiles that do not fit, or a folder that cannot be used.
    """
    if options.degrade:
        presets = degradation.choose_presets(options.degrade)
        if presets[0].scale != SCALE:
            raise UserError(
                f"--degrade {' '.join(options.degrade)}: reduces by {presets[0].scale}; choose "
                f"presets that reduce by {SCALE}"
            )
    else:
        presets = ()
    # What is computed at once changes no pair.
    plan = origin | {k: v for k, v in dataclasses.asdict(options).items() if k != "batch_size"}
    if options.pre_restore:  # before tiles are cut, which takes long
        plan["pre_restorer_sha256"] = _digest_of(options.pre_restore)
    features = ("hr", "lr", "pre") if options.pre_restore else ("hr", "lr")

    def shards() -> list[Shard]:
        return list(_make_shards(get_tiles(), options))

    def write_missing(every: Sequence[Shard], missing: Sequence[Shard]) -> None:
        maker = _Maker(presets, options)
        total, left = (sum(len(s.content.numbers) for s in some) for some in (every, missing))
        with tqdm(total=total, initial=total - left, desc="pairs", unit=" tiles") as bar:
            for shard in missing:
                dataset.write_shard(shard, out, functools.partial(maker.records, bar=bar))

    return dataset.build(out, plan, shards, write_missing, features)


def _digest_of(name: str) -> str:
    """SHA-256 of a pre-restorer's weights; what else its file tells changes no pair.

    Raises:
      UserError: no such model, or it enlarges otherwise than four times.
    """
    config, tensors = read_rrdb(name)
    if config.scale != SCALE:
        raise UserError(
            f"--pre-restore {name}: enlarges {config.scale} times; give a model that enlarges "
            f"{SCALE} times"
        )
    digest = hashlib.sha256()
    for parameter in sorted(tensors):
        digest.update(parameter.encode() + tensors[parameter].load().tobytes())
    return digest.hexdigest()


def _make_shards(folder: Path, options: PairOptions) -> Iterator[Shard]:
    side = tile_side(folder)
    for split in splits_of(folder):
        source = Prepared(folder, split)
        count = min(options.limit or len(source), len(source))
        numbers = [i * len(source) // count for i in range(count)]
        size = max(_SHARD_TILES, math.ceil(count / MAX_SHARDS))
        for index, start in enumerate(range(0, count, size)):
            yield Shard(split, index, _Tiles(source, side, numbers[start : start + size]))


class _Maker:
    """Makes pairs of tiles in batches of one shape, so that little is compiled."""

    def __init__(self, presets: Sequence[degradation.Preset], options: PairOptions):
        self._presets, self._options = presets, options
        self._mesh = parallel.make_mesh(1)
        self._batch = math.ceil(options.batch_size / self._mesh.size) * self._mesh.size
        self._key = jax.random.key(0)
        self._degrade = jax.jit(
            parallel.on_each_device(
                lambda keys, hr: _to_uint8(degradation.degrade(keys, hr / 255, presets)), self._mesh
            )
        )
        if not options.pre_restore:
            return
        graphdef, state = nnx.split(preprocessor(options.pre_restore))
        self._state = jax.device_put(state, parallel.replicated(self._mesh))
        self._pre_restore = jax.jit(
            lambda state, lr: _to_uint8(nnx.merge(graphdef, state).pre_restore(lr / 255))
        )

    def records(self, content: _Tiles, tally: Tally, *, bar: Any) -> Iterator[bytes]:
        """Serialized pairs of some tiles; what is left out is added to `tally`."""
        waiting: list[tuple[Record, int]] = []
        for number in content.numbers:
            tile = content.source[number]
            bar.update()
            self._check(tile, content.source)
            # Every other shape would be compiled anew.
            if tile.hr.shape[:2] != (content.side, content.side):
                tally.too_small.append(tile.name)
                continue
            waiting += [(tile, copy) for copy in range(self._options.copies)]
            while len(waiting) >= self._batch:
                yield from self._make(waiting[: self._batch])
                waiting = waiting[self._batch :]
        if waiting:
            yield from self._make(waiting)

    def _check(self, tile: Record, source: Prepared) -> None:
        if tile.lr is None and not self._presets:
            raise UserError(f"{source.path}: its tiles have no LR images; give --degrade")
        if tile.lr is not None and self._presets:
            raise UserError(f"{source.path}: its tiles have LR images; leave --degrade out")

    def _make(self, some: Sequence[tuple[Record, int]]) -> Iterator[bytes]:
        """Serialized pairs of at most a batch of tiles."""
        names = [f"{tile.name}#{copy}" for tile, copy in some]
        hr = [tile.hr for tile, _ in some]
        if self._presets:
            keys = jax.vmap(lambda data: jax.random.fold_in(self._key, data))(
                self._fill([_number_of(name) for name in names])
            )
            lr = self._degrade(keys, self._fill(hr))
        else:
            lr = self._fill([tile.lr for tile, _ in some])
        pre = self._pre_restore(self._state, lr) if self._options.pre_restore else None
        lows, pres = np.asarray(lr), None if pre is None else np.asarray(pre)
        for i, name in enumerate(names):
            yield tiles.serialize(Record(name, hr[i], lows[i], None if pres is None else pres[i]))

    def _fill(self, arrays: Sequence[Any]) -> Array:
        """A batch, filled up with repeats and split over the devices."""
        full = [*arrays, *[arrays[0]] * (self._batch - len(arrays))]
        return parallel.put(np.stack(full), parallel.batch_sharding(self._mesh))


def _number_of(name: str) -> np.uint32:
    """32 bits of a hash of a pair's name: its random draws depend on nothing else."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.uint32(int.from_bytes(digest[:4], "big"))


def _to_uint8(image: Array) -> Array:
    return jnp.round(255 * image).astype(jnp.uint8)
