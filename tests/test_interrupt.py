"""Ctrl-C, SIGTERM and `| head` end a command line soon and quietly, whatever it is doing."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.distributed_worker import ROOT, environment

from dossr_jax.commands import command_line
from dossr_jax.errors import UserError
from dossr_jax.temporary import temporary

SOON = 2.0  # seconds

STAND_IN = """
import hashlib, os, signal, sys, threading, time
from pathlib import Path
from dossr_jax.commands import command_line
from dossr_jax.temporary import temporary

def hang():
    "For minutes in C code, where Python runs no handlers of signals."
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

@command_line("stopped; all is well")
def main(_=None):
    {}

sys.exit(main())
"""


@pytest.fixture(autouse=True)
def heeding_ctrl_c():
    """A shell has what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start():
    """Function (arguments of Python) -> a process, after the line "ready" if `ready`."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, ready=True, **variables):
            process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=ROOT,
                env=environment(**{"PYTHONUNBUFFERED": "", **variables}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)  # closes its pipes
            stack.callback(process.kill)
            if ready:
                assert process.stdout.readline() == "ready\n", process.communicate()[1]
            return process

        yield start


def stand_in(body: str) -> tuple[str, str]:
    """Arguments of Python that run a command line with this body."""
    return "-c", STAND_IN.format("\n    ".join(body.strip().splitlines()))


def stopped(process, number=signal.SIGINT) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a process that a signal ends soon."""
    sent = time.monotonic()
    process.send_signal(number)
    process.wait(30)
    assert time.monotonic() - sent < SOON
    return process.returncode, *process.communicate()


def wait_until_heeding(process) -> None:
    """Until the process handles SIGTERM."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught >> signal.SIGTERM - 1 & 1:
            return
        time.sleep(0.001)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_in_the_midst_of_c_code(start, number, status):
    process = start(*stand_in("hang()"))
    assert stopped(process, number) == (status, "", "stopped; all is well\n")


def test_a_command_can_be_stopped_while_its_modules_are_imported(start, tmp_path):
    (tmp_path / "slow.py").write_text(STAND_IN.partition("@")[0] + "hang()")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    process = start("-c", code + "; from dossr_jax.commands import launch; launch('slow')")
    assert stopped(process) == (130, "", "stopped\n")


def test_nothing_heavy_is_imported_before_a_command_can_be_stopped(start):
    code = "import sys, dossr_jax.commands; print({'jax', 'numpy'} & sys.modules.keys())"
    assert start("-c", code, ready=False).communicate() == ("set()\n", "")


COMPILE = """
import jax, jax.numpy as jnp
def program(x):
    for i in range(3000):
        x = jnp.sin(x @ x) + i
    return x
lowered = jax.jit(program).lower(jnp.ones((16, 16)))
print("ready", flush=True)
lowered.compile()
print("done")
"""
EXECUTE = """
import jax
endless = jax.jit(lambda: jax.lax.while_loop(lambda i: i >= 0, lambda i: i ^ 1, 0))
compiled = endless.lower().compile()
print("ready", flush=True)
compiled().block_until_ready()
print("done")
"""


@pytest.mark.parametrize("body", [COMPILE, EXECUTE], ids=["compiling", "executing"])
def test_a_command_can_be_stopped_while_xla_works(start, body):
    process = start(*stand_in(body), JAX_ENABLE_COMPILATION_CACHE="false")
    time.sleep(0.3)
    assert stopped(process) == (130, "", "stopped; all is well\n")


def test_nothing_unfinished_is_left_by_any_thread(start, tmp_path):
    body = f"""
    folder = Path({str(tmp_path)!r})
    def write():
        with temporary(folder / "a.png") as place, open(place, "r+b") as file:
            while True:
                file.write(b"half of it")
    threading.Thread(target=write, daemon=True).start()
    with temporary(folder / "b.png"), temporary(folder / "c", folder=True) as place:
        (place / "part").mkdir()
        while len(list(folder.iterdir())) < 3:
            time.sleep(0.01)
        hang()
    """
    body = body.replace("\n    ", "\n")
    process = start(*stand_in(body))
    assert len(list(tmp_path.iterdir())) == 3
    assert stopped(process) == (130, "", "stopped; all is well\n")
    assert list(tmp_path.iterdir()) == []


def test_a_progress_bar_keeps_its_own_line(start):
    body = "from tqdm import tqdm\nwith tqdm(total=1): hang()"
    _, _, error = stopped(start(*stand_in(body)))
    assert error.splitlines()[-1] == "stopped; all is well"


FULL_PIPE = 'print("ready", flush=True)\nsys.stdout.write("x" * 10**6)\nsys.stdout.flush()'


@pytest.mark.parametrize("signals", [1, 2])
def test_an_output_that_nobody_takes_delays_the_end_by_a_second_or_until_a_second_signal(
    start, signals
):
    process = start(*stand_in(FULL_PIPE))
    time.sleep(0.2)
    sent = time.monotonic()
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)  # for the same signal twice at a time counts once
    process.wait(30)
    assert process.returncode == 130
    took = time.monotonic() - sent
    assert took < 0.8 if signals == 2 else 0.8 < took < SOON


def test_a_command_that_was_started_to_ignore_ctrl_c_does(start):
    _, code = stand_in("hang()")
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    process = start("-c", ignore + code)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    assert stopped(process, signal.SIGTERM)[0] == 143


def test_processes_that_a_command_has_started_end_with_it(start):
    """Nor are semaphores that they share with it reported as leaked."""
    body = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 100).result()
"""
    process = start(*stand_in(body), ready=False)
    child = Path(f"/proc/{int(process.stdout.readline())}")
    assert child.exists()
    assert stopped(process) == (130, "", "stopped; all is well\n")
    deadline = time.monotonic() + SOON
    while child.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.exists()


