"""Draws docs/mini.png: the sample photos enlarged four times, bicubic beside dossr-mini.

python benchmarks/figure_mini.py [--model MODEL]
python benchmarks/figure_mini.py --photos RealSRSet --only dog foreman --output docs/mini_real.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dossr_jax import Upscaler
from dossr_jax.image_io import read_image, resample

ROOT = Path(__file__).parent.parent
SIDE = 360
COLUMNS = ("bicubic", "pre-restored", "dossr-mini, 5 steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dossr-mini")
    parser.add_argument("--photos", type=Path, default=ROOT / "examples", help="folder of PNGs")
    parser.add_argument("--only", nargs="+", help="names without suffix (default: all)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "mini.png")
    args = parser.parse_args()
    upscaler = Upscaler.from_pretrained(args.model)
    paths = sorted(p for p in args.photos.glob("*.png") if not args.only or p.stem in args.only)
    photos = {path: read_image(path) for path in paths}
    results = dict(upscaler.stream(photos.items(), upscaler.settings()))
    sheet = Image.new("RGB", (len(COLUMNS) * SIDE, 20 + len(photos) * SIDE), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(COLUMNS):
        draw.text((column * SIDE + 6, 4), title, fill="black")
    for row, (path, photo) in enumerate(photos.items()):
        height, width = (4 * side for side in photo.shape[:2])
        restored = results[path]
        pictures = (resample(photo, height, width), restored.pre_restored, restored.image)
        for column, picture in enumerate(pictures):
            top, left = ((side - SIDE) // 2 for side in picture.shape[:2])
            tile = Image.fromarray(np.ascontiguousarray(picture[top:, left:][:SIDE, :SIDE]))
            sheet.paste(tile, (column * SIDE, 20 + row * SIDE))
    sheet.save(args.output)


if __name__ == "__main__":
    main()
