"""Which files belong together: by their path below the folder without the suffix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dossr_jax import image_io
from dossr_jax.errors import UserError

_SHOWN = 5


def images_in(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Images in a folder and its subfolders.

    Returns:
      (name -> file, problems). Names are paths below the folder without suffix. Where several
      files have one name, none of them is taken, and they are a problem.

    Raises:
      UserError: no such folder, or no images in it.
    """
    if folder.is_file():
        raise UserError(f"{folder}: a file; give the folder that it is in")
    files: dict[str, list[Path]] = {}
    for image in image_io.find_images([folder]):
        files.setdefault(image.relative.with_suffix("").as_posix(), []).append(image.path)
    problems = [
        f"{' and '.join(map(str, paths))}: one name for several images; keep one of them"
        for paths in files.values()
        if len(paths) > 1
    ]
    return {name: paths[0] for name, paths in files.items() if len(paths) == 1}, problems


def common(
    a: Mapping[str, Path], b: Mapping[str, Path], folders: tuple[Path, Path]
) -> tuple[list[str], list[str]]:
    """Names that both have, in order; and as problems, those that only one of them has.

    Raises:
      UserError: they have no name in common.
    """
    names = sorted(a.keys() & b.keys())
    first, second = folders
    if not names:
        raise UserError(
            f"{first} and {second}: no names in common ({_listed(a)}; {_listed(b)}); "
            "files pair by their name without suffix"
        )
    problems = [
        f"{has}: without a partner in {lacks}: {_listed(sorted(odd))}"
        for has, lacks, odd in (
            (first, second, a.keys() - b.keys()),
            (second, first, b.keys() - a.keys()),
        )
        if odd
    ]
    return names, problems


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
