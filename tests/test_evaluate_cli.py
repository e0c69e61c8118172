"""The evaluation's command line: what is measured, what is refused, and what it says."""

import csv
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import tiny_model
from helpers.pictures import picture, save
from helpers.small import SMALL
from test_cli import assert_one_error

from dossr_jax import systems, weights
from dossr_jax.evaluate import bicubic, make_lr, score
from dossr_jax.evaluate.__main__ import main
from dossr_jax.evaluate.scores import OWN
from dossr_jax.image import pad_to
from dossr_jax.image_io import read_image


@pytest.fixture(scope="module")
def network():
    return tiny_model(config=SMALL)


@pytest.fixture(scope="module")
def model_file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    systems.save_model(path, network)
    return path


@pytest.fixture
def folders(tmp_path):
    """Three pairs of one size, HR and restored, and the LR images they might come from."""
    for i, name in enumerate(("a", "b", "sub/c")):
        hr = picture(64, 48, seed=i)
        lr = bicubic.resize_uint8(hr, 0.25)
        save(tmp_path / "hr" / f"{name}.png", hr)
        save(tmp_path / "lr" / f"{name}.png", lr)
        save(tmp_path / "sr" / f"{name}.png", bicubic.resize_uint8(lr, 4))
    return tmp_path


def content(folder) -> dict:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads((folder / "evaluation.json").read_text(), parse_constant=refuse)


def test_two_folders(folders, capsys):
    out = folders / "out"
    assert main([str(folders / "sr"), "--hr", str(folders / "hr"), "-o", str(out)]) == 0
    (result,) = content(out)["results"]
    assert set(result["images"]) == {"a", "b", "sub/c"} and result["cost"] is None
    pair = [bicubic.resize_uint8(bicubic.resize_uint8(picture(64, 48, seed=0), 0.25), 4)]
    pair.append(picture(64, 48, seed=0))
    names = ["psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb"]
    assert result["images"]["a"] == score(*pair, names)
    mean = np.mean([scores["psnr_y"] for scores in result["images"].values()])
    assert result["mean"]["psnr_y"] == pytest.approx(mean)
    rows = list(csv.DictReader((out / "evaluation.csv").read_text().splitlines()))
    assert [row["kind"] for row in rows] == ["image"] * 3 + ["mean"]
    assert float(rows[-1]["psnr_y"]) == pytest.approx(mean)
    printed = capsys.readouterr().out
    assert "sub/c" in printed and f"{mean:.4f}" in printed and "4 px border" in printed
    assert "niqe: not defined for 3 images" in printed
    assert not list(out.glob(".*.tmp"))


def test_equal_folders_are_perfect_in_strict_json(folders):
    out = folders / "out"
    hr = str(folders / "hr")
    assert main([hr, "--hr", hr, "-o", str(out), "--metrics", "psnr_y", "ssim_y"]) == 0
    mean = content(out)["results"][0]["mean"]
    assert mean["psnr_y"] == "inf" and mean["ssim_y"] == pytest.approx(1)


def test_bicubic_baseline_is_what_a_folder_of_its_images_is(folders):
    out = folders / "out"
    arguments = [str(folders / "sr"), "--hr", str(folders / "hr"), "--lr", str(folders / "lr")]
    assert main([*arguments, "--baselines", "bicubic", "-o", str(out), "--summary"]) == 0
    folder, baseline = content(out)["results"]
    assert folder["images"] == baseline["images"]
    assert baseline["cost"]["parameters"] == baseline["cost"]["evaluations"] == 0


