"""Photos in, restored photos out: colour spaces, transparency and metadata around the networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dossr_jax import files, image_io
from dossr_jax.errors import UserError
from dossr_jax.files import Photo, color
from dossr_jax.pipeline.settings import Settings

if TYPE_CHECKING:
    from dossr_jax.pipeline.maps import EtaMap
    from dossr_jax.pipeline.upscaler import Restored, Upscaler

Name = TypeVar("Name")


@dataclasses.dataclass(frozen=True)
class RestoredPhoto:
    """One result.

    Attributes:
      photo: round(scale h) x round(scale w) pixels in mode, depth and colour space of the input,
        with its metadata, mended for the new size.
      restored: the same and its stages as networks know colours. working: their colour space.
    """

    photo: Photo
    restored: Restored
    working: color.Working

    @property
    def seconds(self) -> float:
        """Its share of the wall time of its batch, including compilation."""
        return self.restored.seconds

    @property
    def pre_restored(self) -> Photo | None:
        """As the networks make it, without alpha, if it was kept; never of a photo in blocks."""
        return self._stage(self.restored.pre_restored)

    @property
    def decoded(self) -> Photo | None:
        """Before the colour fix; otherwise as pre_restored."""
        return self._stage(self.restored.decoded)

    def _stage(self, pixels: np.ndarray | None) -> Photo | None:
        if pixels is None:
            return None
        own = self.working.to_own(pixels, self.photo.bits)
        metadata = files.mended(self.photo.metadata, own.shape[1], own.shape[0])
        return dataclasses.replace(self.photo, pixels=own, metadata=metadata)


def restore_photos(
    upscaler: Upscaler,
    photos: Iterable[tuple[Name, Photo]],
    settings: Settings,
    *,
    sizes: Iterable[tuple[int, int]] = (),
    stages: bool = False,
    map_of: Callable[[Name], EtaMap | None] = lambda name: None,
) -> Iterator[tuple[Name, RestoredPhoto | UserError]]:
    """Restore photos as they come, see :meth:`dossr_jax.Upscaler.stream`.

    Args:
      photos: pairs (anything hashable that names the photo, photo), read only as far as needed.
      sizes: (h, w) of those to come, as far as they are known. stages: whether they are kept.
      map_of: gives the map of a photo, of its size; None where all of it is restored.

    Yields:
      (name, result, or what prevented it), not necessarily in the order of the input.
    """
    waiting: dict[Name, tuple[Photo, color.Working, EtaMap | None]] = {}

    def colors() -> Iterator[tuple[Name, np.ndarray]]:
        for name, photo in photos:
            lr, working = color.to_working(photo)
            eta_map = map_of(name)
            waiting[name] = photo, working, eta_map
            lr = lr if photo.alpha is None else fill_transparent(lr, photo.alpha)
            yield name, lr if eta_map is None else eta_map.laid_over(lr)

    for name, result in upscaler.stream(colors(), settings, sizes=sizes, stages=stages):
        photo, working, eta_map = waiting.pop(name)
        if isinstance(result, UserError):
            yield name, result
            continue
        pixels = working.to_own(result.image, photo.bits)
        if eta_map is not None and upscaler.geometry.factor == 1:
            pixels = eta_map.with_kept(pixels, photo.colors)
        if photo.alpha is not None:
            alpha = _restore_alpha(upscaler, photo.alpha, settings)
            if isinstance(alpha, UserError):
                yield name, alpha
                continue
            pixels = np.concatenate([pixels, alpha[..., None]], axis=-1)
        metadata = files.mended(photo.metadata, pixels.shape[1], pixels.shape[0])
        made = dataclasses.replace(photo, pixels=pixels, metadata=metadata)
        yield name, RestoredPhoto(made, result, working)


def fill_transparent(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (h, w, c) where alpha (h, w) is 0 become those of the nearest visible pixel.

    What a file stores there, often black or white, would come back as a fringe.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colors
    import scipy.ndimage  # here: it takes longer to import than most photos need it

    nearest = scipy.ndimage.distance_transform_edt(
        hidden, return_distances=False, return_indices=True
    )
    assert isinstance(nearest, np.ndarray)
    return colors[tuple(nearest)]


def _restore_alpha(
    upscaler: Upscaler, alpha: np.ndarray, settings: Settings
) -> np.ndarray | UserError:
    """Alpha (h, w) enlarged: edges as sharp as those of the picture, areas of one level exact.

    Networks that do not enlarge leave it alone.
    """
    height, width = image_io.output_size(alpha.shape[0], alpha.shape[1], settings.scale)
    if (alpha == alpha[0, 0]).all():
        return np.full((height, width), alpha[0, 0])
    factor = upscaler.geometry.factor
    if factor == 1:
        return image_io.resample(alpha[..., None], height, width)[..., 0]
    # The networks sharpen edges; they have nothing to invent in alpha.
    plain = dataclasses.replace(settings, scale=float(factor), diffuse=False, seed=0)
    _, result = next(upscaler.stream([(0, np.repeat(alpha[..., None], 3, -1))], plain))
    if isinstance(result, UserError):
        return result
    import scipy.ndimage

    least, most = (
        extreme(alpha, size=3, mode="nearest").repeat(factor, 0).repeat(factor, 1)
        for extreme in (scipy.ndimage.minimum_filter, scipy.ndimage.maximum_filter)
    )
    bounded = np.clip(result.image[..., :1], least[..., None], most[..., None])
    return image_io.resample(bounded, height, width)[..., 0]
