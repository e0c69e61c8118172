"""A start is quick: nothing is imported, traced or compiled before it is needed."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.distributed_worker import ROOT

from dossr_jax.method import KeyNoise
from dossr_jax.models.layers import Shapes

# What takes long to import, and is needed for networks, rare files or nothing at all.
HEAVY = {"jax", "flax", "optax", "orbax", "scipy", "torch", "grain", "matplotlib"}
RUN = "import sys; sys.argv[1:] = {arguments}\ntry:\n    {code}\nexcept SystemExit:\n    pass\n"
PRINT = "print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"


def imported(code: str, arguments: list[str]) -> set[str]:
    """Packages that a process has imported at its end."""
    program = RUN.format(arguments=arguments, code=code) + PRINT
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("import dossr_jax", []),
        ("from dossr_jax.commands import restore; restore()", ["--help"]),
        ("from dossr_jax.commands import restore; restore()", ["no-such-option"]),
    ],
)
def test_what_needs_no_networks_imports_none(code, arguments):
    assert not imported(code, arguments) & HEAVY


def test_restoring_imports_no_scipy_and_no_orbax():
    code = "import dossr_jax.cli, dossr_jax.pipeline.upscaler"
    assert not imported(code, []) & {"orbax", "torch", "grain", "tensorstore"}


def test_keys_of_seeds_are_those_of_jax():
    seeds = [0, 1, 2**31, 2**32 - 1]
    expected = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
    keys = KeyNoise.of_seeds(seeds).keys
    assert keys.dtype == expected.dtype
    np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(expected))
    assert Shapes().params() == jax.random.key(0)
