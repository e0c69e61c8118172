"""Cut a folder of photos into a bank of HR crops with degraded LR partners, on disk.

    python -m dossr_jax.data.bank PHOTOS BANK

BANK/train and BANK/validation then hold `hr.npy` (n, 256, 256, 3) and `lr.npy`
(n, presets, 64, 64, 3), both uint8, and BANK/bank.json says how they were made.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from dossr_jax.data.degradation import PRESETS, SCALE, degrade
from dossr_jax.errors import UserError

HR_SIZE = 256
SPLITS = ("train", "validation")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_HELD_OUT = 20  # one photo in so many is for validation
_HALVE_PIXELS = 4_000_000
# Mean absolute difference of neighbouring 8-bit luma values: below, a crop is sky or blur.
_FLAT = 2.5


def split_of(name: str) -> str:
    """The split that a photo belongs to, by a hash of its name: stable under added photos."""
    digest = hashlib.sha256(name.encode()).digest()
    return SPLITS[int.from_bytes(digest[:4], "big") % _HELD_OUT == 0]


def list_photos(folder: Path) -> list[Path]:
    """Photos below a folder, sorted.

    Raises:
      UserError: there are none.
    """
    photos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not photos:
        raise UserError(
            f"{folder}: no photos in it; give a folder of {', '.join(sorted(_SUFFIXES))}"
        )
    return photos


def open_photo(path: Path) -> np.ndarray:
    """Photo as (h, w, 3) uint8.

    Large ones, and gcompris's upscaled `erase_*`, are halved: sharper pixels, less noise.
    """
    image = Image.open(path).convert("RGB")
    if image.width * image.height >= _HALVE_PIXELS or path.name.startswith("erase_"):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    return np.asarray(image)


def flatness(crop: np.ndarray) -> float:
    """Mean absolute difference of neighbouring luma values, in 8-bit levels."""
    luma = crop.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()) / 2


def cut(
    path: Path, *, folder: Path, seed: int, stride: int, presets: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Crops (n, 256, 256, 3) of a photo on a jittered grid and their LR (n, presets, 64, 64, 3).

    Draws depend on `seed` and the photo's name alone. A photo that cannot be decoded gives n = 0.
    """
    name = path.relative_to(folder).as_posix()
    digest = hashlib.sha256(name.encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
    low = HR_SIZE // SCALE
    hr = np.empty((0, HR_SIZE, HR_SIZE, 3), np.uint8)
    lr = np.empty((0, len(presets), low, low, 3), np.uint8)
    try:
        photo = open_photo(path)
    except (UnidentifiedImageError, OSError):
        return hr, lr
    height, width = photo.shape[:2]
    if min(height, width) < HR_SIZE:
        return hr, lr
    crops = []
    for top in range(0, height - HR_SIZE + 1, stride):
        for left in range(0, width - HR_SIZE + 1, stride):
            y = min(top + int(rng.integers(stride // 4)), height - HR_SIZE)
            x = min(left + int(rng.integers(stride // 4)), width - HR_SIZE)
            crop = photo[y : y + HR_SIZE, x : x + HR_SIZE]
            if flatness(crop) >= _FLAT:
                crops.append(crop)
    if not crops:
        return hr, lr
    return np.stack(crops), np.stack([[degrade(rng, c, p) for p in presets] for c in crops])


def build(
    photos: Path, bank: Path, *, presets: Sequence[str], stride: int, seed: int, workers: int
) -> dict[str, int]:
    """Build a bank; returns crops by split.

    Raises:
      UserError: no photos, or none that yields a crop.
    """
    paths = list_photos(photos)
    work = functools.partial(cut, folder=photos, seed=seed, stride=stride, presets=presets)
    counts = {}
    unused: list[str] = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for split in SPLITS:
            chosen = [p for p in paths if split_of(p.name) == split]
            results = list(tqdm(pool.imap(work, chosen), total=len(chosen), desc=split))
            unused += [p.name for p, (hr, _) in zip(chosen, results, strict=True) if not len(hr)]
            counts[split] = sum(len(hr) for hr, _ in results)
            if counts[split] == 0:
                raise UserError(f"{photos}: no usable {split} crop; add sharper or larger photos")
            (bank / split).mkdir(parents=True, exist_ok=True)
            # Shuffled once here, so that any prefix of the bank is a fair sample of it.
            order = np.random.default_rng(seed).permutation(counts[split])
            for i, name in enumerate(("hr", "lr")):
                np.save(
                    bank / split / f"{name}.npy", np.concatenate([r[i] for r in results])[order]
                )
    about = {
        "presets": list(presets),
        "stride": stride,
        "seed": seed,
        "crops": counts,
        "photos": len(paths),
        "photos without a crop": unused,
    }
    (bank / "bank.json").write_text(json.dumps(about, indent=1))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of photos, searched recursively")
    parser.add_argument("bank", type=Path, help="folder to write")
    parser.add_argument("--presets", nargs="+", default=["realesrgan", "light"], choices=PRESETS)
    parser.add_argument("--stride", type=int, default=192, help="pixels between crops")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    args = parser.parse_args()
    try:
        counts = build(
            args.photos,
            args.bank,
            presets=args.presets,
            stride=args.stride,
            seed=args.seed,
            workers=args.workers,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print("crops: " + ", ".join(f"{n} {split}" for split, n in counts.items()))


if __name__ == "__main__":
    main()
