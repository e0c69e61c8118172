"""Draws docs/mini.png: the sample photos enlarged four times, bicubic beside dossr-mini.

python benchmarks/figure_mini.py [--model MODEL]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dossr_jax import Upscaler
from dossr_jax.image_io import read_image, resample
from dossr_jax.pipeline import Settings

ROOT = Path(__file__).parent.parent
SIDE = 360
COLUMNS = ("bicubic", "pre-restored", "dossr-mini, 5 steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dossr-mini")
    args = parser.parse_args()
    upscaler = Upscaler.from_pretrained(args.model)
    photos = {path: read_image(path) for path in sorted((ROOT / "examples").glob("*.png"))}
    results = dict(upscaler.stream(photos.items(), Settings()))
    sheet = Image.new("RGB", (len(COLUMNS) * SIDE, 20 + len(photos) * SIDE), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(COLUMNS):
        draw.text((column * SIDE + 6, 4), title, fill="black")
    for row, (path, photo) in enumerate(photos.items()):
        height, width = (4 * side for side in photo.shape[:2])
        restored = results[path]
        pictures = (resample(photo, height, width), restored.pre_restored, restored.image)
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(np.ascontiguousarray(picture[:SIDE, :SIDE]))
            sheet.paste(tile, (column * SIDE, 20 + row * SIDE))
    sheet.save(ROOT / "docs" / "mini.png")


if __name__ == "__main__":
    main()
