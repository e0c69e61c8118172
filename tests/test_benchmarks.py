"""Benchmarks run, in small, print what they promise, and compare the same work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # last: it has a train.py, too

import restore  # noqa: E402
import torch_baseline  # noqa: E402
import torch_dossr  # noqa: E402
import torch_networks  # noqa: E402
from side_by_side import Setup  # noqa: E402

from dossr_jax.config import DoSSRConfig, RRDBConfig, SamplerConfig, UNetConfig, VAEConfig  # noqa: E402
from dossr_jax.pipeline import Upscaler  # noqa: E402


def lines(script, *options):
    """What a benchmark prints. XLA optimises little, which halves the time to compile."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *options],
        capture_output=True,
        text=True,
        env=environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        check=True,
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("case", ["help", pytest.param("exported", marks=pytest.mark.slow)])
def test_cold_start(case):
    command = [sys.executable, ROOT / "benchmarks" / "cold_start.py", "--cases", case]
    options = ["--repeats", "2", "--model", "realesrgan-anime", "--size", "4"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    values = json.loads(done.stdout)
    assert values["case"] == case and len(values["all_s"]) == 2
    assert 0 < values["min_s"] == min(values["all_s"]) <= values["median_s"]


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in ("step", "encode", "decode")]


@pytest.mark.parametrize("case", ["rrdb", *SLOW])
def test_network(case):
    options = ["--width", "32", "--size", "64", "--repeats", "1"]
    (values,) = lines("network.py", "--case", case, *options)
    assert values["case"] == case and values["size"] == 64
    assert values["ratio"] == pytest.approx(values["jax_s"] / values["torch_s"], rel=0.2)


TINY = ("--config", "tiny", "--size", "128", "--repeats", "1", "--steps", "2")


@pytest.mark.usefixtures("compiled_quickly")
def test_restoring_is_accounted(capsys):
    assert restore.main([*TINY, "--batches", "2"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["batch"], values["steps"], values["finite"]) == (2, 2, True)
    assert values["images_per_s"] == pytest.approx(2 / values["program_s"], rel=0.01)
    speed = values["images_per_s"] * values["flops_per_image"]
    assert values["flops_per_s"] == pytest.approx(speed, rel=0.01)
    assert 0 < values["fraction_of_peak"] < 1.5
    assert values["upscaler_s"] > 0 and values["compile_s"] > 0 and values["peak_bytes"] > 2**20


@pytest.mark.slow
def test_restoring_is_taken_apart(tmp_path):
    whole, *parts, profile = lines("restore.py", *TINY, "--parts", "--profile", tmp_path)
    names = ["pre_restore", "encode", "step", "decode", "finish"]
    assert [part["part"] for part in parts] == names
    assert [part["runs"] for part in parts] == [1, 1, 2, 1, 1]
    flops = sum(part["runs"] * part["flops"] for part in parts)
    assert flops == pytest.approx(whole["flops_per_image"], rel=0.3)
    shares = [kernel["share"] for kernel in profile["kernels"]]
    assert shares == sorted(shares, reverse=True) and 0.5 < sum(shares) < 1.01


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--config", "sd21_dossr", "--size", "32"], "multiple of 64"),
        (["--model", "realesrgan", "--steps", "3"], "takes no steps"),
        (["--model", "realesrgan", "--parts"], "DoSSR"),
    ],
)
def test_what_cannot_be_timed_is_refused(options, reason, capsys):
    assert restore.main(options) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and reason in printed.err and printed.err.count("\n") == 1


@pytest.mark.usefixtures("compiled_quickly")
def test_pytorch_does_the_same_work():
    """Both sides of torch_baseline.py, with the same weights and noise, give the same images."""
    config = DoSSRConfig(
        unet=UNetConfig(
            model_channels=32, channel_mult=(1, 2), num_res_blocks=1, head_dim=16, context_dim=8
        ),
        vae=VAEConfig(base_channels=32, channel_mult=(1, 1, 2), num_res_blocks=1),
        rrdb=RRDBConfig(num_features=8, num_blocks=1, growth=4),
        context_length=3,
        sampler=SamplerConfig(steps=3),
    )
    setup = Setup(32, 128, 2, "float32", "cpu", contiguous=False, compile=False)
    nets, images = torch_dossr.Networks(config).eval(), torch_baseline.draw_images(setup)
    model = torch_baseline.make_model(nets, setup)
    ours = torch_baseline.make_ours(Upscaler(model, devices=jax.devices()[:1]), setup, images)()
    place = setup.place(torch_networks)
    theirs = torch_baseline.make_theirs(place.module(nets), setup, images, place)()
    assert theirs[1].std() > 20
    apart = torch_baseline.differences(ours, theirs)
    # Rounding of floats near half a level; the result has ours to hold the mean colours of areas.
    assert apart["pre_restored_most_apart"] <= 1 and apart["decoded_most_apart"] <= 1


@pytest.mark.slow
def test_a_whole_restoration_is_compared():
    options = ["--ours", "--width", "32", "--size", "128", "--steps", "1", "--repeats", "1"]
    (values,) = lines("torch_baseline.py", *options)
    assert values["decoded_most_apart"] <= 1
    assert values["ratio"] == pytest.approx(values["jax_s"] / values["torch_s"], rel=0.2)
