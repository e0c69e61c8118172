"""The header of a model file: format and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dossr_jax import config as config_lib
from dossr_jax.config import ConfigError, DoSSRConfig
from dossr_jax.errors import UserError

FORMAT = "dossr_jax/1"
BUFFER_PREFIX = "buffers."


def metadata_for(config: DoSSRConfig, notes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Make the header entries of a model file."""
    return {"format": FORMAT, "config": config_lib.to_json(config), **(notes or {})}


def read_config(path: str | Path, metadata: Mapping[str, str]) -> DoSSRConfig:
    """Read the configuration in a model file's header.

    Raises:
      UserError: the file is not one of ours.
    """
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a dossr_jax model; convert it first: python -m dossr_jax.convert --help"
        )
    try:
        return config_lib.from_json(DoSSRConfig, metadata["config"])
    except (KeyError, TypeError, ConfigError) as error:
        raise UserError(
            f"{path}: its configuration cannot be read ({error}); convert it again "
            "with this version"
        ) from error
