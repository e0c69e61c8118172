"""spandrel's ESRGAN, an independent RRDBNet, without the torchvision that it does not use.

The package imports torchvision for other architectures; where that is not installed, empty
stand-ins let the import pass.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from unittest import mock


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = mock.MagicMock(name=spec.name)
        module.__path__ = []
        module.__spec__ = spec
        return module

    def exec_module(self, module):
        pass


def load():
    """The class spandrel.architectures.ESRGAN.ESRGAN."""
    if importlib.util.find_spec("torchvision") is not None:
        from spandrel.architectures.ESRGAN import ESRGAN

        return ESRGAN
    finder = _StandIns()
    sys.meta_path.append(finder)
    try:
        from spandrel.architectures.ESRGAN import ESRGAN
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    return ESRGAN