def test_model_and_baselines_on_degraded_images(folders, network, model_file, capsys):
    out = folders / "out"
    arguments = ["--hr", str(folders / "hr"), "--preset", "bicubic", "--model", str(model_file)]
    arguments += ["--baselines", "bicubic", "pre-restored", "ddpm-5", "ddim-15", "--tile", "128"]
    arguments += ["--steps", "2", "--cfg-scale", "1.5", "-o", str(out), "--save-images"]
    assert main([*arguments, "--repeats", "1", "--metrics", "psnr_y"]) == 0
    results = {r["name"]: r for r in content(out)["results"]}
    assert list(results) == ["bicubic", "pre-restored", "ddpm-5", "ddim-15", "tiny"]
    costs = {name: r["cost"] for name, r in results.items()}
    evaluations = {name: cost["evaluations"] for name, cost in costs.items()}
    # Guidance evaluates the network twice a step.
    assert evaluations == {"bicubic": 0, "pre-restored": 0, "ddpm-5": 10, "ddim-15": 30, "tiny": 4}
    sizes = {name: param.size for name, param in weights.names_and_params(network)}
    assert costs["tiny"]["parameters"] == sum(sizes.values())
    rrdb = sum(size for name, size in sizes.items() if name.startswith("rrdb"))
    assert costs["pre-restored"]["parameters"] == rrdb
    assert all(cost["latency"] > 0 and cost["timed"] == "12x16" for cost in costs.values())
    assert {p.name for p in (out / "ddim-15").iterdir()} == {"a.png", "b.png", "sub"}
    lr = make_lr(picture(64, 48, seed=0), preset="bicubic", seed=0, name="a")
    want = score(bicubic.resize_uint8(lr, 4), picture(64, 48, seed=0), ["psnr_y"])
    assert results["bicubic"]["images"]["a"] == want
    assert "sde, order 1, grid uniform, start noise" in results["ddpm-5"]["description"]
    assert str(jax.local_devices()[0].device_kind) in capsys.readouterr().out


