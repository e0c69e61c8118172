"""Names of results: distinct, predictable, and never that of an input."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import string
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.folder.finding import Found, Input, Problems, is_photo, suffix_of

SAME = "same"
_LONGEST = 255  # bytes of a file name, on the usual file systems
_FIELDS = ("stem", "suffix", "scale", "model", "seed")


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a result is named after its input.

    Attributes:
      template: of the name without suffix, with the fields {stem}, {suffix} (of the input, without
        its dot), {scale}, {model} and {seed}.
      format: suffix of the results without its dot, or "same" for that of the input.
      values: of the fields that are the same for all inputs.

    Raises:
      UserError: a template with other fields, with none of the input's name, or with a folder.
    """

    template: str
    format: str
    values: Mapping[str, str]

    def __post_init__(self) -> None:
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(self.template)} - {None}
            if unknown := fields - {*_FIELDS}:
                raise self._error(f"unknown field {{{min(map(str, unknown))}}}")
            sample = self.render("stem", "suffix")
        except (ValueError, LookupError) as error:
            raise self._error(f"cannot be read ({error})") from error
        if "stem" not in fields:
            raise self._error("without {stem}, all results would have one name")
        if set(sample) & {"/", "\\", "\0"}:
            raise self._error("a name, not a path, is wanted")

    def _error(self, problem: str) -> UserError:
        known = " ".join(f"{{{field}}}" for field in _FIELDS)
        return UserError(f"name {self.template!r}: {problem}; write text around {known}")

    def render(self, stem: str, suffix: str) -> str:
        """The name without its suffix."""
        return self.template.format(stem=stem, suffix=suffix, **self.values)

    def suffix(self, path: Path) -> str:
        """The suffix of the result, with its dot."""
        if self.format != SAME:
            return f".{self.format}"
        known = suffix_of(path.name)
        kind = files.SUFFIXES.get(known)
        if not known:
            with contextlib.suppress(UserError):  # It will be said when it is read.
                kind = files.probe(path).format
        if kind not in files.WRITABLE:
            return ".png"
        return path.suffix if known else files.WRITABLE[kind].suffix


def name_results(
    found: Found, naming: Naming, output: Path, stages: Sequence[str], problems: Problems
) -> list[tuple[Path, tuple[Path, ...]]]:
    """Name the result of every input and its stages, relative to the output folder.

    A result has the name of its input with another suffix. Where another photo in the folder of
    the input has a claim to that name, only one with the suffix of the results keeps it, and the
    others are named with theirs: a.jpg beside a.png becomes a_jpg.png. This does not depend on
    which of them are restored. Names that still differ in case alone, or not at all, are told
    apart by a hash of the input's name, and so are names that are too long.

    Args:
      problems: gets what names cannot solve: results of different folders under one name, and
        results in the place of inputs or stages.
    """
    place = _Places(found, output)
    siblings = _Siblings(naming, found.results)
    results = [place.claim(item, siblings.name(item.path)) for item in found.inputs]
    named = []
    for item, result in zip(found.inputs, results, strict=True):
        files_of_stages = tuple(
            result.with_name(_fit(result.stem, f"_{stage}{result.suffix}", item.relative))
            for stage in stages
        )
        for file in files_of_stages:
            place.claim_exactly(item, file)
        named.append((result, files_of_stages))
    problems.extend(place.problems())
    return named


class _Siblings:
    """Names by the photos that share a folder."""

    def __init__(self, naming: Naming, results: set[str]):
        self._naming = naming
        self._results = results
        self._claims: dict[Path, dict[str, list[str]]] = {}

    def name(self, path: Path) -> tuple[str, str]:
        """Stem and suffix of the result."""
        suffix, kind = self._naming.suffix(path), suffix_of(path.name)
        others = [n for n in self._in(path.parent).get(self._key(path), ()) if n != path.name]
        stem = path.stem if kind else path.name
        if kind and kind != suffix.lower() and others:
            stem = f"{stem}_{path.suffix[1:]}"
        return self._naming.render(stem, kind[1:]), suffix

    def _in(self, folder: Path) -> dict[str, list[str]]:
        """Name of a result -> photos in the folder that would have it."""
        if folder not in self._claims:
            claims = defaultdict(list)
            try:
                names = sorted(filter(is_photo, os.listdir(folder)))
            except OSError:  # What cannot be listed may hold a photo all the same.
                names = []
            for path in (folder / name for name in names):
                if os.path.realpath(path) not in self._results:
                    claims[self._key(path)].append(path.name)
            self._claims[folder] = claims
        return self._claims[folder]

    def _key(self, path: Path) -> str:
        stem = path.stem if suffix_of(path.name) else path.name
        rendered = self._naming.render(stem, suffix_of(path.name)[1:])
        return _fold(rendered + self._naming.suffix(path))


class _Places:
    """Who is to be written where."""

    def __init__(self, found: Found, output: Path):
        self._output = output
        self._originals = {os.path.realpath(item.path) for item in found.inputs}
        self._owners: dict[str, Input] = {}
        self._clashes: list[tuple[Input, Input, Path]] = []
        self._replaced: list[tuple[Input, Path]] = []

    def claim(self, item: Input, name: tuple[str, str]) -> Path:
        """The result of an input that would have a name (stem, suffix)."""
        stem, suffix = name
        place = item.relative.with_name(_fit(stem, suffix, item.relative))
        other = self._owners.get(_fold(str(place)))
        if other and other.root == item.root:
            hashed = f"{stem}_{_hash(item.relative)}"
            place = item.relative.with_name(_fit(hashed, suffix, item.relative))
        return self.claim_exactly(item, place)

    def claim_exactly(self, item: Input, place: Path) -> Path:
        other = self._owners.setdefault(_fold(str(place)), item)
        if other is not item:
            self._clashes.append((other, item, place))
        elif os.path.realpath(self._output / place) in self._originals:
            self._replaced.append((item, place))
        return place

    def problems(self) -> list[UserError]:
        """One line per kind of problem."""
        lines = []
        if self._replaced:
            item, place = self._replaced[0]
            lines.append(
                f"{item.path}: its result would take the place of {self._output / place}, which is "
                f"to be restored as well{_more(self._replaced)}; choose another output folder, or "
                "add to the names with --suffix"
            )
        if self._clashes:
            other, item, place = self._clashes[0]
            lines.append(
                f"{other.path} and {item.path} would both be written to {self._output / place}"
                f"{_more(self._clashes)}; restore them into different output folders"
            )
        return [UserError(line) for line in lines]


def _more(cases: Sequence[object]) -> str:
    return f" (and {len(cases) - 1} more cases)" if len(cases) > 1 else ""


def _fold(name: str) -> str:
    """What file systems that ignore case, or the form of accents, compare."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _hash(relative: Path) -> str:
    return hashlib.sha256(os.fsencode(relative.as_posix())).hexdigest()[:8]


def _fit(stem: str, suffix: str, relative: Path) -> str:
    """Both together, the stem cut and marked by a hash where they are too long."""
    if len(os.fsencode(stem + suffix)) <= _LONGEST:
        return stem + suffix
    tail = f"_{_hash(relative)}{suffix}"
    kept = os.fsencode(stem)[: _LONGEST - len(os.fsencode(tail))]
    return kept.decode("utf-8", errors="ignore") + tail
