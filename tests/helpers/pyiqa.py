"""pyiqa itself, for tests that compare with it; pip install 'dossr-jax[iqa]'."""

import sys
import types

import pytest


def import_pyiqa():
    """pyiqa, or a skip where it or torchvision is not installed.

    torchvision's wheels hold kernels that a torch without CUDA cannot load; declaring what they
    return fails then. pyiqa's transforms and networks need none of them.
    """
    try:
        pytest.importorskip("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        name = "torchvision._meta_registrations"
        sys.modules[name] = types.ModuleType(name)
    return pytest.importorskip("pyiqa")