FAIL = "from dossr_jax.errors import UserError\nprint('x')\nraise UserError('bad')"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("body", ["print('x' * 10**6)", "print('x')", "print('x'); exit(0)", FAIL])
def test_a_reader_that_leaves_ends_a_command_quietly(start, body, unbuffered):
    process = start(*stand_in(body), ready=False, PYTHONUNBUFFERED=unbuffered)
    process.stdout.close()  # long before the process prints
    _, error = process.communicate()
    assert process.returncode == 141
    assert error in ("", "error: bad\n")


def test_called_from_python_a_command_leaves_signals_alone(capsys):
    seen = []

    @command_line("stopped; all is well")
    def main(arguments):
        seen.append([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])
        if arguments == ["bad"]:
            raise UserError("bad; give a good one")
        if arguments == ["stop"]:
            raise KeyboardInterrupt
        if arguments == ["unread"]:
            raise BrokenPipeError
        return 7

    def call_in_thread():
        threads.append(main(["good"]))
        threads.append(main())  # only the main thread can heed signals

    threads, before = [], [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert main(["good"]) == 7
    assert main(["bad"]) == 2
    assert main(["stop"]) == 130
    with pytest.raises(BrokenPipeError):
        main(["unread"])
    assert capsys.readouterr().err == "error: bad; give a good one\nstopped; all is well\n"
    thread = threading.Thread(target=call_in_thread)
    thread.start()
    thread.join()
    assert threads == [7, 7]
    assert seen == [before] * 6
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_temporary_file_or_folder_is_renamed_or_removed(tmp_path):
    with temporary(tmp_path / "a.png") as place:
        place.write_bytes(b"whole")
        assert place.parent == tmp_path and place.name.startswith(".") and place.suffix == ".tmp"
        os.replace(place, tmp_path / "a.png")
    with pytest.raises(ValueError), temporary(tmp_path / "a.png") as place:
        place.write_bytes(b"half")
        raise ValueError
    with temporary(tmp_path / "folder", folder=True) as place:
        (place / "file").write_bytes(b"half")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"whole"
    with pytest.raises(OSError), temporary(tmp_path / "none" / "a.png"):
        pytest.fail("no place to write into")


TRAIN = """
from dossr_jax.training.signals import stop_requests
with stop_requests() as reached:
    reached(0)
    if "first" in sys.argv:
        hang()
    reached(1)
    if "c" in sys.argv:
        hang()
    print("ready", flush=True)
    while not reached(2):
        time.sleep(0.001)
    print("asked", flush=True)
    while True:
        reached(3)
"""


def test_training_ends_at_the_first_signal_until_its_first_step_is_done(start):
    process = start(*stand_in(TRAIN), "first")
    assert stopped(process) == (130, "", "stopped; all is well\n")


def test_training_is_asked_by_the_first_signal_and_ended_by_the_second(start):
    process = start(*stand_in(TRAIN))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)  # the first of its kind: a scheduler gives up as well
    time.sleep(0.3)
    assert process.poll() is None
    assert stopped(process) == (130, "", "stopped; all is well\n")


def test_training_is_ended_by_the_second_signal_in_the_midst_of_c_code(start):
    process = start(*stand_in(TRAIN), "c")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    assert stopped(process, signal.SIGTERM) == (143, "", "stopped; all is well\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moments"),
    [(signal.SIGINT, (0, 0.1, 0.3, 1, 2, 4, 8)), (signal.SIGTERM, (0.2, 3))],
)
def test_restoring_can_be_stopped_at_any_moment(start, tmp_path, number, moments):
    """While modules are imported, the model is loaded, programs are compiled (no cache) and run."""
    for moment in moments:
        out, cache = tmp_path / "out", tmp_path / "compiled"
        photo = ROOT / "examples" / "snow.png"
        arguments = "infer.py", photo, "--output", out, "--overwrite"
        process = start(*arguments, ready=False, JAX_COMPILATION_CACHE_DIR=str(cache))
        wait_until_heeding(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.returncode == 0:
            break
        status, _, error = stopped(process, number)
        assert status == 128 + number
        assert error.splitlines()[-1].startswith("stopped")
        assert "Traceback" not in error and "Exception" not in error
        assert not list(out.rglob(".*.tmp"))  # none either where there is no such folder
        shutil.rmtree(cache, ignore_errors=True)
    assert moment > 2  # else nothing but imports was stopped
