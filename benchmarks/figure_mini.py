"""Draws docs/mini.jpg: crops of enlarged photos at 1:1, dossr-mini beside bicubic and Real-ESRGAN.

    python benchmarks/figure_mini.py [--model MODEL]

Without --photos: those in examples/, then a small face and print, from scikit-image.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage import data

from dossr_jax import Upscaler
from dossr_jax.image_io import read_image, resample

ROOT = Path(__file__).parent.parent
SIDE = 320
COLUMNS = ("bicubic", "Real-ESRGAN", "dossr-mini, pre-restored", "dossr-mini")
# Where a crop lies, as parts of the picture's height and width; others are from the middle.
CENTRES = {"face": (0.5, 0.5), "text": (0.3, 0.4)}


def hard_ones() -> dict[str, np.ndarray]:
    """A face of 60 px after JPEG, and printed text."""
    face = Image.fromarray(data.astronaut()[:224, 112:336]).resize((112, 112), Image.Resampling.BOX)
    file = io.BytesIO()
    face.save(file, "JPEG", quality=70)
    return {
        "face": np.asarray(Image.open(file)),
        "text": np.repeat(data.page()[:100, :160, None], 3, axis=2),
    }


def crop(picture: np.ndarray, name: str) -> Image.Image:
    """SIDE x SIDE pixels as they are."""
    centre = CENTRES.get(name, (0.5, 0.5))
    top, left = (
        min(max(0, round(c * side) - SIDE // 2), side - SIDE)
        for c, side in zip(centre, picture.shape[:2], strict=True)
    )
    return Image.fromarray(np.ascontiguousarray(picture[top : top + SIDE, left : left + SIDE]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dossr-mini")
    parser.add_argument("--photos", type=Path, help="folder of PNGs of at least 80 px")
    parser.add_argument("--only", nargs="+", help="names without suffix (default: all)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "mini.jpg")
    args = parser.parse_args()
    paths = sorted((args.photos or ROOT / "examples").glob("*.png"))
    photos = {p.stem: read_image(p) for p in paths if not args.only or p.stem in args.only}
    if args.photos is None:
        photos |= hard_ones()
    mini, gan = (Upscaler.from_pretrained(name) for name in (args.model, "realesrgan"))
    restored = dict(mini.stream(photos.items(), mini.settings(), stages=True))
    sharpened = dict(gan.stream(photos.items(), gan.settings()))
    sheet = Image.new("RGB", (len(COLUMNS) * SIDE, 20 + len(photos) * SIDE), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(COLUMNS):
        draw.text((column * SIDE + 6, 4), title, fill="black")
    for row, (name, photo) in enumerate(photos.items()):
        large = resample(photo, *(4 * side for side in photo.shape[:2]))
        ours = restored[name]
        pictures = (large, sharpened[name].image, ours.pre_restored, ours.image)
        for column, picture in enumerate(pictures):
            sheet.paste(crop(picture, name), (column * SIDE, 20 + row * SIDE))
    sheet.save(args.output, quality=90, subsampling=0)


if __name__ == "__main__":
    main()
