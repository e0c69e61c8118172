"""Draws docs/samplers.png from the lines that benchmarks/samplers.py printed.

python benchmarks/samplers.py > LINES
python benchmarks/figure_samplers.py LINES
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parent.parent
COLOURS = {
    "published": "#c0392b",
    "published, order 2": "#e59866",
    "jump, order 2": "#888888",
    "asinh": "#1f5fbf",
    "asinh, final denoising": "#5dade2",
}
WIDTH, HEIGHT, MARGIN, TOP = 400, 330, 56, 60
LOW, HIGH = 2e-3, 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path)
    lines = [json.loads(x) for x in parser.parse_args().lines.read_text().splitlines()]
    lines = [x for x in lines if "w1" in x]
    cases = list(dict.fromkeys(x["case"] for x in lines))
    sheet = Image.new("RGB", (len(cases) * WIDTH + 20, HEIGHT + TOP + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, case in enumerate(cases):
        left = column * WIDTH + MARGIN

        def place(steps: float, w1: float, left: int = left) -> tuple[float, float]:
            x = left + (WIDTH - MARGIN - 20) * math.log(steps / 2) / math.log(5)
            part = math.log(max(w1, LOW) / LOW) / math.log(HIGH / LOW)
            return x, TOP + HEIGHT - HEIGHT * part

        draw.text((left, TOP - 24), f"{case}: W1 to the truth", fill="black", font=font)
        for level in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
            draw.line([place(2, level), place(10, level)], fill="#e4e4e4")
            draw.text((left - 46, place(2, level)[1] - 8), f"{level:g}", fill="black", font=font)
        for steps in (2, 3, 4, 5, 7, 10):
            x, y = place(steps, LOW)
            draw.text((x - 4, y + 6), str(steps), fill="black", font=font)
        draw.text((left + 110, TOP + HEIGHT + 24), "evaluations", fill="black", font=font)
        floor = next(x["floor"] for x in lines if x["case"] == case)
        (x0, y), (x1, _) = place(2, floor), place(10, floor)
        for x in range(int(x0), int(x1), 8):
            draw.line([(x, y), (x + 4, y)], fill="black")
        draw.text((x0 + 4, y - 18), "second draw of the truth", fill="black", font=font)
        for name, colour in COLOURS.items():
            points = [
                place(x["steps"], x["w1"])
                for x in lines
                if x["case"] == case and x["sampler"] == name
            ]
            draw.line(points, fill=colour, width=2)
            for x, y in points:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    x = MARGIN
    for name, colour in COLOURS.items():
        draw.line([(x, 18), (x + 24, 18)], fill=colour, width=3)
        draw.text((x + 30, 9), name, fill="black", font=font)
        x += 50 + int(draw.textlength(name, font=font))
    sheet.save(ROOT / "docs" / "samplers.png")


if __name__ == "__main__":
    main()
