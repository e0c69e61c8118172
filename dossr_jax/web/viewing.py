"""What browsers show of photos, and the slider between before and after."""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from dossr_jax import files, image_io
from dossr_jax.errors import UserError
from dossr_jax.files import Metadata, color
from dossr_jax.web.restoring import DETAIL, Made, middle

# Pixels of a result, at 1:1, on its card.
CARD = 320
_SHOWN = {"PNG": ".png", "JPEG": ".jpg .jpeg", "WEBP": ".webp", "AVIF": ".avif"}
_PREVIEWS = "previews"

STYLE = """\
.viewer .frame { width: min(100%, calc(var(--w) * var(--zoom))); }
.viewer[data-zoom="fit"] .frame { width: 100%; }
.viewer .view { overflow: auto; max-height: 75vh; }
.viewer .pair { position: relative; width: calc(var(--w) * var(--zoom)); }
.viewer .pair img { display: block; width: 100%; height: auto; max-width: none; margin: 0; }
.viewer .pair .before { position: absolute; inset: 0; height: 100%;
  clip-path: inset(0 calc(100% - var(--x)) 0 0); }
.viewer .pair .line { position: absolute; top: 0; bottom: 0; left: var(--x); width: 2px;
  background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
.viewer[data-zoom="fit"] .pair { width: 100%; }
.viewer[data-zoom="2"] .after, .viewer[data-zoom="4"] .after { image-rendering: pixelated; }
.viewer .bar { display: flex; flex-wrap: wrap; gap: .3em 1em; padding: .3em 0; }
.viewer .ends { justify-content: space-between; font-size: .8em; }
.viewer input[type=range] { display: block; width: 100%; height: 2.2em; margin: 0; }"""

# The divider stays where the slider is while the picture is moved under it.
SCRIPT = """\
function dossrSlide(element) {
  const viewer = element.closest('.viewer'), view = viewer.querySelector('.view');
  const share = viewer.querySelector('input[type=range]').value / 100;
  viewer.style.setProperty('--x', view.scrollLeft + share * view.clientWidth + 'px');
}
function dossrZoom(element) {
  const viewer = element.closest('.viewer'), view = viewer.querySelector('.view');
  const wide = view.scrollWidth, high = view.scrollHeight;
  const x = (view.scrollLeft + view.clientWidth / 2) / wide;
  const y = (view.scrollTop + view.clientHeight / 2) / high;
  viewer.dataset.zoom = element.value;
  viewer.style.setProperty('--zoom', parseFloat(element.value) || 1);
  view.scrollLeft = x * view.scrollWidth - view.clientWidth / 2;
  view.scrollTop = y * view.scrollHeight - view.clientHeight / 2;
  dossrSlide(element);
}"""

_VIEWER = """\
<div class="viewer" data-zoom="1" style="--w: {width}px; --zoom: 1; --x: 50%">
<div class="bar"><span>{caption}</span>{zooms}</div>
<div class="frame">
<div class="view" onscroll="dossrSlide(this)"><div class="pair">
<img class="after" src="{after}" alt="after" onload="dossrSlide(this)">
<img class="before" src="{before}" alt="before"><div class="line"></div>
</div></div>
<input type="range" value="50" step="0.1" aria-label="left of it before, right of it after"
 oninput="dossrSlide(this)">
<div class="bar ends"><span>◀ before</span><span>after ▶</span></div>
</div></div>"""
_ZOOMS = (("fit", "fit"), ("1", "1:1"), ("2", "2:1"), ("4", "4:1"))


def viewer(made: Made, base: str) -> str:
    """HTML of a result under its input; `base` is the address of files, before their path."""
    zooms = "".join(
        f'<label><input type="radio" name="zoom" value="{value}" onchange="dossrZoom(this)"'
        f"{' checked' if value == '1' else ''}> {name}</label>"
        for value, name in _ZOOMS
    )
    before, after = (base + quote(str(shown(path))) for path in (made.source, made.path))
    return _VIEWER.format(
        width=made.record.width,
        caption=html.escape(caption(made)),
        zooms=zooms,
        before=html.escape(before),
        after=html.escape(after),
    )


def caption(made: Made) -> str:
    """A line about a result."""
    record = made.record
    parts = [made.path.name, f"{record.width}x{record.height}", f"seed {made.seed}"]
    return ", ".join([*parts, f"{record.seconds:.1f} s", *record.notes])


def shown(path: Path) -> Path:
    """The file itself where browsers can show it, else a PNG of it that is made once."""
    try:
        probe = files.probe(path)
    except UserError:
        return path
    if path.suffix.lower() in _SHOWN.get(probe.format, "").split() and probe.frames == 1:
        return path
    preview = path.parent / _PREVIEWS / f"{path.name}.png"
    if not preview.exists():
        photo = dataclasses.replace(files.read_photo(path), levels=None, metadata=Metadata())
        files.write_photo(preview, photo)
    return preview


def card(made: Made) -> Path:
    """A picture of a result's middle at 1:1, that is made once."""
    path = made.path.parent / _PREVIEWS / f"{made.path.name}.card.png"
    if not path.exists():
        photo = files.read_photo(made.path)
        pixels = middle(photo.pixels, CARD)
        part = dataclasses.replace(photo, pixels=pixels, levels=None, metadata=Metadata())
        files.write_photo(path, part)
    return path


def stages(made: Made) -> list[tuple[Image.Image, str]]:
    """The pictures of a result's stages with their names, in their order."""
    if made.stages is None:
        return []
    found = made.stages
    height, width = found.result.shape[:2]
    pixels, _ = color.to_working(files.read_photo(made.source))
    low = middle(color.requantize(pixels, 8), DETAIL)
    pictures = [(image_io.resample(low, height, width), "input")]
    if found.steps or not np.array_equal(found.pre_restored, found.result):
        if not np.array_equal(found.pre_restored, pictures[0][0]):  # as without a pre-restorer
            pictures.append((found.pre_restored, "pre-restored"))
        count = len(found.steps)
        pictures += [(step, f"step {i} of {count}") for i, step in enumerate(found.steps, 1)]
        pictures.append((found.decoded, "decoded"))
    pictures.append((found.result, "result"))
    return [(Image.fromarray(np.ascontiguousarray(image)), name) for image, name in pictures]
