"""Several models in one evaluation: rows, refusals, memory, and the page that compares them."""

import gc
import json
import weakref
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.models import tiny_model
from helpers.pictures import picture, quarter, save
from helpers.small import SMALL
from helpers.systems import small_model
from test_cli import assert_one_error

from dossr_jax import options, systems
from dossr_jax.errors import UserError
from dossr_jax.evaluate import __main__ as command
from dossr_jax.evaluate.__main__ import main
from dossr_jax.evaluate.models import unique
from dossr_jax.evaluate.page import place_of_difference

pytestmark = pytest.mark.usefixtures("compiled_quickly")


class Page(HTMLParser):
    """Pictures and headings of a page."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.headings, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_data(self, data):
        if self.inside == "h2":
            self.headings.append(data.strip())
        self.inside = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pairs of images, and models of two systems in files of one name."""
    path = tmp_path_factory.mktemp("evaluation")
    for seed, name in enumerate(("a", "<b>")):
        hr = picture(64, 48, seed=seed)
        save(path / "hr" / f"{name}.png", hr)
        save(path / "lr" / f"{name}.png", quarter(hr))
    for place, model in (("one", tiny_model(config=SMALL)), ("two", small_model("rrdb"))):
        (path / place).mkdir()
        systems.save_model(path / place / "m.safetensors", model)
    return path


@pytest.fixture(scope="module")
def arguments(folder):
    places = {name: str(folder / name) for name in ("hr", "lr", "one", "two")}
    models = [part for n in ("one", "two") for part in ("--model", f"{places[n]}/m.safetensors")]
    return ["--lr", places["lr"], "--hr", places["hr"], *models, "--metrics", "psnr_y", "flip"]


@pytest.fixture(scope="module")
def written(folder, arguments):
    """A run on both models, which are watched: at each loading those before it have to be gone."""
    loaded, alive = [], []
    with pytest.MonkeyPatch.context() as patch:

        def load(*args, real=options.load, **kwargs):
            gc.collect()
            alive.append(sum(reference() is not None for reference in loaded))
            upscaler = real(*args, **kwargs)
            loaded.append(weakref.ref(upscaler))
            return upscaler

        patch.setattr(options, "load", load)
        more = ["--baselines", "pre-restored", "--repeats", "1", "--tile", "128"]
        more += ["--output", str(folder / "out"), "--report", "html", "--report-size", "40"]
        more += ["--html", str(folder / "pages" / "page.html")]
        assert main([*arguments, *more]) == 0
    return json.loads((folder / "out" / "evaluation.json").read_text()), alive


def test_every_model_is_a_row_with_its_own_sampler(written):
    content, _ = written
    rows = {r["name"]: r for r in content["results"]}
    assert list(rows) == ["pre-restored", "m", "m-2"]
    assert rows["m"]["description"].startswith("DoSSR: 5 steps of sde, order 3")
    assert rows["m-2"]["description"] == "RRDBNet, one pass"
    assert [r["cost"]["evaluations"] for r in rows.values()] == [0, 5, 0]
    parameters = [r["cost"]["parameters"] for r in rows.values()]
    assert 0 < parameters[0] < parameters[1] and 0 < parameters[2]
    assert all(r["images"].keys() == {"a", "<b>"} for r in rows.values())


def test_one_model_is_in_memory_at_a_time(written):
    assert written[1] == [0, 0]


def test_the_page_shows_the_same_part_of_all_results(folder, written):
    content, _ = written
    text = (folder / "out" / "evaluation.html").read_text()
    page = Page(text)
    assert page.headings == ["<b>", "a"]
    names = ["LR, bicubic", "pre-restored", "m", "m-2", "HR"]
    assert [p["alt"] for p in page.pictures] == 2 * names
    assert all(p["src"].startswith("data:image/webp;base64,") for p in page.pictures)
    assert {(p["width"], p["height"]) for p in page.pictures} == {("40", "40")}
    assert "http:" not in text and "https:" not in text and 'src=".' not in text
    assert text.count("<script>") == 1 and text.count("<section>") == 2  # one slider per image
    for result in content["results"]:
        assert f"psnr_y {result['images']['a']['psnr_y']:.4f}" in text
        assert f"<td>{result['mean']['flip']:.4f}</td>" in text


def test_a_page_alone_is_written_where_html_says(folder, written):
    page = (folder / "pages" / "page.html").read_bytes()
    assert page == (folder / "out" / "evaluation.html").read_bytes()


@pytest.mark.parametrize(
    "named, baselines, given",
    [
        ([], ["bicubic"], ["dossr-mini", "realesrgan"]),
        (["--model", "a"], [], ["a"]),
        (["--baselines", "bicubic"], ["bicubic"], None),
        (["restored"], [], None),
    ],
)
def test_a_page_compares_what_is_named_or_the_usual_three(named, baselines, given, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "_evaluate", lambda args, words: seen.append(args) or 0)
    assert main(["--lr", "photos", "--html", "page.html", *named]) == 0
    assert (seen[0].baselines, seen[0].model) == (baselines, given)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--steps", "2"], ["m-2: steps 2", "RRDBNet does not read it"]),
        (["--preprocessor", "x"], ["m-2: --preprocessor x", "RRDBNet has no pre-restorer"]),
        (["--report", "html"], ["--report", "--output"]),
        (["--report-images", "-1"], ["--report-images"]),
        (["--report-size", "0"], ["--report-size"]),
        (["--html", "."], [".: a folder", "evaluation.html"]),
        (["--model", "none"], ["none: no such model"]),
    ],
)
def test_what_a_model_does_not_read_is_refused_before_any_is_loaded(
    arguments, options, words, monkeypatch, capsys
):
    monkeypatch.setattr("dossr_jax.options.load", lambda *args, **kwargs: pytest.fail("loaded"))
    assert main([*arguments, *options]) == 2
    assert_one_error(capsys.readouterr().err, *words)


@pytest.mark.parametrize("baseline", ["pre-restored", "autoencoder", "ddpm-5", "rrdb:x"])
def test_baselines_that_the_first_model_cannot_run_are_refused(folder, baseline, capsys):
    arguments = ["--lr", str(folder / "lr"), "--hr", str(folder / "hr"), "--model"]
    arguments += [str(folder / "two" / "m.safetensors"), "--baselines", baseline]
    assert main(arguments) == 2
    assert_one_error(capsys.readouterr().err, f"m: baseline {baseline}: RRDBNet")


def test_a_model_that_cannot_be_loaded_stops_no_other(arguments, monkeypatch, capsys):
    def load(*args, model, real=options.load, **kwargs):
        if "two" in model:
            raise UserError("two: not finite")
        return real(*args, model=model, **kwargs)

    monkeypatch.setattr(options, "load", load)
    assert main([*arguments, "--repeats", "0", "--tile", "128"]) == 2
    said = capsys.readouterr()
    assert "two: not finite" in said.err and "1 could not be" in said.out


def test_names_are_made_unique():
    assert unique(["a", "b", "a", "a-2", "a"], taken=["b"]) == ["a", "b-2", "a-2", "a-2-2", "a-3"]


@pytest.mark.parametrize("size, side", [((20, 30), 8), ((5, 30), 8), ((4, 4), 8)])
def test_the_place_where_images_differ_most(size, side):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    other = image.copy()
    assert place_of_difference([image, other], side) == (0, 0)
    other[-1, -1] ^= 128
    best = tuple(max(0, length - side) for length in size)
    assert place_of_difference([image, image, other], side) == best
