"""The systems whose folders are compared, and the folder of a crosscheck."""

from __future__ import annotations

from pathlib import Path

from dossr_jax.crosscheck import dasr, dossr, resshift, swinir
from dossr_jax.crosscheck.folder import ARRAYS, CONFIG, WEIGHTS, Folder, read_arrays
from dossr_jax.crosscheck.suite import Suite
from dossr_jax.errors import UserError
from dossr_jax.pytorch.infer import read_settings
from dossr_jax.pytorch.readers import read_checkpoint

SUITES: tuple[Suite, ...] = (dossr.SUITE, dasr.SUITE, swinir.SUITE, resshift.SUITE)


def open_folder(path: str | Path) -> tuple[Suite, Folder]:
    """Read a folder and tell its system; parameters stay on disk until a model is built.

    Raises:
      UserError: something is missing, truncated, or does not fit the configuration.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; give one with {WEIGHTS}, {CONFIG} and {ARRAYS} in it"
        )
    state = read_checkpoint(path / WEIGHTS)
    settings = read_settings(path / CONFIG)
    suite = next((suite for suite in SUITES if suite.recognise(settings)), None)
    if suite is None:
        raise UserError(f"{settings.path}: the configuration of no known system; check the file")
    arrays = read_arrays(path / ARRAYS)
    return suite, Folder(path, suite.read(settings, state, path / ARRAYS), arrays)
