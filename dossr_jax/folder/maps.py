"""The maps of the photos of a command line: one for all, or a folder of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.folder.finding import Input, is_photo
from dossr_jax.folder.manifest import content_of
from dossr_jax.pipeline.maps import EtaMap, as_map


@dataclasses.dataclass(frozen=True)
class MapFile:
    """The file of a map, or of a mask, see :func:`dossr_jax.pipeline.maps.as_map`."""

    path: Path
    mask: bool

    def __str__(self) -> str:
        return f"{'mask' if self.mask else 'eta map'} {self.path.name}"

    def mark(self) -> str:
        """What it is and the SHA-256 of its content; raises OSError."""
        return f"{'mask' if self.mask else 'eta map'} {content_of(self.path).sha256}"

    def read(self, sides: tuple[int, int]) -> EtaMap:
        """The map of a photo of these sides (h, w).

        Raises:
          UserError: it cannot be read, or is none of this photo.
        """
        return as_map(files.read_photo(self.path), str(self.path), sides, mask=self.mask)


def maps_of(inputs: Sequence[Input], place: Path, *, mask: bool) -> list[MapFile | UserError]:
    """The map of every photo: `place` itself, or the image of the same name in this folder.

    Below a folder that was named, maps have the places of their photos. Suffixes may differ, if
    there is one such image alone.

    Raises:
      UserError: no such file or folder. Of single photos it is returned.
    """
    if not place.exists():
        raise UserError(f"{place}: no such file or folder; check the path")
    if not place.is_dir():
        return [MapFile(place, mask)] * len(inputs)
    images: dict[Path, list[str]] = {}
    found: list[MapFile | UserError] = []
    for item in inputs:
        folder, name = place / item.relative.parent, item.relative.name
        if folder not in images:
            names = os.listdir(folder) if folder.is_dir() else []
            images[folder] = sorted(filter(is_photo, names))
        like = [n for n in images[folder] if Path(n).stem == Path(name).stem]
        if name in like or len(like) == 1:
            found.append(MapFile(folder / (name if name in like else like[0]), mask))
        elif like:
            found.append(UserError(f"{folder} has {' and '.join(like)} for it; leave one of them"))
        else:
            found.append(UserError(f"{folder} has no image {Path(name).stem}.png for it; add one"))
    return found
