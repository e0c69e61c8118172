"""Draws docs/degradation.png: one crop, degraded several times by every preset.

python -m dossr_jax.data.photos PHOTOS
python benchmarks/figure_degradation.py "PHOTOS/endless_sky/nasa3@2x.jpg"
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

from dossr_jax.data.degradation import PRESETS, choose_presets, degrade

ROOT = Path(__file__).parent.parent
SIDE = 160
DRAWS = 6
LABEL = 78


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("--left", type=int, default=260, help="of the crop in the halved photo")
    parser.add_argument("--top", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    box = args.left, args.top, args.left + SIDE, args.top + SIDE
    crop = Image.open(args.photo).convert("RGB").reduce(2).crop(box)
    hr = np.repeat(np.asarray(crop, np.float32)[None] / 255, DRAWS, axis=0)
    keys = jax.random.split(jax.random.key(args.seed), DRAWS)

    sheet = Image.new("RGB", (LABEL + DRAWS * SIDE, (1 + len(PRESETS)) * SIDE), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((6, SIDE // 2), "HR", fill="black")
    sheet.paste(crop, (LABEL, 0))
    for row, name in enumerate(PRESETS, start=1):
        program = jax.jit(functools.partial(degrade, presets=choose_presets([name])))
        draw.text((6, row * SIDE + SIDE // 2), name, fill="black")
        for column, image in enumerate(np.asarray(program(keys, hr))):
            tile = Image.fromarray(np.round(image * 255).astype(np.uint8))
            tile = tile.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(tile, (LABEL + column * SIDE, row * SIDE))
    sheet.save(ROOT / "docs" / "degradation.png")


if __name__ == "__main__":
    main()
