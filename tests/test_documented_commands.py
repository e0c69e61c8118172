"""Every command that README and docs name exists, with every flag that they give it."""

import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dossr_jax.training.experiments import list_configs

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = importlib.import_module("tomllib").loads((ROOT / "pyproject.toml").read_text())[
    "project"
]["scripts"]
PROGRAM = re.compile(
    r"python (?:-m )?(?:dossr_jax[\w.]*|(?:benchmarks/)?\w+\.py)\b|\bdossr-(?!mini|jax)[a-z]+\b"
)


def fenced_or_inline(text):
    """Pieces of a page that may be commands: lines of sh blocks, and code spans."""
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.S):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))


def commands():
    """(program, its arguments, page) of every command."""
    for page in PAGES:
        for piece in fenced_or_inline(page.read_text()):
            piece = piece.split("#")[0]
            found = list(PROGRAM.finditer(piece))
            for match, nxt in zip(found, [*found[1:], None], strict=False):
                end = len(piece) if nxt is None else nxt.start()
                arguments = re.split(r"&&|\||;", piece[match.end() : end])[0]
                yield match[0], arguments.split(), page.name


COMMANDS = list(commands())


@functools.cache
def help_of(program):
    """What --help prints."""
    if program.startswith("dossr-"):
        module, function = SCRIPTS[program].split(":")
        code = f"import sys; from {module} import {function} as f; sys.exit(f())"
        command = [sys.executable, "-c", code, "--help"]
    else:
        command = [sys.executable, *program.split()[1:], "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{program} --help: {done.stderr[-2000:]}"
    return done.stdout


def test_the_pages_name_commands():
    programs = {program for program, _, _ in COMMANDS}
    assert len(COMMANDS) > 30 and len(programs) > 12
    assert {"dossr-train", "python benchmarks/train.py", "python benchmarks/input.py"} <= programs


@pytest.mark.parametrize("program", sorted({program for program, _, _ in COMMANDS}))
def test_a_documented_command_runs_and_has_the_flags(program):
    text = help_of(program)
    assert "usage" in text
    for name, arguments, page in COMMANDS:
        if name != program:
            continue
        for argument in arguments:
            flag = argument.split("=")[0]
            if re.fullmatch(r"--?[a-z][\w-]*", flag):
                assert re.search(rf"(?<![\w-]){flag}\b", text), f"{page}: {program} {flag}"


def test_documented_configurations_exist():
    known = set(list_configs())
    for program, arguments, page in COMMANDS:
        for flag, value in zip(arguments, arguments[1:], strict=False):
            if flag == "--config" and re.fullmatch(r"[a-z]\w+", value):
                assert value in known, f"{page}: {program} --config {value}"


def test_every_benchmark_has_help():
    for script in sorted((ROOT / "benchmarks").glob("*.py")):
        if "__main__" in script.read_text():
            assert "usage" in help_of(f"python benchmarks/{script.name}")
