"""Configurations by name: one experiment per file, each with one typed CONFIG."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from dossr_jax.config import ConfigError, TrainConfig
from dossr_jax.errors import UserError, require_extra

_PACKAGE = "dossr_jax.configs"


def configs_folder() -> Path:
    """Where the configurations are: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def list_configs() -> dict[str, str]:
    """Name -> first line of the docstring of every configuration that comes with the package."""
    _import_package()
    found = {}
    for path in sorted(configs_folder().glob("[!_]*.py")):
        module = importlib.import_module(f"{_PACKAGE}.{path.stem}")
        if hasattr(module, "CONFIG"):
            found[path.stem] = (module.__doc__ or "").splitlines()[0]
    return found


def load_config(name: str, flags: Sequence[str] = ()) -> TrainConfig:
    """A configuration, changed by flags for its fields (see training.fields.with_flags).

    Args:
      name: of a file in configs/, or the path of another .py file that sets CONFIG.

    Raises:
      UserError: no such configuration, or an unknown flag or impossible value, in one line.
    """
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise UserError(f"{path}: no such file; give one that sets CONFIG")
        module = _execute(f"dossr_jax_config_{path.stem}", path)
    elif (configs_folder() / f"{name}.py").is_file():
        _import_package()
        module = importlib.import_module(f"{_PACKAGE}.{name}")
    else:
        raise UserError(f"no configuration {name!r}; there are {', '.join(list_configs())}")
    config = getattr(module, "CONFIG", None)
    if not isinstance(config, TrainConfig):
        raise UserError(f"{name}: sets no CONFIG of class TrainConfig; see configs/tiny.py")
    if not flags:
        return config
    require_extra("train", "tyro")
    from dossr_jax.training.fields import with_flags

    try:
        return with_flags(config, flags)
    except ConfigError as error:
        raise UserError(f"--config {name}: {error}") from error


def _import_package() -> None:
    """Make the folder importable, by the name that it has in the installed package."""
    if _PACKAGE not in sys.modules:
        _execute(_PACKAGE, configs_folder() / "__init__.py")


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
