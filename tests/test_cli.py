"""The command line: every picture gets its result, every mistake one line and exit status 2."""

import dataclasses
import errno
import os

import numpy as np
import pytest
from helpers.models import randomised, tiny_model
from helpers.systems import small_config
from PIL import Image

from dossr_jax import cli, image_io, systems, weights
from dossr_jax.pipeline import Upscaler, memory
from dossr_jax.systems.task import TaskModel


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    systems.save_model(path, tiny_model())
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (9, 12), "b.jpg": (16, 8), "sub/c.png": (5, 5)}.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def run(model_file, tmp_path, capsys):
    """Run on inputs with the tiny model: (exit status, results by name, stderr)."""

    def run(*inputs, options=(), model=model_file):
        out = tmp_path / "out"
        status = cli.main(
            [*map(str, inputs), "-o", str(out), "--model", str(model), "--steps", "1", "--tile"]
            + ["128", *options]
        )
        results = {str(p.relative_to(out)): p for p in out.rglob("*") if p.is_file()}
        results.pop("dossr.jsonl", None)
        return status, results, capsys.readouterr().err

    return run


def size_of(path):
    """(width, height) of an image file."""
    with Image.open(path) as image:
        return image.size


def assert_one_error(err: str, *words: str) -> None:
    """Exactly one line of stderr is an error, and it names what it should."""
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0]


def test_folders_keep_their_shape_and_sizes_are_exact(run, photos):
    status, results, _ = run(photos, options=["--scale", "2.5"])
    assert status == 0
    assert set(results) == {"a.png", "b.png", "sub/c.png"}
    assert size_of(results["a.png"]) == (30, 22)
    assert size_of(results["b.png"]) == (20, 40)


def test_stages_are_saved_beside_the_result(run, photos):
    status, results, _ = run(photos / "a.png", options=["--save-stages"])
    assert status == 0
    assert set(results) == {"a.png", "a_pre_restored.png", "a_decoded.png"}
    assert {size_of(p) for p in results.values()} == {(48, 36)}


def test_results_are_restored_again_for_other_settings_alone(run, photos):
    _, results, _ = run(photos / "a.png")
    before = results["a.png"].stat().st_mtime_ns
    status, results, _ = run(photos / "a.png")
    assert status == 0 and results["a.png"].stat().st_mtime_ns == before
    run(photos / "a.png", options=["--seed", "5"])
    assert results["a.png"].stat().st_mtime_ns != before


def test_files_of_others_are_kept_unless_overwriting_is_asked_for(run, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    status, results, _ = run(photos / "a.png")
    assert status == 0 and results["a.png"].read_bytes() == b"mine"
    run(photos / "a.png", options=["--overwrite"])
    assert size_of(results["a.png"]) == (48, 36)


@pytest.mark.parametrize(
    "make",
    {
        "truncated": lambda p: p.write_bytes((p.parent / "a.png").read_bytes()[:60]),
        "empty": lambda p: p.write_bytes(b""),
        "text": lambda p: p.write_text("not a picture"),
    }.items(),
    ids=lambda item: item[0],
)
def test_one_bad_file_does_not_stop_the_others(run, photos, make):
    make[1](photos / "bad.png")
    status, results, err = run(photos)
    assert status == 2
    assert set(results) == {"a.png", "b.png", "sub/c.png"}
    assert_one_error(err, "bad.png")


def test_inputs_that_are_not_there(run, photos, tmp_path):
    status, results, err = run(photos / "nothing.png")
    assert (status, results) == (2, {})
    assert_one_error(err, "nothing.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    status, results, err = run(empty)
    assert (status, results) == (2, {})
    assert_one_error(err, "empty")


def test_two_inputs_of_one_name_have_two_results(run, photos):
    Image.new("RGB", (4, 4)).save(photos / "a.webp")
    status, results, _ = run(photos / "a.png", photos / "a.webp")
    assert status == 0 and set(results) == {"a.png", "a_webp.png"}
    assert size_of(results["a_webp.png"]) == (16, 16)


def test_results_never_take_the_place_of_inputs(photos, capsys):
    before = (photos / "a.png").read_bytes()
    assert cli.main([str(photos), "-o", str(photos), "--overwrite"]) == 2
    assert_one_error(capsys.readouterr().err, "a.png", "output folder")
    assert (photos / "a.png").read_bytes() == before


def test_stages_never_take_the_place_of_results(run, photos):
    Image.new("RGB", (4, 4)).save(photos / "a_decoded.png")
    status, results, err = run(photos, options=["--save-stages"])
    assert (status, results) == (2, {})
    assert_one_error(err, "a_decoded.png")


def test_an_output_that_is_no_folder(photos, capsys):
    for output in (photos / "a.png", photos / "a.png" / "deeper"):
        assert cli.main([str(photos / "b.jpg"), "-o", str(output)]) == 2
        assert_one_error(capsys.readouterr().err, str(output))


def test_a_result_that_is_too_large_stops_no_other(run, photos, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 6 * 300 * 300)
    Image.new("RGB", (1, 1)).save(photos / "one.png")
    status, results, err = run(photos / "one.png", photos / "b.jpg", options=["--scale", "300"])
    assert status == 2 and set(results) == {"one.png"}
    assert size_of(results["one.png"]) == (300, 300)
    assert_one_error(err, "b.jpg", "2400x4800", "reduce the scale")


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "foreign", "folder", "misshapen"])
def test_a_wrong_checkpoint_is_one_line(run, photos, model_file, tmp_path, kind):
    path = tmp_path / "wrong.safetensors"
    whole = model_file.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        path.write_text("weights")
    elif kind == "foreign":
        arrays = {"conv.weight": np.zeros((2, 2), np.float32)}
        weights.write_safetensors(path, arrays)
    elif kind == "folder":
        path.mkdir()
    elif kind == "misshapen":
        model = tiny_model()
        arrays = {n: np.asarray(p[...]) for n, p in weights.names_and_params(model)}
        arrays["unet.conv_out.bias"] = np.zeros(7, np.float32)
        del arrays["unet.norm_out.scale"]
        header = systems.metadata_for(model.config)
        weights.write_safetensors(path, arrays, header)
    status, results, err = run(photos, model=path)
    assert (status, results) == (2, {})
    assert_one_error(err, "wrong.safetensors")
    if kind == "misshapen":
        assert_one_error(err, "misshapen unet.conv_out.bias", "(7,)", "(4,)")
        assert_one_error(err, "missing unet.norm_out.scale")


