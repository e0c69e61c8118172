"""A page that shows a comparison: the table of means, and details of images under a slider.

It is one file, shown by any browser from the disk. Its script lays two results over one another;
without scripts all results stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from dossr_jax import files, pages
from dossr_jax.errors import UserError
from dossr_jax.evaluate import report
from dossr_jax.evaluate.report import Result
from dossr_jax.evaluate.sets import ImageSet
from dossr_jax.image_io import resample

DETAIL = 384  # pixels, the width of a phone's page; about 200 kB, as nothing is lost
_LR = "LR, bicubic"
_BICUBIC = "bicubic"  # the baseline, which takes the place of the LR image
_STYLE = """\
td, th { text-align: right; }
td:first-child, th:first-child { text-align: left; }
.table, .details, .scroll { overflow-x: auto; }
.details { display: flex; }
img { display: block; image-rendering: pixelated; }
figcaption, .scores { font-size: 12px; white-space: pre-line; }
.bar { position: sticky; top: 0; z-index: 1; padding: .4em 0; background: Canvas; }
.bar label { margin-right: 1em; white-space: nowrap; }
.stage { position: relative; overflow: hidden; cursor: ew-resize; user-select: none; }
.stage img, .stage i, .stage b { position: absolute; top: 0; pointer-events: none; }
.stage i { height: 100%; border-left: 1px solid #fff; box-shadow: 0 0 2px #000; }
.stage b { font-size: 12px; padding: 0 .4em; color: #fff; background: #0009; }
.stage .left { left: 0; }
.stage .right { right: 0; }
input[type=range] { max-width: 100%; margin: .3em 0; display: block; }
@media (max-width: 30em) { body { margin: 3px; } }"""


class Gallery:
    """Restored images that a page is to show, in files of a folder until all of them are there."""

    def __init__(self, folder: Path, names: Sequence[str]):
        """Begin with none.

        Args:
          folder: for temporary files. names: of the images to show.
        """
        self.names = list(names)
        self._folder = folder
        self._kept: dict[tuple[str, str], tuple[Path, tuple[int, ...]]] = {}

    def add(self, result: str, name: str, image: np.ndarray) -> None:
        """Keep an image uint8 (h, w, 3) of a result if it is one of those to show."""
        if name in self.names:
            path = self._folder / str(len(self._kept))
            files.write_file(path, image.tobytes())
            self._kept[result, name] = path, image.shape

    def get(self, result: str, name: str) -> np.ndarray | None:
        """An image, None where it was not restored."""
        if (result, name) not in self._kept:
            return None
        path, shape = self._kept[result, name]
        return np.fromfile(path, np.uint8).reshape(shape)


def make_page(
    results: Sequence[Result],
    metrics: Sequence[str],
    gallery: Gallery,
    images: ImageSet,
    notes: Sequence[str],
    *,
    detail: int = DETAIL,
) -> bytes:
    """The page, one file that needs no other.

    Args:
      notes: lines below the table.
      detail: side of the square that is shown of every image, in pixels.
    """
    head, *rows = report.mean_rows(results, metrics)
    body = ['<div class="table">', pages.table(head, map(pages.row, rows)), "</div>"]
    for lines in ([f"{r.name}: {r.description}" for r in results], notes):
        body.append(f"<p>{'<br>'.join(map(pages.text, lines))}</p>")
    for name in gallery.names:
        body += _details(name, results, metrics, gallery, images, detail)
    script = (resources.files("dossr_jax.evaluate") / "slider.js").read_text("utf-8")
    return pages.make_page("Evaluation", "\n".join(body), style=_STYLE, script=script)


def _details(
    name: str,
    results: Sequence[Result],
    metrics: Sequence[str],
    gallery: Gallery,
    images: ImageSet,
    side: int,
) -> Iterator[str]:
    """One image: the part in which the results differ most, a pixel of it per pixel."""
    found = [(r, image) for r in results if (image := gallery.get(r.name, name)) is not None]
    if not found:
        return
    hr = _read(images.reference, name) if images.hr is not None else None
    shape = found[0][1].shape if hr is None else hr.shape
    found = [(r, image) for r, image in found if image.shape == shape]
    shown = [(r.name, image, _scores(r, name, metrics)) for r, image in found]
    if name in images.names and all(r.name != _BICUBIC for r, _ in found):
        lr = _read(images.input, name)
        if lr is not None:
            shown.insert(0, (_LR, resample(lr[..., :3], *shape[:2]), ""))
    compared = [image for r, image in found if r.name != _BICUBIC]
    if hr is not None:
        shown.append(("HR", hr, ""))
    if len(compared) < 2:
        compared = [image for _, image, _ in shown]
    top, left = place_of_difference(compared, side)
    place = slice(top, top + side), slice(left, left + side)
    yield "<section>"
    yield f"<h2>{pages.text(name)}</h2>"
    yield f"<p>from column {left}, row {top} of {shape[1]}x{shape[0]} pixels</p>"
    yield '<div class="details">'
    yield from (_figure(title, image[place], below) for title, image, below in shown)
    yield "</div>"
    yield "</section>"


def place_of_difference(images: Sequence[np.ndarray], side: int) -> tuple[int, int]:
    """Row and column of the square in which images differ most: by their variance at each pixel.

    Args:
      images: uint8 (h, w, 3), of one shape.
      side: of the square in pixels; where an image is less, the square is cut.

    Returns:
      Its top left corner; of equally good ones the first, row by row.
    """
    count = len(images)
    total, squares = (np.zeros(images[0].shape, np.int64) for _ in range(2))
    for image in images:
        total += image
        squares += image.astype(np.int64) ** 2
    # Whole numbers: the same place everywhere.
    variance = (count * squares - total**2).sum(axis=-1)
    sums = np.pad(variance.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    rows, columns = (min(side, length) for length in variance.shape)
    inside = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns]
    inside += sums[:-rows, :-columns]
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    return int(row), int(column)


def _read(read: Callable[[str], np.ndarray | None], name: str) -> np.ndarray | None:
    """An image of the set, None where it cannot be read: what is wrong has been said."""
    try:
        return read(name)
    except UserError:
        return None


def _scores(result: Result, name: str, metrics: Sequence[str]) -> str:
    values = result.scores.get(name, {})
    return "\n".join(f"{metric} {report.number(values.get(metric))}" for metric in metrics)


def _figure(title: str, detail: np.ndarray, below: str) -> str:
    height, width = detail.shape[:2]
    source = pages.picture(detail, quality=None)
    return (
        f'<figure><img src="{source}" width="{width}" height="{height}" alt="{pages.text(title)}">'
        f"<figcaption><b>{pages.text(title)}</b>\n{pages.text(below)}</figcaption></figure>"
    )
