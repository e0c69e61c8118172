"""Builder by which TensorFlow Datasets knows prepared data sets as `dossr_pairs`.

    import dossr_jax.data.tfds_builder
    tfds.data_source("dossr_pairs", split="train", data_dir="DATA")

DATA is what dossr_jax.data.prepare wrote, where it lies: nothing is copied.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.read_only_builder import ReadOnlyBuilder

from dossr_jax.data.sources import INFO_FILE


class DossrPairs(ReadOnlyBuilder):
    """Reads a prepared data set; without `data_dir` that in the folder TFDS_DATA_DIR.

    Features are `hr`, `name` and, in pairs, `lr` and `pre`. The data set is the folder itself, or
    dossr_pairs/VERSION in it.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a configuration is asked for; there are none.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_dir: str | os.PathLike[str] | None = None, **options: Any):
        default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        folder = Path(data_dir or default).expanduser()
        if options.get("config"):
            raise ValueError(f"dossr_pairs has no configuration {options['config']!r}")
        if not (folder / INFO_FILE).exists():
            folder = folder / "dossr_pairs" / str(options.get("version") or self.VERSION)
        super().__init__(folder, file_format=options.get("file_format"))
        self._original_state = {"data_dir": os.fspath(folder)}  # what pickle calls __init__ with