def test_the_autoencoder_is_measured_on_the_ground_truth(folders, network, model_file):
    """Sides need not be those of the latents: the image is continued, and cut again."""
    hr = picture(57, 45, seed=7)
    save(folders / "odd" / "a.png", hr)
    save(folders / "small" / "a.png", bicubic.resize_uint8(hr, 1 / 3))
    arguments = [
        "--hr",
        str(folders / "odd"),
        "--scale",
        "3",
        "--lr",
        str(folders / "small"),
        "--baselines",
    ]
    arguments += ["autoencoder", "--model", str(model_file), "--repeats", "0", "--save-images"]
    assert main([*arguments, "--metrics", "psnr_y", "-o", str(folders / "out")]) == 0
    result = content(folders / "out")["results"][0]
    sizes = {name: param.size for name, param in weights.names_and_params(network)}
    vae = sum(size for name, size in sizes.items() if name.startswith("vae."))
    assert result["name"] == "autoencoder" and result["cost"]["parameters"] == vae
    unit = network.config.vae.downscale
    padded = pad_to(hr, *(-(-side // unit) * unit for side in hr.shape[:2]))
    moments, _ = network.encode(jnp.asarray(padded[None], jnp.float32) / 255)
    decoded = np.asarray(network.decode(network.latents(moments)))[0, :57, :45]
    got = read_image(folders / "out" / "autoencoder" / "a.png")
    np.testing.assert_allclose(got, 255 * np.clip(decoded, 0, 1), atol=0.51)


def test_odd_files_are_listed_and_the_rest_is_measured(folders, capsys):
    out = folders / "out"
    save(folders / "sr" / "extra.png", picture(64, 48))
    (folders / "sr" / "b.png").unlink()
    assert main([str(folders / "sr"), "--hr", str(folders / "hr"), "-o", str(out)]) == 2
    errors = capsys.readouterr().err
    assert "extra" in errors and f"without a partner in {folders / 'sr'}: b" in errors
    found = content(out)
    assert set(found["results"][0]["images"]) == {"a", "sub/c"} and len(found["failures"]) == 2


@pytest.mark.parametrize("kind", ["damaged", "size"])
def test_one_bad_file_does_not_stop_the_rest(folders, kind, capsys):
    bad = folders / "sr" / "b.png"
    if kind == "damaged":
        bad.write_bytes(bad.read_bytes()[:80])
    else:
        save(bad, picture(64, 47))
    out = folders / "out"
    assert main([str(folders / "sr"), "--hr", str(folders / "hr"), "-o", str(out)]) == 2
    assert set(content(out)["results"][0]["images"]) == {"a", "sub/c"}
    assert_one_error(capsys.readouterr().err, "b.png")


def test_grey_against_colour_is_said_and_measured(folders, capsys):
    grey = np.repeat(picture(64, 48)[..., :1], 3, -1)
    save(folders / "sr" / "a.png", grey)
    assert main([str(folders / "sr"), "--hr", str(folders / "hr")]) == 0
    assert "grey against colour, measured as three channels: a\n" in capsys.readouterr().out


def test_without_ground_truth_only_niqe(tmp_path, capsys):
    save(tmp_path / "sr" / "a.png", picture(200, 200))
    assert main([str(tmp_path / "sr")]) == 0
    printed = capsys.readouterr().out
    assert "niqe" in printed and "psnr" not in printed


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["nothing to evaluate"]),
        (["{d}/none", "--hr", "{d}/hr"], ["none"]),
        (["{d}/empty", "--hr", "{d}/hr"], ["empty", "no images"]),
        (["{d}/other", "--hr", "{d}/hr"], ["no names in common"]),
        (["{d}/sr", "--hr", "{d}/hr", "--metrics", "lpips"], ["lpips:"]),
        (["{d}/sr", "--hr", "{d}/hr", "--metrics", "psnr"], ["psnr_y"]),
        (["{d}/sr", "--metrics", "psnr_y"], ["--hr"]),
        (["--hr", "{d}/hr", "--baselines", "bicubic"], ["--lr"]),
        (["--hr", "{d}/hr", "--preset", "x", "--baselines", "bicubic"], ["realesrgan"]),
        (
            ["--hr", "{d}/hr", "--preset", "deblur", "--baselines", "bicubic", "--scale", "2"],
            ["leave out --scale"],
        ),
        (["--lr", "{d}/lr", "--hr", "{d}/hr", "--baselines", "ddim-5"], ["--model"]),
        (["--lr", "{d}/lr", "--hr", "{d}/hr", "--baselines", "ddim-6"], ["ddim-5"]),
        (["--lr", "{d}/lr", "--model", "x", "--baselines", "autoencoder"], ["--hr"]),
        (["--lr", "{d}/lr", "--model", "{d}/no.safetensors"], ["no.safetensors"]),
    ],
)
def test_what_cannot_be_done_is_one_line(folders, arguments, words, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(folders))
    (folders / "empty").mkdir()
    save(folders / "other" / "z.png", picture(64, 48))
    assert main([a.format(d=folders) for a in arguments]) == 2
    assert_one_error(capsys.readouterr().err, *words)


def test_nothing_measurable_is_exit_2(folders, capsys):
    for path in (folders / "sr").rglob("*.png"):
        save(path, picture(10, 10))
    out = folders / "out"
    assert main([str(folders / "sr"), "--hr", str(folders / "hr"), "-o", str(out)]) == 2
    assert "nothing could be measured" in capsys.readouterr().err and not out.exists()


def test_libraries_know_what_is_better():
    image = picture(64, 64)
    noise = np.random.default_rng(0).normal(size=image.shape)
    worse, worst = (np.uint8(np.clip(image + s * noise, 0, 255)) for s in (8, 30))
    for name, sign in (("ssimulacra2", 1), ("flip", -1)):
        values = [sign * score(x, image, [name])[name] for x in (image, worse, worst)]
        assert values[0] > values[1] > values[2] and all(map(math.isfinite, values)), name


def test_the_default_metrics_need_no_library():
    for metric in OWN.values():
        metric.check()
