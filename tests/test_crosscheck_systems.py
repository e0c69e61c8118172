"""Folders of the systems beside DoSSR: all agrees, and faults in weights and settings are found."""

import json
import shutil

import numpy as np
import pytest
import yaml
from helpers import zoo
from safetensors.numpy import load_file, save_file

from dossr_jax.crosscheck import main

# Entries of the networks, and the arrays that are neither compared nor inputs.
FOLDERS = {
    "dasr": (34, []),
    "swinir": (
        36,
        [
            "stage1_pad64",
            "stage1_windows_40x56_tile16_stride12",
            "stage1_gaussian_16x16_f64",
        ],
    ),
    "resshift": (57, ["swin_mask_unshifted_max"]),
}


def assert_all_agree(system, dtypes, capsys, *arguments):
    count, left = FOLDERS[system]
    assert main([str(zoo.FOLDER / system), *arguments]) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out
    for dtype in dtypes:
        assert f"{dtype}: {count} of {count} entries agree" in out
    lines = [line for line in out.splitlines() if line.startswith("neither compared")]
    assert lines == ([f"neither compared nor an input: {', '.join(left)}"] if left else [])
    return out


def test_dasr(capsys):
    assert_all_agree("dasr", ["float64", "float32"], capsys)


def test_swinir(capsys):
    assert_all_agree("swinir", ["float64", "float32"], capsys)


def test_resshift(capsys):
    out = assert_all_agree("resshift", ["float64"], capsys, "--dtype", "float64")
    assert "host: 36 of 36 entries agree" in out


@pytest.mark.slow
def test_resshift_in_float32(capsys):
    assert_all_agree("resshift", ["float32"], capsys, "--dtype", "float32")


@pytest.fixture
def copy(tmp_path):
    """Makes a copy of a system's folder to damage."""
    return lambda system: shutil.copytree(zoo.FOLDER / system, tmp_path / system)


def change_settings(folder, change):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    change(settings)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def change_weights(folder, change):
    tensors = load_file(folder / "weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")


def test_a_changed_weight_is_found(copy, capsys):
    folder = copy("dasr")

    def change(tensors):
        tensors["predictor.MappingNet.1.bias"][2] += 0.01

    change_weights(folder, change)
    only = ["--dtype", "float32", "--only", "^odd_(params|weights)$"]
    assert main([str(folder), *only]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 entries agree" in out and "FAILED: odd_weights\n" in out


def test_a_changed_setting_is_found(copy, capsys, tmp_path):
    folder, table = copy("resshift"), tmp_path / "table.json"
    change_settings(folder, lambda settings: settings["diffusion_v3"].update(etas_end=0.98))
    assert main([str(folder), "--only", "^sched_", "--json", str(table)]) == 1
    rows = json.loads(table.read_text())["rows"]
    failed = {row["entry"] for row in rows if not row["passed"]}
    assert "sched_v3_s4_posterior_mean_coef1" in failed
    assert all(name.startswith("sched_v3") for name in failed)


def more_tensors(folder):
    change_weights(folder, lambda tensors: tensors.update({"x8.norm.bias": np.zeros(3)}))


def fewer_draws(folder):
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    arrays["samp_v3_s4_noise"] = arrays["samp_v3_s4_noise"][:4]
    np.savez(folder / "golden.npz", **arrays)


REFUSED = {
    "tensors of no network": ("swinir", more_tensors, "x8.norm.bias belongs to none"),
    "too little noise": ("resshift", fewer_draws, "4 draws of noise"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_bad_folders_are_refused_in_one_line(copy, capsys, damage):
    system, spoil, says = REFUSED[damage]
    folder = copy(system)
    spoil(folder)
    assert main([str(folder), "--dtype", "float32", "--only", "^(x4_sq_out|samp_v3_s4_x)$"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert says in error and str(folder) in error
