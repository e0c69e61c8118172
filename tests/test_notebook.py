"""The notebook in examples/ runs from its first cell to its last; IPython's lines are looked at."""

import json
import re
from pathlib import Path

import pytest
from helpers.models import tiny_model
from helpers.pictures import picture, save
from PIL import Image

import dossr_jax
from dossr_jax import cli

NOTEBOOK = Path(__file__).parent.parent / "examples" / "dossr_jax.ipynb"
pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture
def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def sources(cells):
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_every_cell_runs_and_shows_what_it_promises(cells, tmp_path, monkeypatch):
    for i, name in enumerate(("a.png", "b.png")):
        save(tmp_path / "examples" / name, picture(20, 30, i))
    save(tmp_path / "photos" / "own.jpg", picture(30, 20))
    monkeypatch.chdir(tmp_path)
    tiny = dossr_jax.Upscaler(tiny_model(), tile=128)
    asked = []

    def from_pretrained(name, **options):
        asked.append((name, options))
        return tiny

    monkeypatch.setattr(dossr_jax.Upscaler, "from_pretrained", from_pretrained)
    shown = []
    scope = {"display": shown.append}
    for source in sources(cells):
        # What is left of a block of IPython's lines is a block all the same.
        python = re.sub(r"^(\s*)[!%].*", r"\1pass", source, flags=re.M)
        exec(compile(python, NOTEBOOK.name, "exec"), scope)
    assert asked == [("dossr-mini", {"dtype": "float32"})]
    assert [result.shape for result in scope["results"]] == [(80, 120, 3)] * 2
    assert len(shown) == 5 and all(isinstance(image, Image.Image) for image in shown)
    assert shown[0].size == (2 * 600 + 8, 400)
    assert scope["result"].size == (40, 60)


def test_it_is_stored_as_written(cells):
    """Without results, and with all that readers of notebooks need."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_its_commands_are_those_of_the_package(cells):
    lines = [line.strip() for source in sources(cells) for line in source.splitlines()]
    commands = [line.split()[2:] for line in lines if line.startswith("!python infer.py")]
    assert commands
    for arguments in commands:
        args = cli.make_parser().parse_args(arguments)
        assert args.input == ["examples"]
    extras = re.search(r"^REPOSITORY, ACCELERATOR = (.+)", "\n".join(lines), flags=re.M)[1]
    assert extras == '"", "cuda"'
