"""Draws docs/fidelity.jpg: crops at 1:1 of one photo restored with several values of fidelity.

python benchmarks/figure_fidelity.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dossr_jax import Upscaler
from dossr_jax.image_io import read_image

ROOT = Path(__file__).parent.parent
SIDE = 240
VALUES = (0.0, 0.5, 0.8, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dossr-mini")
    parser.add_argument("--photos", nargs="+", type=Path, help="default: two of examples/")
    args = parser.parse_args()
    paths = args.photos or [ROOT / "examples" / name for name in ("city.png", "lake.png")]
    upscaler = Upscaler.from_pretrained(args.model)
    sheet = Image.new("RGB", (len(VALUES) * SIDE, 20 + len(paths) * SIDE), "white")
    draw = ImageDraw.Draw(sheet)
    for column, fidelity in enumerate(VALUES):
        draw.text((column * SIDE + 6, 4), f"fidelity {fidelity:g}", fill="black")
        settings = upscaler.settings(fidelity=fidelity)
        photos = [(row, read_image(path)) for row, path in enumerate(paths)]
        for row, result in upscaler.stream(photos, settings):
            top, left = ((side - SIDE) // 2 for side in result.image.shape[:2])
            crop = result.image[top : top + SIDE, left : left + SIDE]
            crop = Image.fromarray(np.ascontiguousarray(crop))
            sheet.paste(crop, (column * SIDE, 20 + row * SIDE))
    sheet.save(ROOT / "docs" / "fidelity.jpg", quality=88, subsampling=0)


if __name__ == "__main__":
    main()
