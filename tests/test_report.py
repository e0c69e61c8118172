"""The report: an experiment leaves numbers, figures and a page, and is not run twice."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from models import tiny_model
from pictures import picture, quarter, save
from PIL import Image

from dossr_jax.weights import save_model

pytest.importorskip("matplotlib")
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("report")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, tiny_model())
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed in range(2):
        hr = picture(72, 64, seed)
        save(folder / "HR" / f"{seed}.png", hr)
        save(folder / "LR" / f"{seed}.png", quarter(hr))
    return folder


@pytest.fixture(scope="module")
def written(report, model, data, tmp_path_factory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("out")
    arguments = ["--model", model, "--data", data, "--out", out, "--crop", 64]
    arguments = [str(a) for a in (*arguments, "--only", "solver", "path")]
    assert report.main(arguments) == 0
    return out, arguments


def test_numbers_are_means_over_the_images_and_the_page_shows_them(written):
    out, _ = written
    page = (out / "results.md").read_text()
    content = json.loads((out / "results" / "solver.json").read_text())
    assert content["settings"]["images"] == ["0", "1"] and len(content["rows"]) == 12
    for row in (*content["rows"], *content["references"]):
        for name in content["metrics"]:
            values = [scores[name] for scores in row["images"]]
            assert len(values) == 2 and row["mean"][name] == pytest.approx(np.mean(values))
        assert f"| {row['label']} | {row['mean']['psnr_y']:.2f} |" in page
    assert "niqe" in content["left_out"]  # which needs 192 px
    assert "NIQE is left out" in page


def test_every_figure_of_the_page_is_there_and_shows_something(written):
    out, _ = written
    for name in ("solver", "path"):
        figures = json.loads((out / "results" / f"{name}.json").read_text())["figures"]
        for figure in figures:
            assert f"](results/{figure})" in (out / "results.md").read_text()
            pixels = np.asarray(Image.open(out / "results" / figure).convert("RGB"))
            assert min(pixels.shape[:2]) > 100 and pixels.std() > 10
            assert (out / "results" / figure).stat().st_size < 300_000


def test_a_rerun_runs_nothing_and_gives_the_same_page(report, written, monkeypatch):
    out, arguments = written
    page = (out / "results.md").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(report.runner, "run", lambda *_: pytest.fail("ran again"))
        assert report.main(arguments) == 0
        assert (out / "results.md").read_text() == page
        path = out / "results" / "solver.json"
        settings = json.loads(path.read_text())["settings"]
        assert report.runner.kept(path, settings)
        assert not report.runner.kept(path, {**settings, "crop": 32})


@pytest.mark.parametrize("option", ["--data", "--model"])
def test_what_is_not_there_is_one_line_and_exit_code_2(report, model, data, capsys, option):
    paths = {"--model": model, "--data": data, option: data / "absent"}
    assert report.main([str(a) for pair in paths.items() for a in pair]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "absent" in line


def test_a_pair_that_does_not_fit_is_refused(report, model, tmp_path, capsys):
    save(tmp_path / "HR" / "a.png", picture(64, 64))
    save(tmp_path / "LR" / "a.png", picture(64, 64))
    assert report.main(["--model", str(model), "--data", str(tmp_path)]) == 2
    assert "a.png: not a quarter of" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--images", "0"), ("--crop", "8")])
def test_nothing_to_measure_is_refused(report, model, data, capsys, option):
    assert report.main(["--model", str(model), "--data", str(data), *option]) == 2
    assert "cannot be measured" in capsys.readouterr().err
