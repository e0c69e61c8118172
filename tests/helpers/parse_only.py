"""Runs one program with several argument lists, each up to the end of its parsing.

python parse_only.py PROGRAM < LISTS: "--help" is appended to every list (JSON, on stdin), so that
argparse checks types and choices and then exits. PROGRAM is "python FILE", "python -m MODULE" or an
entry point "module:function". Prints the exit status and output of every call as JSON.
"""

import contextlib
import importlib
import io
import json
import runpy
import sys
from pathlib import Path


def run(program: str) -> None:
    """Run the program as its command line does, on sys.argv."""
    word = program.split()[-1]
    if ":" in program:
        module, function = program.split(":")
        sys.exit(getattr(importlib.import_module(module), function)())
    elif "-m" in program.split():
        runpy.run_module(word, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(word, run_name="__main__")


def main() -> None:
    program = sys.argv[1]
    script = program.split()[-1]
    # What Python puts there itself: a script's folder, or for -m the one it is started in.
    sys.path[0] = str(Path(script).resolve().parent) if script.endswith(".py") else str(Path.cwd())
    calls = []
    for arguments in json.load(sys.stdin):
        sys.argv = [script, *arguments, "--help"]
        status, output = 0, io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                run(program)
            except SystemExit as stop:
                status = stop.code
        calls.append((status, output.getvalue()))
    print(json.dumps(calls))


if __name__ == "__main__":
    main()
