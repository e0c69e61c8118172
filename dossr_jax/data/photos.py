"""Fetch the free-licence photos that dossr-mini is trained on, out of Debian 12 packages.

    python -m dossr_jax.data.photos PHOTOS

Needs apt-get (after apt-get update) and dpkg-deb, but no root: packages are downloaded and
unpacked, not installed. PHOTOS/licences receives each package's copyright file, and
PHOTOS/MANIFEST.tsv the SHA-256 of every photo.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dossr_jax import files
from dossr_jax.commands import command_line
from dossr_jax.errors import UserError
from dossr_jax.temporary import temporary


class Package(NamedTuple):
    """Where a package keeps its photos; `skip` names drawings among them."""

    group: str
    patterns: tuple[str, ...]
    skip: tuple[str, ...] = ()


_BACKGROUNDS = "usr/share/backgrounds"
_PLASMA = (
    "BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite "
    "OneStandsOut Path summer_1am"
).split()
_LXQT = (
    "Valendas.png after-the-rain.jpg appleflower.png beam.png butterfly.png cloud.png drop.png "
    "flowers.png fog.jpg this-is-not-windows.jpg Butterfly-Kenneth-Wimer.jpg"
).split()
_GCOMPRIS = "erase explore_monuments explore_world_animals explore_farm_animals".split()

PACKAGES = {
    "endless-sky-high-dpi": Package(
        "endless_sky",
        ("usr/share/games/endless-sky/plugins/endless-sky-high-dpi/images/land/*.jpg",),
    ),
    "lomiri-wallpapers-16.04": Package(
        "lomiri",
        (f"{_BACKGROUNDS}/*_by_*.jpg",),
        ("umang_by_Abhishek_Mudgal.jpg", "analogpattern_by_Peter_Nerlich.jpg"),
    ),
    "lomiri-wallpapers-20.04": Package("lomiri", (f"{_BACKGROUNDS}/Kleiber_by_Lukas_Baubkus.jpg",)),
    "mate-backgrounds": Package("mate", (f"{_BACKGROUNDS}/mate/nature/*.jpg",)),
    "lxqt-themes": Package("lxqt", tuple(f"usr/share/lxqt/wallpapers/{n}" for n in _LXQT)),
    "plasma-workspace-wallpapers": Package(
        "plasma",
        tuple(f"usr/share/wallpapers/{n}/contents/images/2560x1600.jpg" for n in _PLASMA),
    ),
    "palapeli-data": Package("palapeli", ("usr/share/palapeli/collection/*.jpg",)),
    "tuxpaint-data": Package("tuxpaint", ("usr/share/tuxpaint/templates/*.jpg",)),
    "gcompris-qt-data": Package(
        "gcompris", tuple(f"usr/share/gcompris-qt/rcc/{n}.rcc" for n in _GCOMPRIS)
    ),
}
_MIN_WEBP_BYTES = 30_000  # smaller ones are icons


def embedded_webp(data: bytes) -> Iterator[bytes]:
    """WebP files inside a Qt resource file, which stores them uncompressed."""
    for match in re.finditer(rb"RIFF(....)WEBP", data, re.DOTALL):
        end = match.start() + 8 + int.from_bytes(match[1], "little")
        if end <= len(data):
            yield data[match.start() : end]


def photos_in(path: Path, package: Package) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the photos that one file of a package holds."""
    data = path.read_bytes()
    if path.suffix == ".rcc":
        images = [image for image in embedded_webp(data) if len(image) > _MIN_WEBP_BYTES]
        yield from ((f"{path.stem}_{i:02d}.webp", image) for i, image in enumerate(images))
    elif package.group == "plasma":  # all of them are called 2560x1600.jpg
        yield f"{path.parents[2].name}.jpg", data
    elif path.name not in package.skip:
        yield path.name, data


def fetch(out: Path) -> int:
    """Fetch all packages into `out`; returns the number of photos.

    Raises:
      UserError: a package cannot be had or no longer holds what is listed here, or `out` cannot be
        written.
    """
    files.check_folder(out)
    rows = []
    (out / "licences").mkdir(parents=True, exist_ok=True)
    with temporary(out / "work", folder=True) as work:
        _run(["apt-get", "download", "-q=2", *PACKAGES], work)
        for name, package in PACKAGES.items():
            archive = next(work.glob(f"{name}_*.deb"))
            root = work / name  # made by dpkg-deb
            _run(["dpkg-deb", "-x", str(archive), str(root)], work)
            (out / package.group).mkdir(exist_ok=True)
            for pattern in package.patterns:
                photos = sorted(p for p in root.glob(pattern) if not p.is_symlink())
                if not photos:
                    raise UserError(f"{name}: holds no {pattern}; use the package of Debian 12")
                for path in photos:
                    for file, data in photos_in(path, package):
                        (out / package.group / file).write_bytes(data)
                        rows.append((package.group, file, hashlib.sha256(data).hexdigest()))
            shutil.copy(
                root / "usr/share/doc" / name / "copyright", out / "licences" / f"{name}.copyright"
            )
            shutil.rmtree(root)
    (out / "MANIFEST.tsv").write_text("".join("\t".join(row) + "\n" for row in sorted(rows)))
    return len(rows)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found; run this on Debian or Ubuntu") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{command[0]} failed ({last}); run apt-get update, or try again") from None


@command_line("stopped; the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder to write")
    print(f"{fetch(parser.parse_args(argv).photos)} photos")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
