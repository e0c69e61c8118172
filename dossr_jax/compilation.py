"""Compiled programs are kept on disk, so that the next start need not compile them again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

# A whole SD 2.1 program is about 20 MB for a GPU and 5 MB for a CPU; the oldest go first.
_MOST_BYTES = 2 * 2**30
# The subfolder for programs as they are before XLA compiles them.
_TRACED = "traced"
_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_programs() -> Path | None:
    """Let JAX keep every compiled program in the user's cache folder; call it before compiling.

    Returns:
      The folder for programs that are traced, None where nothing can be kept.

    Programs depend on device, versions and their own text, all of which JAX makes part of their
    names. Where JAX's own variable names a folder, that and its other settings stay as they are;
    where the user's folder cannot be written, nothing is kept.
    """
    if named := os.environ.get(_VARIABLE):
        return Path(named) / _TRACED
    folder = Path(platformdirs.user_cache_dir("dossr_jax", appauthor=False)) / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    import jax  # here: --help needs none

    for name, value in {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": _MOST_BYTES,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }.items():
        jax.config.update(name, value)
    return folder / _TRACED
