"""Command line of the crosscheck."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from dossr_jax import files
from dossr_jax.commands import command_line
from dossr_jax.crosscheck import report
from dossr_jax.crosscheck.entries import HOST, TWIN, Entry
from dossr_jax.crosscheck.folder import ARRAYS, CONFIG, WEIGHTS, Archive, Folder
from dossr_jax.crosscheck.suite import Suite
from dossr_jax.crosscheck.suites import open_folder
from dossr_jax.errors import UserError

DTYPES = ("float64", "float32")
_TITLES = {
    HOST: "schedules, NumPy float64",
    "float64": "networks and restore program, float64",
    "float32": "networks and restore program, float32",
}


def check(
    suite: Suite, folder: Folder, archive: Archive, dtype: str, found: Sequence[Entry]
) -> list[report.Row]:
    """Compare entries: those of the networks in "float64" or "float32", or the "host"'s.

    Raises:
      UserError: an input that an entry needs is not in the folder.
    """
    own = report.own_errors(suite.find(archive.arrays), archive.arrays)
    tolerances = report.Tolerances(suite.kinds, own)
    found = [entry for entry in found if (entry.kind == HOST) == (dtype == HOST)]
    if not found:
        return []
    try:
        if dtype == HOST:
            results = suite.host(folder, archive, found)
        else:
            # Accelerators would shorten float32 products otherwise.
            with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
                results = suite.runner(folder, archive, dtype).results(found)
    except (TypeError, ValueError, IndexError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{archive.where}: arrays do not fit the configuration or each other ({reason})"
        ) from error
    return [
        report.compare(entry, dtype, results[entry.name], archive.arrays, tolerances)
        for entry in found
        if entry.name in results
    ]


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dossr_jax.crosscheck",
        description="Compare every entry with arrays that a PyTorch implementation stored.",
        epilog="Exit status: 0 all agree, 1 some do not, 2 the folder cannot be used.",
    )
    parser.add_argument("folder", help=f"folder with {WEIGHTS}, {CONFIG} and {ARRAYS}")
    parser.add_argument("--dtype", choices=(*DTYPES, "both"), default="both")
    parser.add_argument(
        "--only",
        type=_pattern,
        default=re.compile(""),
        metavar="PATTERN",
        help="entries whose names this regular expression finds",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    return parser


@command_line("stopped")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = _parser().parse_args(argv)
    dtypes = (HOST, *(DTYPES if args.dtype == "both" else (args.dtype,)))
    start = time.perf_counter()
    rows: list[report.Row] = []
    suite, folder = open_folder(args.folder)
    archive = Archive(folder)
    found = [s for s in suite.find(archive.arrays) if args.only.search(s.name)]
    # Compiling takes most of the time, and one compilation fills one core.
    with ThreadPoolExecutor() as pool:
        for new in pool.map(lambda dtype: check(suite, folder, archive, dtype, found), dtypes):
            rows += new
            if new:
                print(f"{_TITLES[new[0].dtype]}\n{report.format_table(new)}\n", flush=True)
    if not rows:
        raise UserError(
            f"{archive.where}: nothing to compare there"
            + (f" under --only {args.only.pattern}" if args.only.pattern else "")
        )
    if args.json:
        _write_json(args.json, folder, rows)
    if not args.only.pattern:
        _print_left_over(archive, rows)
    for dtype in dtypes:
        of_dtype = [row for row in rows if row.dtype == dtype]
        if of_dtype:
            print(report.summarise(of_dtype, dtype))
    passed = all(row.passed for row in rows)
    seconds = time.perf_counter() - start
    print(f"{'all agree' if passed else 'NOT EQUAL'}: {folder.path}, {seconds:.0f} s")
    return 0 if passed else 1


def _print_left_over(archive: Archive, rows: Sequence[report.Row]) -> None:
    compared = {row.entry for row in rows}
    left = [
        name
        for name in archive.arrays
        if name.removesuffix(TWIN) not in compared and name not in archive.read
    ]
    if left:
        print(f"neither compared nor an input: {', '.join(left)}")


def _write_json(path: Path, folder: Folder, rows: Sequence[report.Row]) -> None:
    content = {
        "folder": str(folder.path),
        "jax": jax.__version__,
        "device": str(jax.devices()[0]),
        "passed": all(row.passed for row in rows),
        "rows": report.as_json(rows),
    }
    files.write_file(path, (json.dumps(content, indent=1) + "\n").encode())
