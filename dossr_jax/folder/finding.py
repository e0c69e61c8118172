"""Which files of a command line are photos to restore, and why the others are not."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.files.formats import RAW_SUFFIXES
from dossr_jax.folder import manifest

_READABLE = frozenset(files.SUFFIXES) | RAW_SUFFIXES
# Lower case. Those of macOS, Windows and network drives.
_SYSTEM = frozenset(
    {".ds_store", ".appledouble", "__macosx", "icon\r", "thumbs.db", "ehthumbs.db"}
    | {"desktop.ini", "$recycle.bin", "system volume information", "@eadir"}
)
_KIND = re.compile(r"\.(?!\d+$)\w+")


@dataclasses.dataclass(frozen=True)
class Input:
    """A file to restore, and its place below the folder that was named (or its bare name)."""

    path: Path
    relative: Path

    @property
    def root(self) -> Path:
        """The folder that `relative` starts from."""
        return self.path.parents[len(self.relative.parts) - 1]


@dataclasses.dataclass
class Found:
    """What a command line stands for.

    Attributes:
      inputs: each file once, in a fixed order.
      left_out: reason -> files and folders of named folders that are not restored for it.
      unreadable: a line for every subfolder that cannot be listed.
      results: real paths of results of earlier runs, which are nobody's input.
    """

    inputs: list[Input] = dataclasses.field(default_factory=list)
    left_out: dict[str, list[Path]] = dataclasses.field(default_factory=dict)
    unreadable: list[UserError] = dataclasses.field(default_factory=list)
    results: set[str] = dataclasses.field(default_factory=set)


class Problems(list[UserError]):
    """Everything that is wrong with a command line, so that it can be said at once."""

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Collect the UserError that the block may end with."""
        try:
            yield
        except UserError as error:
            self.append(error)


def suffix_of(name: str) -> str:
    """The suffix in lower case if it tells the kind of file; "" for `scan.001` and `Mr. Smith`."""
    suffix = Path(name).suffix
    return suffix.lower() if _KIND.fullmatch(suffix) else ""


def is_photo(name: str) -> bool:
    """Whether a file counts as a photo by its name alone."""
    return not _unwanted(name) and suffix_of(name) in _READABLE


def find(paths: Sequence[str | os.PathLike[str]], output: Path, problems: Problems) -> Found:
    """Find the photos that `paths`, files and folders, stand for; changes nothing.

    A file named explicitly is taken whatever it is. In folders and their subfolders a file counts
    by its suffix, or by its content where it has none. Folders that links lead to are not entered.

    Args:
      output: the folder for results. Where it lies inside an input folder it is left out, and where
        it is one, the results that its manifest lists are.
      problems: gets those of paths that are missing, and of folders without photos.
    """
    search = _Search(output)
    for path in map(Path, paths):
        with problems.collected():
            search.add(path)
    return search.found


class _Search:
    def __init__(self, output: Path):
        self.found = Found()
        self._output = os.path.realpath(output)
        self._taken: dict[str, str] = {}
        self._know_results(output)

    def add(self, path: Path) -> None:
        try:
            if path.is_dir():
                self._add_folder(path)
            elif path.is_file():
                self._take(Input(path, Path(path.name)))
            elif path.exists():
                raise UserError(f"{path}: neither a file nor a folder; name image files or folders")
            else:
                raise UserError(f"{path}: no such file or folder; check the path")
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path}: {reason}; check name and permissions") from error

    def _add_folder(self, root: Path) -> None:
        def fail(error: OSError) -> None:
            if Path(error.filename) == root:
                raise error
            line = f"{error.filename}: {error.strerror}; check its permissions"
            self.found.unreadable.append(UserError(line))

        before = {reason: len(paths) for reason, paths in self.found.left_out.items()}
        empty = True
        for folder, subfolders, names in os.walk(root, onerror=fail):
            here = Path(folder)
            self._know_results(here)
            subfolders[:] = self._wanted(here, sorted(subfolders), self._folder_reason)
            for name in self._wanted(here, sorted(names), self._file_reason):
                empty = False
                self._take(Input(here / name, (here / name).relative_to(root)))
        if empty:
            counts = {
                reason: len(paths) - before.get(reason, 0)
                for reason, paths in self.found.left_out.items()
            }
            inside = "; ".join(f"{n} {reason}" for reason, n in counts.items() if n)
            raise UserError(
                f"{root}: no images in this folder{f' ({inside})' if inside else ''}; "
                "name another folder, or files"
            )

    def _wanted(
        self, here: Path, names: list[str], reason_for: Callable[[Path], str | None]
    ) -> list[str]:
        """The names without a reason against them; the others are noted."""
        wanted = []
        for name in names:
            if reason := reason_for(here / name):
                self.found.left_out.setdefault(reason, []).append(here / name)
            else:
                wanted.append(name)
        return wanted

    def _folder_reason(self, path: Path) -> str | None:
        if os.path.islink(path):
            return "linked folder"
        if os.path.realpath(path) == self._output:
            return "the output folder"
        return _unwanted(path.name)

    def _file_reason(self, path: Path) -> str | None:
        if manifest.is_manifest(path.name) or os.path.realpath(path) in self.found.results:
            return "from an earlier run"
        if unwanted := _unwanted(path.name):
            return unwanted
        if not os.path.isfile(path):
            return "broken link" if os.path.islink(path) else "not a regular file, or no access"
        suffix = suffix_of(path.name)
        if suffix in _READABLE:
            return None
        return f"{suffix} is no kind that can be read" if suffix else _content_reason(path)

    def _take(self, item: Input) -> None:
        real, name = os.path.realpath(item.path), os.path.abspath(item.path)
        if real not in self._taken:
            self._taken[real] = name
            self.found.inputs.append(item)
        elif self._taken[real] != name:
            reason = "another name of a file that is restored"
            self.found.left_out.setdefault(reason, []).append(item.path)

    def _know_results(self, folder: Path) -> None:
        for record in manifest.read_records(folder).values():
            for name in (record.output, *record.stages):
                self.found.results.add(os.path.realpath(folder / name))


def _unwanted(name: str) -> str | None:
    if name.lower() in _SYSTEM or name.startswith("._"):
        return "system file"
    return "hidden" if name.startswith(".") else None


def _content_reason(path: Path) -> str | None:
    """Why a file without a telling suffix is no photo, by its first bytes."""
    try:
        files.probe(path)
    except UserError:
        return "no suffix, and no image by its content"
    return None
