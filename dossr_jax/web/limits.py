"""What one request may ask of the server."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.files.formats import RAW_SUFFIXES
from dossr_jax.image_io import output_size


@dataclasses.dataclass(frozen=True)
class Limits:
    """All of them positive.

    Attributes:
      upload: megabytes of a file. pixels: millions, of a result. pictures: of a request, photos
        times variants. seconds: that a request may have been worked on when a picture of it begins.
      waiting: requests that wait at the same time. disk: megabytes of all uploads and results.
      keep: minutes that files are kept.
    """

    upload: float = 50.0
    pixels: float = 64.0
    pictures: int = 64
    seconds: float = 1800.0
    waiting: int = 50
    disk: float = 10_000.0
    keep: float = 30.0

    def check_photo(self, path: Path, scale: float) -> None:
        """Check a photo by its header, before anything is decoded.

        Raises:
          UserError: it is none that can be read, or its result would be too large.
        """
        if not path.exists():
            raise UserError(
                f"{path.name}: uploads are kept for {self.keep:g} minutes; choose the photos again"
            )
        if path.suffix.lower() in RAW_SUFFIXES:
            raise UserError(
                f"{path.name}: camera raw files are not taken here; develop it, or use infer.py"
            )
        try:
            probe = files.probe(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), path.name)) from error
        height, width = output_size(probe.height, probe.width, scale)
        if height * width > self.pixels * 1e6:
            raise UserError(
                f"{path.name}: {probe.width}x{probe.height} pixels become {width}x{height}, more "
                f"than {self.pixels:g} million; cut the photo or reduce the scale"
            )

    def check_count(self, photos: int, seeds: int) -> None:
        """Check the number of pictures that a request asks for.

        Raises:
          UserError: there is none, or there are too many.
        """
        if not photos:
            raise UserError("no photo yet; drop one, or choose a file or a folder")
        if photos * seeds > self.pictures:
            raise UserError(
                f"{photos} photos in {seeds} variants are more than {self.pictures} pictures; "
                "restore them in parts"
            )


_HELP = {
    "upload": "MB of a file that is uploaded",
    "pixels": "million pixels of a result",
    "pictures": "pictures per request: photos times variants",
    "seconds": "seconds of work per request, after which it stops between two pictures",
    "waiting": "requests that wait at the same time; further ones are asked to come later",
    "disk": "MB of all uploads and results together",
    "keep": "minutes until uploads and results are removed; closing the page removes results",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Flags for :func:`limits_of`."""
    group = parser.add_argument_group("limits")
    for field in dataclasses.fields(Limits):
        group.add_argument(
            f"--max-{field.name}" if field.name != "keep" else "--keep",
            dest=f"limit_{field.name}",
            metavar="N",
            type=type(field.default),
            default=field.default,
            help=f"{_HELP[field.name]} (default: {field.default:g})",
        )


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits of parsed options.

    Raises:
      UserError: one that is not positive.
    """
    values = {field.name: vars(args)[f"limit_{field.name}"] for field in dataclasses.fields(Limits)}
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"limit {name} {value:g}: give a positive number")
    return Limits(**values)
