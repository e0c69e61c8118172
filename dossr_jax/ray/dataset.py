"""Ray datasets in, Ray datasets with restored images out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dossr_jax.config import SamplerConfig
from dossr_jax.errors import UserError
from dossr_jax.pipeline import Upscaler, make_settings, restore_photos
from dossr_jax.pipeline.pictures import as_photo
from dossr_jax.ray.cluster import AUTO, Workers, path_of_model, plan_workers

_ROWS = 8  # that a worker gets at a time, per image of a batch


def restore_dataset(
    dataset: Any,
    column: str = "image",
    model: str | Path = "dossr-mini",
    *,
    into: str = "restored",
    dtype: str = "float32",
    preprocessor: str | Path | None = None,
    tile: int | None = None,
    tokenizer_dir: str | Path | None = None,
    workers: int | None = None,
    accelerator: str = AUTO,
    accelerators_per_worker: int | None = None,
    **settings: Any,
) -> Any:
    """Restore the images of a Ray dataset, lazily, by workers that hold a model each.

    Args:
      dataset: ray.data.Dataset, as of `ray.data.read_images` or `read_binary_files`.
      column: of images: arrays, bytes of files, or names of files that every node sees; all that
        :meth:`dossr_jax.Upscaler.restore` takes of these.
      model: as for :meth:`dossr_jax.Upscaler.from_pretrained`; every node sees the files.
      dtype: likewise.
      preprocessor: likewise.
      tile: likewise.
      tokenizer_dir: likewise.
      into: name of the new columns: `into` has the results as arrays, and `into` + "_error" a text,
        which is empty where there is a result. A failed image has an array without pixels.
      workers: as the flag of `python -m dossr_jax.ray`.
      accelerator: likewise.
      accelerators_per_worker: likewise.
      **settings: as for :meth:`dossr_jax.Upscaler.settings`; one seed for all images.

    Returns:
      A dataset with the columns of `dataset` and the new ones.

    Raises:
      UserError: settings that cannot be, or a column that is not there. Where the model cannot be
        loaded, consuming the dataset raises what Ray makes of a UserError.
    """
    import ray  # pyright: ignore[reportMissingImports]

    asked = make_settings(SamplerConfig(), **settings)
    if not isinstance(asked.seed, int):
        raise UserError("a dataset has no fixed order for several seeds; give one")
    known = dataset.columns(fetch_if_missing=False)
    if known is not None and column not in known:
        raise UserError(f"column {column!r}: the dataset has {', '.join(known)}; give column=")
    planned = plan_workers(accelerator, accelerators_per_worker, workers)
    make = functools.partial(
        Upscaler.from_pretrained,
        path_of_model(model),
        dtype=dtype,
        preprocessor=None if preprocessor is None else path_of_model(preprocessor),
        tile=tile,
        tokenizer_dir=None if tokenizer_dir is None else Path(tokenizer_dir).absolute(),
    )
    return dataset.map_batches(
        _Restorer,
        fn_constructor_args=(planned, make, settings, column, into),
        batch_size=_ROWS * asked.images_at_a_time,
        compute=ray.data.ActorPoolStrategy(size=planned.count),
        **planned.resources,
    )


class _Restorer:
    """A worker: the model, and the function of Ray Data that restores batches of rows with it."""

    def __init__(
        self,
        workers: Workers,
        make: Callable[[], Upscaler],
        settings: Mapping[str, Any],
        column: str,
        into: str,
    ):
        workers.check_devices()
        self._upscaler = make()
        self._settings = self._upscaler.settings(**settings)
        self._column = column
        self._into = into

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = batch[self._column]
        results = [np.zeros((0, 0, 3), np.uint8)] * len(images)
        errors = [""] * len(images)
        photos, finish = {}, {}
        for index, image in enumerate(images):
            try:
                photos[index], finish[index] = as_photo(image)
            except Exception as error:  # Decoders raise almost anything on damaged data.
                errors[index] = str(error) or type(error).__name__
        sizes = [photo.pixels.shape[:2] for photo in photos.values()]
        for index, result in restore_photos(
            self._upscaler, photos.items(), self._settings, sizes=sizes
        ):
            if isinstance(result, UserError):
                errors[index] = str(result)
            else:
                results[index] = np.asarray(finish[index](result.photo))
        return {**batch, self._into: _column_of(results), f"{self._into}_error": np.array(errors)}


def _column_of(arrays: list[np.ndarray]) -> np.ndarray:
    """Arrays of any shapes, one per row."""
    if len({(array.shape, array.dtype) for array in arrays}) == 1:
        return np.stack(arrays)
    column = np.empty(len(arrays), object)
    column[:] = arrays
    return column
