"""The crosscheck itself: what it passes, what it fails, what it refuses, and other folders."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.folders import OTHER, write_model
from safetensors.numpy import load_file, save_file

from dossr_jax import method, restore, systems, weights
from dossr_jax.crosscheck import main, report
from dossr_jax.crosscheck.dossr.entries import KINDS, find_entries
from dossr_jax.crosscheck.dossr.networks import Runner, _quarter
from dossr_jax.crosscheck.entries import HOST, RESTORE, Entry
from dossr_jax.crosscheck.folder import Archive
from dossr_jax.crosscheck.suites import open_folder
from dossr_jax.weights import lazy


def test_networks_and_schedules_agree_with_pytorch(golden_dir, capsys, tmp_path):
    table = tmp_path / "table.json"
    only = "^(sched|eta_|betas|buffers|stage_|eps_)"
    assert main([str(golden_dir), "--only", only, "--json", str(table)]) == 0
    out = capsys.readouterr().out
    assert "all agree" in out and "FAIL" not in out
    rows = json.loads(table.read_text())["rows"]
    names = {row["entry"] for row in rows if row["dtype"] == "float64"}
    assert {"stage_decoded", "eps_eps", "eps_control_12", "eps_unet_skip_00"} <= names
    assert all(row["passed"] for row in rows)


@pytest.mark.slow
def test_everything_agrees_with_pytorch(golden_dir, capsys):
    assert main([str(golden_dir)]) == 0
    out = capsys.readouterr().out
    for dtype, count in ((HOST, 82), ("float64", 136), ("float32", 136)):
        assert f"{dtype}: {count} of {count} entries agree" in out


@pytest.fixture
def copy(golden_dir, tmp_path):
    """A copy of the golden folder to damage."""
    return shutil.copytree(golden_dir, tmp_path / "copy")


def test_one_changed_weight_is_found(copy, capsys):
    tensors = load_file(copy / "weights.safetensors")
    tensors["first_stage_model.decoder.conv_out.weight"][0, 0, 1, 1] += 0.01
    save_file(tensors, copy / "weights.safetensors")
    only = "^stage_(x0_hat|decoded)$"
    assert main([str(copy), "--dtype", "float32", "--only", only]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 entries agree" in out and "FAILED: stage_decoded\n" in out
    assert "NOT EQUAL" in out


def damage_archive(folder, **changes):
    with np.load(folder / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(folder / "golden.npz", **{n: a for n, a in arrays.items() if a is not None})


def test_one_changed_schedule_is_found(copy, capsys):
    damage_archive(copy, sched2_sigmas=np.full(3, 0.5))
    assert main([str(copy), "--only", "^sched2"]) == 1
    assert "FAILED: sched2_sigmas" in capsys.readouterr().out


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


DAMAGES = {
    "missing": (shutil.rmtree, "no such folder"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors"),
    "no config": (lambda f: (f / "config.yaml").unlink(), "config.yaml"),
    "no arrays": (lambda f: (f / "golden.npz").unlink(), "golden.npz"),
    "short weights": (lambda f: truncate(f / "weights.safetensors"), "weights.safetensors"),
    "short arrays": (lambda f: truncate(f / "golden.npz"), "golden.npz"),
    "empty arrays": (lambda f: (f / "golden.npz").write_bytes(b""), "golden.npz"),
    "no mapping": (lambda f: (f / "config.yaml").write_text("- 1\n"), "config.yaml"),
    "no system": (lambda f: (f / "config.yaml").write_text("seed: 1\n"), "config.yaml"),
    "other config": (
        lambda f: (f / "config.yaml").write_text(
            (f / "config.yaml").read_text().replace("model_channels: 32", "model_channels: 64")
        ),
        "misshapen",
    ),
    "no context": (lambda f: damage_archive(f, context=None), "context"),
    "no input": (lambda f: damage_archive(f, lr=None), "lr is missing"),
    "wrong input": (lambda f: damage_archive(f, lr=np.zeros((1, 5, 8, 8))), "do not fit"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_folders_are_refused_in_one_line(copy, capsys, damage):
    spoil, said = DAMAGES[damage]
    spoil(copy)
    assert main([str(copy), "--dtype", "float32", "--only", "^stage_pre$"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert said in error and str(copy) in error


def test_nothing_to_compare_is_an_error(golden_dir, capsys):
    assert main([str(golden_dir), "--only", "no such stage"]) == 2
    assert "nothing to compare" in capsys.readouterr().err


def test_a_bad_pattern_is_an_error(golden_dir):
    with pytest.raises(SystemExit, match="2"):
        main([str(golden_dir), "--only", "("])


ARRAYS = {
    "a": np.array([1.0, 2.0], np.float32),
    "a__f64": np.array([1.0, 2.0 + 2e-6]),
    "b": np.array([1.0, 2.0], np.float32),
    "n": np.array([1, 2]),
    "u": np.zeros(1000, np.uint8),
}


def entry(name, kind="network"):
    return Entry(name, "network", kind, re.match("", ""))


TOLERANCES = report.Tolerances(KINDS, report.own_errors([entry("a"), entry("b")], ARRAYS))


@pytest.mark.parametrize(
    ("name", "dtype", "ours", "passed"),
    [
        ("a", "float64", [1.0, 2.0 + 2e-6], True),
        ("a", "float64", [1.0, 2.0], False),
        ("a", "float32", [1.0, 2.0 + 9.9e-6], True),  # FACTOR times PyTorch's own, from the twin
        ("a", "float32", [1.0, 2.0 + 10.1e-6], False),
        ("a", "float32", [1.0, np.nan], False),
        ("a", "float32", [[1.0, 2.0]], False),
        ("b", "float64", [1.0, 2.0 + 7.9e-6], True),  # no twin: the same, from what is stored
        ("b", "float64", [1.0, 2.0 + 8.1e-6], False),
        ("n", "float32", [1, 2], True),
        ("n", "float32", [1, 3], False),
        ("u", "float32", [1] * 10 + [0] * 990, True),
        ("u", "float32", [1] * 11 + [0] * 989, False),
        ("u", "float32", [2] + [0] * 999, False),
    ],
)
def test_verdicts(name, dtype, ours, passed):
    row = report.compare(entry(name), dtype, np.array(ours), ARRAYS, TOLERANCES)
    assert row.passed == passed
    assert ("FAIL" in report.format_table([row])) != passed
    assert (row.note == "1 of 2 differ") == (name == "n" and not passed)
    assert ("FAILED" in report.summarise([row], dtype)) != passed
    json.dumps(report.as_json([row]), allow_nan=False)


def test_a_tolerance_comes_from_all_that_an_entry_depends_on():
    own = {"pre": 1e-6, "decoding": 6e-5, "network": 1e-9}
    tolerances = report.Tolerances(KINDS, own)
    assert tolerances.float32("pre") == 4e-6
    assert tolerances.float32("fix") == 4 * 6e-5  # stored in float32 alone
    assert tolerances.float32("network") == report.FLOAT32_FLOOR
    assert tolerances._replace(own={"network": 1.0}).float32("image") == report.FLOAT32_CEILING
    assert tolerances._replace(own={}).float32("fix") == 4 * KINDS["fix"].assumed


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["fidelity", "noise"])
def test_a_fault_of_the_restore_program_alone_is_found(golden_dir, capsys, monkeypatch, fault):
    """Whatever the networks do: what users run is what is compared."""

    sound = method.restore_images

    def faulty(*args, controls, noise, **options):
        if fault == "fidelity":
            controls = dataclasses.replace(controls, fidelity=0.5)
        else:
            noise = noise._replace(posterior=noise.start)
        return sound(*args, controls=controls, noise=noise, **options)

    monkeypatch.setattr(method, "restore_images", faulty)
    restore.restore.clear_cache()
    only = ["--dtype", "float32", "--only", "^restore:stage_decoded$"]
    assert main([str(golden_dir), *only]) == 1
    assert "FAILED: restore:stage_decoded" in capsys.readouterr().out
    monkeypatch.undo()
    restore.restore.clear_cache()
    assert main([str(golden_dir), *only]) == 0


def test_names_never_seen_before():
    names = {
        "tall_samp_o2_s7_cfg1.5_adain_img": {"prefix": "tall_", "cfg": "1.5", "fix": "adain"},
        "samp_o1_s12_cfg1p5_x": {"order": "1", "steps": "12", "cfg": "1p5", "what": "x"},
        "samp_o3_s4_img_wavelet": {"fix": None, "img_fix": "wavelet"},
        "tall_process_s9_none_u8": {"prefix": "tall_", "steps": "9", "fix": "none"},
        "eps_eps_strength125": {"strength": "125"},
        "eps_temb64": {"dim": "64"},
        "eps_control_07": {"residual": "07"},
        "wide_eps_t12_eps": {"prefix": "wide_", "t": "12"},
        "train_grad/control_model.zero_convs.3.0.bias": {
            "parameter": "control_model.zero_convs.3.0.bias"
        },
    }
    found = find_entries([*names, "lr", "eps_x_t", "noise_steps", "eps_eps__f64", "meta_json"])
    assert [entry.name for entry in found if entry.form != "restored"] == list(names)
    for entry in found[: len(names)]:
        assert names[entry.name].items() <= entry.match.groupdict().items()


def test_quarter_is_pytorchs_bicubic():
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).normal(size=(2, 12, 20, 3)).astype(np.float32)
    nchw = torch.from_numpy(image).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(nchw, scale_factor=0.25, mode="bicubic")
    np.testing.assert_allclose(
        _quarter(image), expected.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-6
    )


def write_other_folder(folder):
    """A folder of other sizes, whose stages are still to be filled in."""
    rng = np.random.default_rng(0)
    model = systems.abstract_model(OTHER, dtype=jnp.float32, param_dtype=jnp.float32)
    tensors = {}
    for name, param in weights.names_and_params(model):
        draw = rng.normal(size=param.shape) / np.sqrt(np.prod(param.shape[:-1], initial=1))
        tensors[name] = lazy((draw + name.endswith("scale")).astype(np.float32))
    write_model(folder, OTHER, tensors)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    # Pixels (h, w) of the LR image give latents (2 h, 2 w): the VAE halves a 4x image.
    arrays = {
        "context": normal(1, 5, 24),
        "context_neg": normal(1, 5, 24),
        "eps_x_t": normal(3, 4, 8, 4),
        "eps_hint": normal(3, 4, 8, 4),
        "eps_context": normal(3, 5, 24),
        "eps_t": np.array([3, 400, 998]),
        "train_x": normal(3, 4, 8, 4),
        "train_x_hat": normal(3, 4, 8, 4),
        "train_noise": normal(3, 4, 8, 4),
        "train_grad_names": np.array(
            ["control_model.zero_convs.2.0.bias", "control_model.time_embed.0.weight"]
        ),
        "tall_lr": rng.uniform(size=(1, 3, 6, 4)).astype(np.float32),
        "tall_noise_posterior": normal(1, 4, 12, 8),
        "tall_noise_init": normal(1, 4, 12, 8),
        "tall_noise_steps": normal(4, 4, 12, 8),
    }
    np.savez(folder / "golden.npz", **arrays)
    return arrays


SHAPES = {
    "tall_stage_pre": (1, 3, 24, 16),
    "tall_stage_moments": (1, 8, 12, 8),
    "tall_stage_c_latent": (1, 4, 12, 8),
    "tall_stage_wavelet": (1, 3, 24, 16),
    "eps_eps": (3, 4, 8, 4),
    "eps_control_00": (3, 32, 8, 4),
    "eps_control_06": (3, 128, 2, 1),
    "eps_unet_skip_05": (3, 128, 2, 1),
    "eps_control_norms": (7, 3),
    "eps_eps_strength15": (3, 4, 8, 4),
    "eps_temb_mlp_control": (3, 128),
    "tall_eps_t42_eps": (1, 4, 12, 8),
    "tall_samp_o2_s4_cfg1.5_x": (5, 4, 12, 8),
    "tall_samp_o2_s4_cfg1.5_eps": (4, 4, 12, 8),
    "tall_samp_o2_s4_cfg1.5_adain_img": (1, 3, 24, 16),
    "tall_process_s2_none_u8": (24, 16, 3),
    "train_loss": (),
    "train_grad_norms": (2,),
    "train_grad/control_model.input_blocks.0.0.weight": (32, 8, 3, 3),
    "sched4_lambdas": (5,),
}


@pytest.mark.slow
def test_another_folder_works_unseen(tmp_path, capsys):
    arrays = write_other_folder(tmp_path)
    empty = dict.fromkeys(SHAPES, np.zeros(()))
    with jax.enable_x64():
        # Stages that others start from come first.
        for names in (["tall_stage_pre", "tall_stage_c_latent"], list(SHAPES)):
            np.savez(tmp_path / "golden.npz", **(empty | arrays))
            _, folder = open_folder(tmp_path)
            assert folder.models["dossr"].config == OTHER
            found = [entry for entry in find_entries(names) if entry.kind != HOST]
            results = Runner(folder, Archive(folder), "float64").results(found)
            for name, value in results.items():
                assert value.shape == SHAPES[name.removeprefix(RESTORE)], name
                if name.startswith(RESTORE):
                    continue  # the same array, made by the whole restore program
                if value.dtype == np.uint8:
                    arrays[name] = value
                else:
                    arrays[name] = value.astype(np.float32)
                    # Samplers and networks at a time start from the stored float32 stages.
                    arrays[f"{name}__f64"] = value
    levels = np.geomspace(0.03, 6e5, 5)
    np.savez(tmp_path / "golden.npz", **(empty | arrays | {"sched4_lambdas": levels}))
    assert main([str(tmp_path), "--dtype", "float64"]) == 1
    out = capsys.readouterr().out
    assert f"float64: {len(results)} of {len(results)} entries agree" in out
    assert "FAILED: sched4_lambdas" in out
