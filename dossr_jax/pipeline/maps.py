"""Maps of what is kept of a picture, and masks of what of it is missing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dossr_jax.config import FILLED, ConfigError
from dossr_jax.errors import UserError
from dossr_jax.files import Photo
from dossr_jax.files.color import requantize

if TYPE_CHECKING:
    from dossr_jax.pipeline.settings import Settings
    from dossr_jax.systems import System


@dataclasses.dataclass(frozen=True, eq=False)
class EtaMap:
    """How much of every pixel of a picture is kept.

    Attributes:
      levels: uint8 or uint16 (h, w). White keeps a pixel, black restores it as without a map.
      fills: whether black pixels are missing, and what the picture has there is not to be seen.
    """

    levels: np.ndarray
    fills: bool = False

    def laid_over(self, colors: np.ndarray) -> np.ndarray:
        """Colours (h, w, 3) with the map as a fourth channel of their dtype.

        What is missing becomes mid grey. A map that keeps nothing is left out: (h, w, 3).
        """
        if self.fills:
            grey = round(FILLED * np.iinfo(colors.dtype).max)
            colors = np.where(self.levels[..., None] == 0, colors.dtype.type(grey), colors)
        levels = self._levels_of(colors)
        return np.concatenate([colors, levels], axis=-1) if levels.any() else colors

    def with_kept(self, result: np.ndarray, colors: np.ndarray) -> np.ndarray:
        """A result (h, w, c) of the size of a picture with what is kept of its colours.

        Bit for bit, where conversions between colour spaces would round, and under transparency.
        One of another size comes back as it is.
        """
        if result.shape != colors.shape:
            return result
        return np.where(self._levels_of(colors) == np.iinfo(colors.dtype).max, colors, result)

    def _levels_of(self, colors: np.ndarray) -> np.ndarray:
        """The levels (h, w, 1) in the dtype of colours."""
        return requantize(self.levels, 8 * colors.itemsize)[..., None]


def as_map(photo: Photo, name: str, sides: tuple[int, int], *, mask: bool) -> EtaMap:
    """The map of a picture of these sides (h, w).

    Args:
      photo: grey. As a `mask` it is white, from mid grey on, where the picture is to be filled; all
        else is kept. name: for messages.

    Raises:
      UserError: another size, colours or transparent pixels.
    """
    if (photo.height, photo.width) != sides:
        raise UserError(
            f"{name}: {photo.width}x{photo.height} pixels, the picture has {sides[1]}x{sides[0]}; "
            "give it the size of the picture"
        )
    levels, alpha = photo.colors[..., 0], photo.alpha
    most = np.iinfo(levels.dtype).max
    if alpha is not None and (alpha != most).any():
        raise UserError(f"{name}: transparent in part; give a grey image without alpha")
    if (photo.colors != levels[..., None]).any():
        raise UserError(f"{name}: has colours; give a grey image")
    if not mask:
        return EtaMap(levels)
    return EtaMap(np.where(levels > most // 2, np.uint8(0), np.uint8(255)), fills=True)


def check_maps(system: System, config: Any, settings: Settings, *, mask: bool) -> None:
    """Refuse maps where there is nothing to be kept, and masks where nothing fills.

    Raises:
      ConfigError: in one line, with what to do.
    """
    from dossr_jax.systems import SYSTEMS  # here: settings need no networks

    what = "mask" if mask else "eta map"
    if "fidelity" not in system.settings:
        readers = ", ".join(other.title for other in SYSTEMS if "fidelity" in other.settings)
        raise ConfigError(f"{what}: {system.title} reads none, only {readers}; leave it out")
    if mask and getattr(config, "task", None) != "inpaint":
        raise ConfigError(
            f"mask: this model of {system.title} fills nothing; give one that inpaints"
        )
    if not settings.diffuse:
        raise ConfigError(f"{what}: without diffusion all is kept; leave it out")
