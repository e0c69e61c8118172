"""For every test: broadcasting across ranks raises, hypothesis is fixed, compiling is shared."""

import os
import tempfile
from pathlib import Path

# Many tests compile the same programs, and so do the processes that they start: within one run of
# pytest, whose workers get this from their parent, once is enough. JAX reads it when imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import helpers.typecheck  # noqa: E402, F401 - the hook finds it by name
from jaxtyping import install_import_hook  # noqa: E402

# Shapes and dtypes in the signatures of the pure modules are checked in every call of the tests.
install_import_hook(
    [
        "dossr_jax.area_means",
        "dossr_jax.diffusion",
        "dossr_jax.image",
        "dossr_jax.method",
        "dossr_jax.metrics",
        "dossr_jax.tiling",
    ],
    "helpers.typecheck.check",
)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Weights, configuration and reference outputs of the PyTorch release at reduced width."""
    return Path(__file__).parent / "data" / "golden"


@pytest.fixture(scope="session")
def golden(golden_dir) -> np.lib.npyio.NpzFile:
    """Its reference outputs by name, read when asked for."""
    with np.load(golden_dir / "golden.npz") as arrays:
        yield arrays


@pytest.fixture
def x64():
    """Float64 inside the test: `pytestmark = pytest.mark.usefixtures("x64")` for a whole module."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def compiled_quickly():
    """XLA optimises little: half the time to compile, for tests of what is around the programs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture(scope="module")
def one_torch_thread():
    """PyTorch's threads wait for each other by spinning, which on busy cores takes most time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
