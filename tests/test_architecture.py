"""Imports point down only, read from the source itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dossr_jax"

# What may be imported from the project, by module or package; "" are the leaves of the tree.
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "diffusion": {"config"},
    "draws": set(),
    "image": {"config"},
    "area_means": {"config", "image"},
    "tiling": set(),
    "temporary": set(),
    "gpu": set(),
    "commands": {"errors", "temporary"},
    "files": {"errors", "temporary"},
    "image_io": {"errors", "files"},
    "smooth_areas": {"image"},
    "prompts": {"errors"},
    "data": {
        "commands",
        "config",
        "errors",
        "files",
        "image_io",
        "parallel",
        "systems",
        "temporary",
    },
    "metrics": set(),
    "pages": set(),
    "parallel": {"errors"},
    "checkpoint": {"config", "errors"},
    "plan": {
        "commands",
        "config",
        "diffusion",
        "errors",
        "files",
        "gpu",
        "method",
        "models",
        "parallel",
        "pipeline",
        "programs",
        "restore",
        "systems",
        "training",
        "weights",
    },
    "models": {"config"},
    "weights": {"errors", "models", "temporary"},
    "pytorch": {"config", "diffusion", "errors", "models", "weights"},
    "systems": {
        "config",
        "diffusion",
        "errors",
        "image",
        "method",
        "models",
        "prompts",
        "pytorch",
        "weights",
    },
    "convert": {"commands", "config", "errors", "pytorch", "schedulers", "systems", "weights"},
    "schedulers": {"diffusion", "errors", "systems"},
    "method": {"config", "diffusion", "draws", "image", "models"},
    "restore": {
        "area_means",
        "config",
        "diffusion",
        "gpu",
        "image",
        "method",
        "models",
        "smooth_areas",
        "systems",
        "tiling",
    },
    "training": {
        "checkpoint",
        "commands",
        "config",
        "convert",
        "data",
        "diffusion",
        "draws",
        "errors",
        "files",
        "method",
        "metrics",
        "models",
        "parallel",
        "pytorch",
        "systems",
        "weights",
    },
    "pipeline": {
        "area_means",
        "config",
        "convert",
        "diffusion",
        "errors",
        "files",
        "gpu",
        "image",
        "image_io",
        "method",
        "models",
        "programs",
        "prompts",
        "restore",
        "systems",
        "tiling",
    },
    "crosscheck": {
        "commands",
        "config",
        "diffusion",
        "errors",
        "files",
        "image",
        "method",
        "models",
        "pytorch",
        "restore",
        "systems",
        "weights",
    },
    "compilation": set(),
    "export": {"commands", "errors", "options", "pipeline", "programs"},
    "programs": {"config", "errors", "gpu", "temporary"},
    "options": {"commands", "compilation", "config", "pipeline"},
    "evaluate": {
        "config",
        "systems",
        "commands",
        "convert",
        "data",
        "errors",
        "files",
        "image",
        "image_io",
        "metrics",
        "options",
        "pages",
        "pipeline",
        "temporary",
    },
    "folder": {
        "commands",
        "config",
        "errors",
        "files",
        "image_io",
        "pages",
        "pipeline",
        "programs",
        "systems",
    },
    "engines": {"errors", "folder", "options", "parallel", "pipeline"},
    "together": {"engines", "errors", "folder", "options", "parallel", "pipeline"},
    "cli": {
        "commands",
        "config",
        "engines",
        "errors",
        "files",
        "folder",
        "options",
        "pipeline",
        "together",
    },
    "ray": {"cli", "commands", "config", "engines", "errors", "folder", "pipeline"},
    "web": {
        "commands",
        "config",
        "errors",
        "files",
        "folder",
        "image_io",
        "options",
        "pipeline",
        "systems",
        "temporary",
    },
    "__init__": {"errors", "pipeline"},
}
OPTIONAL = (
    "torch",
    "diffusers",
    "transformers",
    "pyiqa",
    "ray",
    "ssimulacra2",
    "flip_evaluator",
)
WITHOUT_JAX = [
    "config",
    "errors",
    "files",
    "data/dataset",
    "data/examples",
    "data/photos",
    "data/pipeline",
    "data/prepare",
    "data/sources",
    "data/tiles",
    "data/worker",
    "diffusion/schedule",
    "image_io",
]


def imported(path: Path) -> set[str]:
    """Modules that a file imports, dotted."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files_of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]


def test_every_room_is_listed():
    rooms = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_down(room):
    for path in files_of(room):
        inside = {n.split(".")[1] for n in imported(path) if n.startswith("dossr_jax.")}
        assert inside - {room} <= ALLOWED[room], path
        assert not any(n.split(".")[0] == "configs" for n in imported(path)), path


@pytest.mark.parametrize("room", WITHOUT_JAX)
def test_host_side_code_needs_no_jax(room):
    for path in files_of(room):
        assert not {n.split(".")[0] for n in imported(path)} & {"jax", "flax", "torch"}, path


def test_torch_is_imported_inside_functions_of_converter_and_learned_metrics_only():
    """But for the scheduler, a class of diffusers, which only functions import."""
    for path in set(PACKAGE.rglob("*.py")) - {PACKAGE / "schedulers.py"}:
        top = ast.parse(path.read_text()).body
        for node in top:
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None) or node.names[0].name
                assert module.split(".")[0] not in OPTIONAL, path
                assert module != "dossr_jax.schedulers", path
        if any(n.split(".")[0] == "torch" for n in imported(path)):
            assert path.parent.name == "pytorch" or path in [
                PACKAGE / f"evaluate/{name}.py" for name in ("learned", "offline")
            ], path