def test_a_full_disk_leaves_nothing_half_written(run, photos, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith("a.png"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target)

    monkeypatch.setattr(image_io.os, "replace", full)
    status, results, err = run(photos)
    assert status == 2
    assert set(results) == {"b.png", "sub/c.png"}
    assert_one_error(err, "a.png", "No space left")


@pytest.mark.parametrize(
    "options", [["--scale", "0"], ["--steps", "51"], ["--fidelity", "2"], ["--prompt", "a cat"]]
)
def test_impossible_options(run, photos, options):
    status, results, err = run(photos, options=options)
    assert (status, results) == (2, {})
    assert_one_error(err)


# --- maps -----------------------------------------------------------------------------------


@pytest.fixture
def maps(photos, tmp_path):
    """A map of every photo, below a folder: white keeps all of a.png and sub/c.png."""
    folder = tmp_path / "maps"
    (folder / "sub").mkdir(parents=True)
    for name, (height, width), level in (
        ("a.tif", (9, 12), 255),
        ("b.png", (16, 8), 0),
        ("sub/c.png", (5, 5), 255),
    ):
        Image.fromarray(np.full((height, width), level, np.uint8)).save(folder / name)
    return folder


def test_a_folder_of_maps_says_what_of_every_photo_is_kept(run, model_file, photos, maps):
    status, kept, _ = run(photos, options=["--eta-map", str(maps)])
    assert status == 0
    kept = {name: image_io.read_image(path) for name, path in kept.items()}
    _, free, _ = run(photos)
    free = {name: image_io.read_image(path) for name, path in free.items()}
    upscaler = Upscaler.from_pretrained(model_file, tile=128)
    np.testing.assert_array_equal(kept["b.png"], free["b.png"])
    for name in ("a.png", "sub/c.png"):
        assert (kept[name] != free[name]).mean() > 0.5
        plain = upscaler.restore(photos / name, diffuse=False).astype(int)
        assert np.abs(kept[name] - plain).max() <= 1  # of another program


def test_a_result_is_made_again_where_its_map_has_changed(run, photos, maps):
    options = ["--eta-map", str(maps / "a.tif")]
    _, results, _ = run(photos / "a.png", options=options)
    with Image.open(results["a.png"]) as image:
        assert "eta map a.tif" in image.text["Parameters"]
    before = results["a.png"].stat().st_mtime_ns
    assert run(photos / "a.png", options=options)[0] == 0
    assert results["a.png"].stat().st_mtime_ns == before
    Image.fromarray(np.full((9, 12), 254, np.uint8)).save(maps / "a.tif")
    assert run(photos / "a.png", options=options)[0] == 0
    assert results["a.png"].stat().st_mtime_ns != before


def test_a_photo_without_its_map_stops_no_other(run, photos, maps):
    (maps / "a.tif").unlink()
    Image.new("L", (8, 17)).save(maps / "b.png")
    status, results, err = run(photos, options=["--eta-map", str(maps)])
    assert status == 2 and set(results) == {"sub/c.png"}
    errors = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert "a.png" in errors[0] and "has no image a.png for it; add one" in errors[0]
    assert "b.png: 8x17 pixels, the picture has 8x16" in errors[1]


def test_maps_that_cannot_be(run, photos, maps, tmp_path):
    for options, words in (
        (["--eta-map", str(tmp_path / "none")], ("none: no such file or folder",)),
        (["--mask", str(maps)], ("not a model for task inpaint",)),
    ):
        status, results, err = run(photos, options=options)
        assert (status, results) == (2, {})
        assert_one_error(err, *words)


def test_a_mask_says_what_a_model_that_inpaints_fills(run, photos, tmp_path):
    config = dataclasses.replace(small_config("task"), task="inpaint")
    model = tmp_path / "inpaint.safetensors"
    systems.save_model(model, randomised(lambda rngs: TaskModel(config, rngs=rngs)))
    mask = np.zeros((9, 12), np.uint8)
    mask[2:7, 3:9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    status, results, _ = run(
        photos / "a.png", options=["--mask", str(tmp_path / "mask.png")], model=model
    )
    filled, image = (image_io.read_image(p) for p in (results["a.png"], photos / "a.png"))
    assert status == 0
    np.testing.assert_array_equal(filled[mask == 0], image[mask == 0])
    assert (filled[mask > 0] != image[mask > 0]).mean() > 0.5
