"""Which of the stored arrays are compared, found by the form of their names.

Arrays that are no entry serve as inputs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

TWIN = "__f64"
HOST = "host"
# Entries that the program of `dossr-restore` computes once more, from the LR image on.
RESTORE = "restore:"


class Form(NamedTuple):
    """Names of one form.

    Attributes:
      name: of what computes them, a method of the system's Runner.
      pattern: of the whole name, without TWIN.
      kind: by which tolerances are pooled (see report.Kind), or HOST.
    """

    name: str
    pattern: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A stored array that we can compute: its name, form, kind of tolerance, fields of the name."""

    name: str
    form: str
    kind: str
    match: re.Match[str]

    @property
    def stored(self) -> str:
        """Name of the array that it is compared with."""
        return self.name.removeprefix(RESTORE)


def match_forms(forms: Sequence[Form], names: Iterable[str]) -> list[Entry]:
    """The entries among stored names, in their order, each of the first form that fits."""
    entries = []
    for name in names:
        for form in forms:
            match = None if name.endswith(TWIN) else re.fullmatch(form.pattern, name)
            if match:
                entries.append(Entry(name, form.name, form.kind, match))
                break
    return entries
