"""A page about a folder of results: sizes, times, failures, and details before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dossr_jax import files, pages
from dossr_jax.errors import UserError
from dossr_jax.files import Photo, color
from dossr_jax.folder.manifest import Manifest, Parameters, Record
from dossr_jax.folder.planning import Task

# Results that are shown: a page of this many has about 5 MB.
MOST_PICTURES = 50
_DETAIL = 480  # pixels of the result
_QUALITY = 80

_STYLE = """\
.failed { color: #b00020; }
.pair { position: relative; display: inline-block; --x: 50%; max-width: 100%; }
.pair img { display: block; max-width: 100%; height: auto; }
.pair .before { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--x)) 0 0); }
.pair input { display: block; width: 100%; margin: 0; }"""
_HEAD = ("input", "result", "size", "seconds", "notes")
_FIGURE = """\
<figure><div class="pair">
<img src="{after}" width="{width}" height="{height}" alt="after">
<img class="before" src="{before}" width="{width}" height="{height}" alt="before">
<input type="range" value="50" aria-label="share of the input"
 oninput="this.parentNode.style.setProperty('--x', this.value + '%')">
</div><figcaption>{name}</figcaption></figure>"""


def write_report(
    path: Path, tasks: Sequence[Task], manifest: Manifest, parameters: Parameters
) -> None:
    """Write the page, one file that needs no other.

    The first results are shown, each a detail of its middle.

    Raises:
      UserError: what the disk refuses.
    """
    rows, figures, restored = [], [], 0
    for task in tasks:
        record = manifest.records.get(task.target.as_posix())
        rows.append(_row(task, record))
        if task.action != "kept" and record and record.status == "restored":
            restored += 1
            if len(figures) < MOST_PICTURES:
                figures.extend(_figure(task, manifest.folder))
    summary = f"{restored} of {len(tasks)} restored"
    if restored > len(figures):
        summary += f"; details of {len(figures)} of them are shown (left: the input)"
    body = [f"<p>{pages.text(parameters.text())}</p>", f"<p>{pages.text(summary)}</p>"]
    body += [*figures, pages.table(_HEAD, rows)]
    title = f"Restored photos in {manifest.folder}"
    files.write_file(path, pages.make_page(title, "\n".join(body), style=_STYLE))


def _row(task: Task, record: Record | None) -> str:
    failed = record is not None and record.status == "failed"
    if task.action == "kept" or record is None:
        cells = ["", "", "", task.reason]
    elif failed:
        cells = ["", "", "", *record.notes]
    else:
        sides = f"{record.width}x{record.height}"
        cells = [task.target, sides, f"{record.seconds:.1f}", "; ".join(record.notes)]
    return pages.row([task.input.path, *cells], kind="failed" if failed else "restored")


def _figure(task: Task, output: Path) -> list[str]:
    """A detail of a result and of its input, or nothing where one of them is gone."""
    try:
        after, before = files.read_photo(output / task.target), files.read_photo(task.input.path)
    except UserError:
        return []
    width, height = min(_DETAIL, after.width), min(_DETAIL, after.height)
    return [
        _FIGURE.format(
            width=width,
            height=height,
            after=_detail(after, width / after.width, height / after.height),
            before=_detail(before, width / after.width, height / after.height),
            name=pages.text(task.input.path),
        )
    ]


def _detail(photo: Photo, width: float, height: float) -> str:
    """The middle of a photo, shares of its sides, as a data URI."""
    pixels = color.requantize(photo.colors, 8)
    rows, columns = max(1, round(height * photo.height)), max(1, round(width * photo.width))
    top, left = (photo.height - rows) // 2, (photo.width - columns) // 2
    detail = pixels[top : top + rows, left : left + columns]
    return pages.picture(detail, quality=_QUALITY, profile=photo.profile)
