"""Names of results: distinct, predictable, and never that of an input."""

import os

import pytest
from PIL import Image

from dossr_jax.errors import UserError
from dossr_jax.folder.finding import Problems, find
from dossr_jax.folder.naming import Naming, name_results

VALUES = {"scale": "4", "model": "dossr-mini", "seed": "7"}


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    folder.mkdir()
    return folder


def fill(folder, *names, format="PNG"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / name, format=format)


def names(*paths, output, template="{stem}", format="png", stages=()):
    """Input -> its result and stages, both as texts; and the problems."""
    problems = Problems()
    found = find(paths, output, problems)
    named = name_results(found, Naming(template, format, VALUES), output, stages, problems)
    results = {
        item.relative.as_posix(): " ".join(str(file) for file in (result, *more))
        for item, (result, more) in zip(found.inputs, named, strict=True)
    }
    return results, [str(problem) for problem in problems]


def test_results_keep_name_and_place(album, tmp_path):
    fill(album, "a.jpg", "sub/b.PNG", "scan.001", "scan.002", "plain")
    expected = {"a.jpg": "a.png", "sub/b.PNG": "sub/b.png", "plain": "plain.png"}
    expected |= {"scan.001": "scan.001.png", "scan.002": "scan.002.png"}
    assert names(album, output=tmp_path / "out") == (expected, [])


def test_photos_of_one_name_are_told_apart_by_their_kind(album, tmp_path):
    """Whichever of them are restored."""
    fill(album, "a.png", "a.jpg", "a.webp", "b.jpg", "b.JPEG", "c.cr2", "c.jpg")
    (album / "b.txt").write_text("x")
    expected = {"a.png": "a.png", "a.jpg": "a_jpg.png", "a.webp": "a_webp.png"}
    expected |= {"b.jpg": "b_jpg.png", "b.JPEG": "b_JPEG.png"}
    expected |= {"c.cr2": "c_cr2.png", "c.jpg": "c_jpg.png"}
    assert names(album, output=tmp_path / "out") == (expected, [])
    for name, result in expected.items():
        assert names(album / name, output=tmp_path / "out") == ({name: result}, [])


def test_names_in_a_template(album, tmp_path):
    fill(album, "a.jpg", "a.webp")
    template = "{stem}-{suffix}_x{scale}_{model}_{seed}"
    results, _ = names(album, output=tmp_path / "out", template=template)
    assert results == {
        "a.jpg": "a-jpg_x4_dossr-mini_7.png",
        "a.webp": "a-webp_x4_dossr-mini_7.png",
    }


@pytest.mark.parametrize(
    "template",
    ["{name}", "{stem.name}", "{stem", "{stem:d}", "{stem:{x}}", "{0}{stem}", "x", "a/{stem}"],
)
def test_a_wrong_template_is_one_line(template):
    with pytest.raises(UserError) as caught:
        Naming(template, "png", VALUES)
    assert template in str(caught.value) and "{stem} {suffix} {scale}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_format_of_the_input_where_it_can_be_written(album, tmp_path):
    fill(album, "a.jpg", "b.TIF", "plain", "c.gif", "d.heic", "e.nef")
    results, _ = names(album, output=tmp_path / "out", format="same")
    assert results == {
        "a.jpg": "a.jpg",
        "b.TIF": "b.TIF",
        "plain": "plain.png",
        "c.gif": "c.png",
        "d.heic": "d.png",
        "e.nef": "e.png",
    }


def test_names_that_differ_in_case_or_accents_alone_are_told_apart(album, tmp_path):
    fill(album, "A.png", "a.png", "Sub/b.png", "sub/b.png", "e\u0301.png", "\u00e9.png")
    results, problems = names(album, output=tmp_path / "out")
    assert problems == []
    assert results["A.png"] == "A.png" and results["Sub/b.png"] == "Sub/b.png"
    marked = [name for name, result in results.items() if result != name]
    assert marked == ["a.png", "\u00e9.png", "sub/b.png"]
    for name in marked:
        stem = name.removesuffix(".png")
        assert results[name].startswith(f"{stem}_") and len(results[name]) == len(name) + 9


def test_names_that_are_too_long_are_cut_and_stay_distinct(album, tmp_path):
    long = ["n" * 251 + ".png", "n" * 250 + "m.png", "\u00fc" * 125 + ".png"]
    fill(album, *long)
    stages = ("pre_restored",)
    results, problems = names(album, output=tmp_path / "out", format="webp", stages=stages)
    files = [name for pair in results.values() for name in pair.split()]
    assert problems == [] and len(set(files)) == 6
    for name in files:
        assert len(os.fsencode(name)) <= 255 and name.endswith(".webp")
    assert names(album / long[0], output=tmp_path / "out", format="webp", stages=stages)[0] == {
        long[0]: results[long[0]]
    }


def test_names_of_no_encoding_are_names(album, tmp_path):
    name = os.fsdecode(b"\xff\xfe.png")
    fill(album, name)
    assert names(album, output=tmp_path / "out") == ({name: name}, [])


def test_results_in_the_place_of_inputs_are_one_line(album):
    fill(album, "a.png", "b.png", "c.jpg")
    _, problems = names(album, output=album)
    assert len(problems) == 1 and "a.png" in problems[0] and "1 more" in problems[0]
    results, problems = names(album, output=album, template="{stem}_x4")
    assert problems == [] and results["a.png"] == "a_x4.png"
    assert names(album / "c.jpg", output=album) == ({"c.jpg": "c.png"}, [])


def test_a_photo_beside_the_result_keeps_its_name(album):
    fill(album, "a.png", "a.jpg")
    assert names(album / "a.jpg", output=album) == ({"a.jpg": "a_jpg.png"}, [])


def test_one_name_from_two_folders_is_one_line(tmp_path):
    fill(tmp_path, "x/a.png", "y/a.jpg", "x/b.png", "y/b.png")
    _, problems = names(tmp_path / "x", tmp_path / "y", output=tmp_path / "out")
    assert len(problems) == 1 and "1 more" in problems[0] and "different output" in problems[0]


def test_stages_never_take_the_place_of_results(album, tmp_path):
    fill(album, "a.png", "a_decoded.png")
    _, problems = names(album, output=tmp_path / "out", stages=("decoded",))
    assert len(problems) == 1 and "a_decoded.png" in problems[0]
