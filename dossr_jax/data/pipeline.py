"""Training batches: one fixed, infinite sequence of samples for a source and a seed.

Sample n is the n-th image of an order that is reshuffled every epoch, cropped, flipped and rotated
by random numbers that derive from n alone. Any process can therefore begin at any sample, and what
a batch holds depends neither on the number of processes nor of workers. See docs/data.md.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import grain
import numpy as np
from absl import flags

from dossr_jax import image_io
from dossr_jax.config import DataConfig
from dossr_jax.data import worker
from dossr_jax.data.sources import SCALE, Record, Source
from dossr_jax.errors import UserError

_log = logging.getLogger(__name__)
# This many unusable images in a row are not an accident.
_MAX_SKIPS = 1000
_FOREVER = 2**50  # samples; Grain's own infinity overflows in batches
_NAMED = 20  # skipped images that get a line in the log


class _Sample(NamedTuple):
    record: Record
    number: int
    skipped: dict[str, str]


def _read(source: Source, order: grain.MapDataset, crop: int, number: int, index: int) -> _Sample:
    """Image `index` for sample `number`, or the next one in the stream that can be used."""
    skipped = {}
    for ahead in range(1, min(len(source), _MAX_SKIPS) + 1):
        try:
            record = source[index]
        except UserError as error:
            skipped[f"image {index}"] = str(error)
        else:
            height, width = record.hr.shape[:2]
            if min(height, width) >= crop:
                return _Sample(record, number, skipped)
            skipped[record.name] = f"{record.name}: {width}x{height} is less than a crop"
        index = cast(int, order[number + ahead])
    reasons = next(iter(skipped.values()))
    raise UserError(
        f"{source.path}: {len(skipped)} images in a row cannot be used, the first because "
        f"of {reasons}; replace them, or lower data.crop ({crop})"
    )


def _cut(config: DataConfig, sample: _Sample, rng: np.random.Generator) -> dict[str, Any]:
    """A square crop of a sample's image at a random scale, flipped and rotated."""
    images = _crop(config, sample.record, rng)
    if config.augment:
        mirror, turns = rng.integers(2), int(rng.integers(4))
        images = {
            name: np.rot90(image[:, ::-1] if mirror else image, turns)
            for name, image in images.items()
        }
    return images | {"id": np.uint32(sample.number % 2**32), "skipped": sample.skipped}


