"""Every command that the pages, scripts and --help texts give runs, with the arguments they give.

Each is run as written with --help appended: imports, names of flags, types and choices are checked,
and nothing is read or computed. The commands of the README's first section run in full in CI.
"""

import functools
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dossr_jax.training.experiments import list_configs, load_config
from dossr_jax.training.fields import flags_help

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SCRIPTS = [
    *sorted((ROOT / "configs").glob("*.*")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "dossr_jax").rglob("*.py")),
]
ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
PROGRAM = re.compile(
    r"python -m dossr_jax[\w.]*|python (?:benchmarks/)?\w+\.py\b|\bdossr-(?!mini|jax)[a-z]+\b"
)
END = re.compile(r"\s#|\s&|\s?[|;>]|\)\s")
FLAG = re.compile(r"--?[a-z][\w-]*")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_\d]*|.*\$.*|\.\.\.")


def join_lines(text):
    """One line for what a shell reads as one; strings in Python hold its backslashes doubled."""
    return re.sub(r"\\+\n\s*", " ", text)


def pieces(path):
    """Strings that may hold commands: sh blocks and code spans of pages, lines of scripts."""
    text = path.read_text()
    if path.suffix == ".md":
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.S):
            yield from join_lines(block).splitlines()
        for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)):
            # "also `input.py`" in a sentence about benchmarks.
            bare = (ROOT / "benchmarks" / span).is_file()
            yield f"python benchmarks/{span}" if bare else span
    else:
        for line in join_lines(text).splitlines():
            if path.suffix == ".sh" or PROGRAM.match(line.strip()):
                yield line


def commands():
    """(program, its arguments, where it stands) of every command."""
    for path in (*PAGES, *SCRIPTS):
        for piece in pieces(path):
            found = list(PROGRAM.finditer(piece))
            for match, following in zip(found, [*found[1:], None], strict=False):
                rest = piece[match.end() : following and following.start()]
                words = re.sub(r"[\"'\[\]]", "", END.split(rest)[0]).split()
                yield match[0], words, str(path.relative_to(ROOT))


COMMANDS = list(commands())
PROGRAMS = sorted({program for program, _, _ in COMMANDS} | ENTRY_POINTS.keys())


def concrete(words):
    """Arguments without flags whose value is a placeholder, which need not be a valid one."""
    flags = {
        i - 1 for i, w in enumerate(words) if PLACEHOLDER.fullmatch(w) and FLAG.match(words[i - 1])
    }
    return [w for i, w in enumerate(words) if i not in flags and not PLACEHOLDER.fullmatch(w)]


@functools.cache
def calls_of(program):
    """(where it stands, words, exit status, output) of --help alone, then of every call."""
    asked = [("--help", [])]
    asked += [(where, words) for name, words, where in COMMANDS if name == program]
    driver = Path(__file__).parent / "helpers" / "parse_only.py"
    # The package as it is installed: with the checkout on the path, scripts would find more.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, driver, ENTRY_POINTS.get(program, program)],
        input=json.dumps([concrete(words) for _, words in asked]),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{program}: {done.stderr[-2000:]}"
    results = json.loads(done.stdout)
    return [(*call, *result) for call, result in zip(asked, results, strict=True)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_command_takes_the_arguments_that_the_texts_give_it(program):
    (_, _, _, text), *_ = calls = calls_of(program)
    assert text.startswith("usage")
    for where, words, status, output in calls:
        assert status in (0, None), f"{where}: {program} {' '.join(words)}: {output}"
        for flag in filter(FLAG.fullmatch, (word.split("=")[0] for word in words)):
            known = re.search(rf"(?<![\w-]){flag}(?![\w-])", text)
            assert known, f"{where}: {program} has no {flag}"


def test_the_texts_name_every_program():
    """What this file looks for is found, and no script is left unexplained."""
    assert len(COMMANDS) > 80
    scripts = {p for p in SCRIPTS if p.parent.name == "benchmarks" and "__main__" in p.read_text()}
    assert len(scripts) > 6
    assert {f"python benchmarks/{path.name}" for path in scripts} <= {p for p, _, _ in COMMANDS}


def test_shell_blocks_hold_our_commands_and_a_few_of_others():
    """So that no command of ours goes unread because it is written in another way."""
    others = re.compile(
        r"(pip|ray|tfds|mkdocs|git|bash|sh|srun|gcloud|export|tensorboard) |[$]?#|\)?$"
    )
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), flags=re.S):
            for line in join_lines(block).splitlines():
                ours = PROGRAM.search(line) or "python -m pytest" in line
                assert ours or others.match(line), f"{page.name}: {line}"


def test_scripts_and_extras_that_the_pages_name_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"].keys()
    for page in PAGES:
        text = page.read_text()
        for script in re.findall(r"\bsh ([\w/]+\.sh)", text):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"
        for names in re.findall(r"(?:dossr-jax|\.)\[([a-z0-9,-]+)\]", text):
            assert set(names.split(",")) <= extras, f"{page.name}: {names}"


def test_links_between_files_of_the_repository_resolve():
    """Those of docs/ to each other, with their anchors, are checked when the site is built."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_documented_configurations_exist():
    known = set(list_configs())
    for program, words, where in COMMANDS:
        for flag, value in zip(words, words[1:], strict=False):
            if flag == "--config" and re.fullmatch(r"[a-z]\w+", value):
                assert value in known, f"{where}: {program} --config {value}"


def test_flags_that_the_pages_name_alone_exist():
    """Code spans such as `--tile 256` in running text: some program has the flag."""
    texts = "\n".join(calls_of(program)[0][3] for program in PROGRAMS)
    texts += flags_help(load_config("tiny"))
    for page in PAGES:
        for piece in pieces(page):
            if piece.startswith("--"):
                flag = re.match(r"[\w-]+", piece)[0]
                assert re.search(rf"(?<![\w-]){flag}(?![\w-])", texts), f"{page.name}: {flag}"
