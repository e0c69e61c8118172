"""The report: an experiment leaves numbers, figures and a page, and is not run twice."""

import functools
import importlib
import json
import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.models import tiny_model
from helpers.pictures import picture, quarter, save
from helpers.small import SMALL
from helpers.systems import small_model
from PIL import Image

from dossr_jax import Upscaler
from dossr_jax.models.dossr import DoSSR
from dossr_jax.systems import save_model
from dossr_jax.weights import names_and_params

pytest.importorskip("matplotlib")
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Half the time for programs that run for a moment."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def report():
    """The script, which loads a model file once: that takes longer than all it does here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        script = importlib.import_module("report")
        load = functools.cache(Upscaler.from_pretrained)
        patch.setattr(script, "Upscaler", types.SimpleNamespace(from_pretrained=load))
        patch.setattr(script.runner.process, "STEPS", 2)
        yield script


@pytest.fixture(scope="module")
def network() -> DoSSR:
    return tiny_model(config=SMALL)


@pytest.fixture(scope="module")
def model(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, network)
    return path


def changed_in(network: DoSSR, *parts: str) -> DoSSR:
    """A copy with other weights in some networks."""
    copy = nnx.clone(network)
    for name, param in names_and_params(copy):
        if name.split(".")[0] in parts:
            param[...] = 1.2 * param[...] + 0.05
    return copy


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed in range(2):
        hr = picture(72, 64, seed)
        save(folder / "HR" / f"{seed}.png", hr)
        save(folder / "LR" / f"{seed}.png", quarter(hr))
    return folder


@pytest.fixture(scope="module")
def photos(data) -> Path:
    """HR images alone."""
    return data / "HR"


@pytest.fixture
def mild(report, monkeypatch):
    """Presets that compile nothing: "light" halves no light, "realesrgan" does."""

    def make_lr(hr, *, preset, seed, name):
        return quarter(hr) // (2 if preset == "realesrgan" else 1)

    monkeypatch.setattr(importlib.import_module("experiments.data"), "make_lr", make_lr)


def call(model: Path, data: Path, out: Path, *options) -> list[str]:
    arguments = ("--model", model, "--data", data, "--out", out, "--crop", 64, *options)
    return [str(a) for a in arguments]


def stored(out: Path, name: str) -> dict:
    return json.loads((out / "results" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def written(report, model, data, tmp_path_factory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("out")
    arguments = call(model, data, out, "--only", "seeds", "solver")
    assert report.main(arguments) == 0
    return out, arguments


@pytest.fixture
def copied(written, tmp_path) -> Path:
    """A copy of what is written, to be changed."""
    return Path(shutil.copytree(written[0], tmp_path / "out"))


@pytest.fixture
def ran(report, monkeypatch) -> list[str]:
    """Names of experiments that would run; in their place stored numbers get new settings."""
    names = []

    def run(path, experiment, bench, settings):
        names.append(path.stem)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": settings}))

    monkeypatch.setattr(report.runner, "run", run)
    return names


def test_numbers_are_means_over_the_images_and_the_page_shows_them(written):
    out, _ = written
    page = (out / "results.md").read_text()
    content = stored(out, "solver")
    assert content["settings"]["images"] == ["0", "1"] and len(content["rows"]) == 12
    assert content["settings"]["sources"] == ["given"] and "Preset" not in page
    for row in (*content["rows"], *content["references"]):
        for name in content["settings"]["metrics"]:
            values = [scores[name] for scores in row["images"]["given"]]
            mean = row["mean"]["given"]
            assert len(values) == 2 and mean[name] == pytest.approx(np.mean(values))
        assert f"| {row['label']} | {mean['psnr_y']:.2f} |" in page.replace("**", "")
    best = max(row["mean"]["given"]["psnr_y"] for row in content["rows"])
    assert f"| **{best:.2f}** |" in page
    assert "niqe" in content["settings"]["left_out"]  # which needs 192 px
    assert "NIQE is left out" in page


def check_figures(out: Path, name: str, sources: list[str]) -> None:
    content, page = stored(out, name), (out / "results.md").read_text()
    figures = [f for f in (content["figure"], *content["crops"].values()) if f]
    assert figures and list(content["crops"]) in ([], sources)
    for figure in figures:
        assert f"](results/{figure})" in page
        pixels = np.asarray(Image.open(out / "results" / figure).convert("RGB"))
        assert min(pixels.shape[:2]) > 100 and pixels.std() > 10
        assert (out / "results" / figure).stat().st_size < 300_000


@pytest.mark.parametrize("name", ["seeds", "solver"])
def test_every_figure_of_the_page_is_there_and_shows_something(written, name):
    check_figures(written[0], name, ["given"])


def test_a_rerun_runs_nothing_and_gives_the_same_page(report, written, ran):
    out, arguments = written
    page = (out / "results.md").read_text()
    assert report.main(arguments) == 0
    assert ran == [] and (out / "results.md").read_text() == page


@pytest.mark.parametrize("changed", ["model", "image", "metrics", "figure", "crop"])
def test_what_is_stale_runs_again_and_is_not_shown(
    report, network, model, data, copied, ran, changed, monkeypatch, tmp_path, capsys
):
    """Asked for one experiment alone, the page shows no other of the time before the change."""
    used, images = model, data
    if changed == "model":  # another of the same name
        used = tmp_path / model.name
        save_model(used, changed_in(network, "unet"))
    elif changed == "image":  # one more level in one pixel
        images = Path(shutil.copytree(data, tmp_path / data.name))
        hr = np.asarray(Image.open(images / "HR" / "0.png")).copy()
        hr[32, 32] ^= 1
        save(images / "HR" / "0.png", hr)
    elif changed == "metrics":
        monkeypatch.setattr(importlib.import_module("experiments.bench"), "NAMES", ("psnr_y",))
    elif changed == "figure":
        (copied / "results" / "solver.png").unlink()
    crop = ("--crop", 60) if changed == "crop" else ()
    assert report.main(call(used, images, copied, "--only", "solver", *crop)) == 0
    assert ran == ["solver"]
    page, said = (copied / "results.md").read_text(), capsys.readouterr().out
    assert "ODE against SDE" in page
    others = changed != "figure"  # which belongs to one experiment alone
    assert ("Seed sensitivity" not in page) == others == ("not on the page" in said)


def test_a_run_leaves_no_figure_of_the_one_before(report, written, model, data, copied):
    results = copied / "results"
    (results / "solver_light.png").touch()
    assert report.main(call(model, data, copied, "--only", "solver", "--overwrite")) == 0
    here = {path.name for path in results.iterdir()}
    assert here == {
        *("seeds.json", "seeds_given.png"),
        *("solver.json", "solver.png", "solver_given.png"),
    }


def test_every_preset_has_its_table_its_curves_and_its_crops(report, model, photos, mild, tmp_path):
    out = tmp_path / "out"
    assert report.main(call(model, photos, out, "--images", 1, "--only", "order", "path")) == 0
    content, page = stored(out, "order"), (out / "results.md").read_text()
    table = page.replace("**", "").splitlines()
    assert content["settings"]["sources"] == ["light", "realesrgan"]
    for row in (*content["rows"], *content["references"]):
        light, dark = (row["mean"][source]["psnr_y"] for source in ("light", "realesrgan"))
        assert light != dark
        (line,) = (line for line in table if line.startswith(f"| {row['label']} |"))
        cells = line.split(" | ")
        assert cells[1] == f"{light:.2f}" and f"{dark:.2f}" in cells[2:]
    for name in ("order", "path"):
        check_figures(out, name, ["light", "realesrgan"])
        assert page.count(f"{content['settings']['text']}") == 1
    assert page.count("light: PSNR-Y") == page.count("realesrgan: PSNR-Y") == 2
    assert "--preset light --preset realesrgan" in page


def test_a_model_trained_from_noise_is_compared_where_it_is_given(
    report, network, model, data, tmp_path
):
    noise = tmp_path / "noise.safetensors"
    save_model(noise, changed_in(network, "control"))
    plain = report.runner.EXPERIMENTS["start"]()
    assert "No ControlNet trained from noise" in plain.text
    out = tmp_path / "out"
    assert report.main(call(model, data, out, "--only", "start", "--noise-model", noise)) == 0
    content, page = stored(out, "start"), (out / "results.md").read_text()
    rows = {row["label"]: row for row in content["rows"]}
    kinds = [f"trained from noise, {kind}, {n}" for kind in ("DDPM", "DDIM") for n in (5, 15, 50)]
    assert list(rows)[10:] == kinds and [v.label for v in plain.variants] == list(rows)[:10]
    five = {
        label: rows[label]["mean"]["given"]["psnr_y"]
        for label in ("from lr, 5", "from noise, 5", kinds[0], kinds[3])
    }
    assert len(set(five.values())) == 4  # neither the start nor the model nor the kind is ignored
    assert "noise.safetensors" in page and "but for the ControlNet it is equal" in page
    assert "--noise-model noise.safetensors" in page


def test_other_systems_are_rows_of_their_own(report, network, model, data, tmp_path):
    """With seeds where they have any; what there is no file of is listed."""
    files = {"Other": tmp_path / "other.safetensors", "Real-ESRGAN": tmp_path / "r.safetensors"}
    save_model(files["Other"], changed_in(network, "unet"))
    save_model(files["Real-ESRGAN"], small_model("rrdb"))
    out, options = tmp_path / "out", []
    for name, path in files.items():
        options += ["--system", f"{name}={path}"]
    assert report.main(call(model, data, out, "--only", "systems", "seeds", *options)) == 0
    page = (out / "results.md").read_text()
    rows = {row["label"]: row for row in stored(out, "systems")["rows"]}
    assert list(rows) == ["DoSSR, published", "DoSSR, model's default", *files]
    # The file stores the published sampler.
    assert len({row["mean"]["given"]["psnr_y"] for row in rows.values()}) == 3
    assert all(row["seconds_per_image"] > 0 for row in rows.values())
    assert "| StableSR | no weights here |" in page and "| Real-ESRGAN | no" not in page
    assert "Other: other.safetensors (SHA-256 " in page and "--system Other=other.saf" in page
    seeds = stored(out, "seeds")["rows"]
    names = [f"seed {i}" for i in range(8)]
    assert [row["label"] for row in seeds] == names + [f"Other, {name}" for name in names]
    assert "Range over the seeds: PSNR-Y" in page and "Range over the seeds of Other: PS" in page


def test_results_of_the_model_alone_know_nothing_of_other_systems(report):
    experiment = report.runner.EXPERIMENTS["solver"]()
    settings = report.runner.settings_of(experiment, {})
    assert "absent" not in settings and all("system" not in v for v in settings["variants"])


def test_a_system_without_a_name_is_refused(report, model, data, capsys):
    with pytest.raises(SystemExit):
        report.main(["--model", str(model), "--data", str(data), "--system", "x.safetensors"])
    assert "NAME=FILE" in capsys.readouterr().err


def test_networks_that_differ_beside_the_control_net_are_named(report, network, model):
    other = Upscaler(changed_in(network, "vae", "control"))
    assert "ControlNet it differs in vae too" in report._about(model, Upscaler(network), other)


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