def _crop(config: DataConfig, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    crop = config.crop
    height, width = record.hr.shape[:2]
    if record.lr is not None:
        # Not scaled: that would change the very degradation that the pair is there to show.
        scale = record.scale
        low = crop // scale
        y, x = rng.integers(height // scale - low + 1), rng.integers(width // scale - low + 1)
        top, left = scale * y, scale * x
        crops = {
            "hr": record.hr[top : top + crop, left : left + crop],
            "lr": record.lr[y : y + low, x : x + low],
        }
        if record.pre is not None:
            crops["pre"] = record.pre[top : top + crop, left : left + crop]
        return crops
    scale = max(rng.uniform(*config.scale_range), crop / min(height, width))
    side = min(round(crop / scale), height, width)
    y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
    return {"hr": image_io.resample(record.hr[y : y + side, x : x + side], crop, crop)}


def _stack(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    skipped = {name: why for sample in samples for name, why in sample["skipped"].items()}
    arrays = samples[0].keys() - {"skipped"}
    return {n: np.stack([s[n] for s in samples]) for n in sorted(arrays)} | {"skipped": skipped}


class Batches(Iterator[dict[str, np.ndarray]]):
    """Iterator over the batches of one process; never ends.

    A batch is a dict of `hr` uint8 (b, crop, crop, 3), in paired data also `lr` uint8
    (b, crop/4, crop/4, 3) or as `hr`, where they were made beforehand `pre` uint8 as `hr`, and `id`
    uint32 (b,), the samples' numbers modulo 2^32. If a batch of
    `config.batch` samples starts at sample s, process p of P gets samples s + p*b to
    s + p*b + b - 1, where b = config.batch / P.

    Images that cannot be decoded, or are smaller than a crop, are replaced by the next one in the
    stream that can be used; `skipped` maps the names of those that this process has met to the
    reason. `waited` is the time in seconds spent waiting for batches so far.

    Args:
      source: the images.
      config: batch size, crops and workers.
      seed: determines order, crops, flips and rotations.
      start: number of the sample to start from; see `start_of`.
      process: index of this process and number of processes.

    Raises:
      UserError: batch or crop do not divide; from next(): nothing usable is left, or a worker
        process died.
    """

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        *,
        seed: int,
        start: int = 0,
        process: tuple[int, int] = (0, 1),
    ):
        index, count = process
        if config.batch % count:
            raise UserError(
                f"data.batch {config.batch} does not divide among {count} processes; change it"
            )
        if config.crop % SCALE:
            raise UserError(f"data.crop {config.crop} is not a multiple of {SCALE}; change it")
        self.skipped: dict[str, str] = {}
        self.waited = 0.0
        self._batch = config.batch
        self._samples = start
        self._about = _about(source, seed)
        # In a list of its own, which is emptied when this object goes or Python ends: Grain's
        # iterators cannot be closed, or even deleted, once Python has begun to take modules down.
        self._open = [iter(_make_stream(source, config, seed, start, index, count))]
        self._finalizer = weakref.finalize(self, _close_all, self._open)

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._open:
            raise ValueError("these batches have been closed")
        began = time.perf_counter()
        try:
            batch = next(self._open[0])
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise UserError(
                f"a data worker died ({error}); it may have run out of memory: lower data.workers "
                "or data.prefetch"
            ) from error
        self.waited += time.perf_counter() - began
        self._samples += self._batch
        self._report(batch.pop("skipped"))
        return batch

    def _report(self, skipped: Mapping[str, str]) -> None:
        for name, why in skipped.items():
            if name in self.skipped:
                continue
            self.skipped[name] = why
            if len(self.skipped) <= _NAMED:
                _log.warning("skipped an image: %s", why)
            if len(self.skipped) == _NAMED:
                _log.warning("more images that cannot be used are counted, but not named")

    def state(self) -> dict[str, Any]:
        """Position in the stream, JSON-able; the same in all processes after the same steps."""
        return {"samples": self._samples, **self._about}

    def close(self) -> None:
        """Stop reading ahead and end the workers."""
        self._finalizer()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
    while iterators:
        iterators.pop().close()


def start_of(state: Mapping[str, Any], source: Source, *, seed: int) -> int:
    """The `start` that resumes a stream from a saved state, whatever the number of processes.

    Raises:
      UserError: the state belongs to another seed or to other images.
    """
    about = _about(source, seed)
    names = {
        "seed": "seed",
        "images": "number of images",
        "fingerprint": "fingerprint of the images",
    }
    changes = [
        f"{name} was {state[key]}, is {about[key]}"
        for key, name in names.items()
        if state[key] != about[key]
    ]
    if changes:
        raise UserError(
            f"{source.path}: not the data of this run, which was begun on {state['path']} "
            f"({', '.join(changes)}); give it that data, or start a new run"
        )
    return int(state["samples"])


def _about(source: Source, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "images": len(source),
        "fingerprint": source.fingerprint,
        "path": str(source.path),
    }


def _make_stream(
    source: Source, config: DataConfig, seed: int, start: int, index: int, count: int
) -> grain.IterDataset:
    epochs = _FOREVER // len(source) + 1
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(epochs)
    images = order.map_with_index(functools.partial(_read, source, order, config.crop))
    samples = images.random_map(functools.partial(_cut, config))
    batches = samples[start:].batch(config.batch // count, batch_fn=_stack)[index::count]
    if config.workers == 0:
        # More threads than one would only take turns: decoders hold Python's lock.
        threads = min(1, config.prefetch)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=config.prefetch)
        return batches.to_iter_dataset(options)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, which keep their defaults.
    worker.start_workers_from_here()
    each = max(1, math.ceil(config.prefetch / config.workers))
    workers = grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=each)
    # Batches go through pipes: shared memory is often limited to 64 MB in containers, where
    # running out of it kills a process, and it stays behind when a process is killed.
    through_pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    stream = grain.experimental.WithOptionsIterDataset(stream, through_pipes)
    return stream.mp_prefetch(workers, worker_init_fn=worker.begin)
