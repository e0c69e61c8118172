"""Checkpoints of the release: every key there and back, bit for bit."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from helpers.checkpoints import assert_one_line, read_file, run, same, write_file
from helpers.models import tiny_model

from dossr_jax import systems, weights
from dossr_jax.config import ProcessConfig
from dossr_jax.diffusion.schedule import release_buffers
from dossr_jax.pytorch.infer import config_from_release_yaml, infer_process
from dossr_jax.pytorch.readers import read_checkpoint
from dossr_jax.pytorch.state import State
from dossr_jax.systems.dossr.release import export_release, load_release, read_release


def test_golden_there_and_back(arrays, converted, tmp_path):
    assert run(converted, tmp_path / "back.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "back.safetensors"), arrays)


def test_golden_there_and_back_through_orbax(golden_dir, arrays, converted, tmp_path):
    assert run(golden_dir, tmp_path / "orbax", "--to", "orbax") == 0
    assert run(tmp_path / "orbax", tmp_path / "back.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "back.safetensors"), arrays)
    assert run(tmp_path / "orbax", tmp_path / "ours.safetensors") == 0
    assert same(read_file(tmp_path / "ours.safetensors"), read_file(converted))


def test_every_dtype_is_kept(arrays, context_file, tmp_path):
    kinds = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
    mixed = {k: a.astype(kinds[i % 4]) for i, (k, a) in enumerate(arrays.items())}
    write_file(tmp_path / "mixed.safetensors", mixed)
    options = ("--head-dim", "16", "--context", context_file)
    assert run(tmp_path / "mixed.safetensors", tmp_path / "a.safetensors", *options) == 0
    assert run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "b.safetensors"), mixed)


def test_pickle_gives_the_same_file(arrays, context_file, golden_dir, converted, tmp_path):
    tensors = {f"module.{name}": torch.from_numpy(a) for name, a in arrays.items()}
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "model.ckpt")
    options = ("--config", golden_dir / "config.yaml", "--context", context_file)
    assert run(tmp_path / "model.ckpt", tmp_path / "a.safetensors", *options) == 0
    assert (tmp_path / "a.safetensors").read_bytes() == converted.read_bytes()


def test_dtype_option_casts_weights_and_not_buffers(arrays, converted, tmp_path):
    assert run(converted, tmp_path / "a.safetensors", "--dtype", "bfloat16") == 0
    cast = read_file(tmp_path / "a.safetensors")
    for name, array in read_file(converted).items():
        kind = array.dtype if name.startswith("buffers.") else ml_dtypes.bfloat16
        assert cast[name].dtype == kind
        assert (cast[name] == array.astype(kind)).all()


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_coarse_schedule_constants_mean_the_exact_ones(
    arrays, golden_dir, context_file, tmp_path, capsys, kind
):
    coarse = {name: a.astype(kind) for name, a in arrays.items()}
    path = write_file(tmp_path / "coarse.safetensors", coarse)
    exact = read_release(read_checkpoint(golden_dir / "weights.safetensors"), head_dim=16).config
    yaml_config = config_from_release_yaml(golden_dir / "config.yaml")
    for options in ({"head_dim": 16}, {"config": yaml_config}):
        assert read_release(read_checkpoint(path), **options).config == exact
    options = ("--head-dim", "16", "--context", context_file)
    assert run(path, tmp_path / "a.safetensors", *options) == 0
    warning = f"WARNING: its schedule constants are stored in {np.dtype(kind)} only"
    assert capsys.readouterr().out.count(warning) == 1
    assert run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "b.safetensors"), coarse)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_end_points_of_beta_other_than_the_default_are_read_in_their_precision(kind):
    process = ProcessConfig(beta_start=0.0012, beta_end=0.017)
    betas = release_buffers(process)["betas"].astype(kind)
    found = infer_process(State("betas", {"betas": weights.lazy(betas)}), ProcessConfig())
    assert (found.beta_start, found.beta_end) == (0.0012, 0.017)


def test_exact_constants_are_no_reason_to_warn(arrays, context_file, tmp_path, capsys):
    path = write_file(tmp_path / "golden.safetensors", arrays)
    options = ("--head-dim", "16", "--context", context_file)
    assert run(path, tmp_path / "a.safetensors", *options) == 0
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("diffusion_model.", "diffusion_model._orig_mod."),
        lambda name: name.replace("control_model.", "control_model.module."),
    ],
)
def test_names_of_wrapped_modules_are_those_of_the_modules(
    arrays, context_file, converted, golden_dir, tmp_path, rename
):
    path = write_file(tmp_path / "a.safetensors", {rename(n): a for n, a in arrays.items()})
    options = ("--config", golden_dir / "config.yaml", "--context", context_file)
    assert run(path, tmp_path / "b.safetensors", *options) == 0
    assert same(read_file(tmp_path / "b.safetensors"), read_file(converted))


UNET = "model.diffusion_model."


def ema_name(name: str) -> str:
    """The name under which LDM keeps EMA weights: a buffer of `model_ema`, without dots."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def test_plain_weights_are_taken_and_ema_weights_on_demand(
    arrays, context_file, converted, golden_dir, tmp_path, capsys
):
    # A parameter that was frozen has no EMA weights.
    frozen = f"{UNET}out.2.bias"
    learned = {n: a for n, a in arrays.items() if n.startswith(UNET) and n != frozen}
    ema = {ema_name(name): a + np.ones_like(a) for name, a in learned.items()}
    state = {"model_ema.decay": np.float32(0.5), "model_ema.num_updates": np.int32(3)}
    path = write_file(tmp_path / "both.safetensors", {**arrays, **ema, **state})
    options = ("--config", golden_dir / "config.yaml", "--context", context_file)
    assert run(path, tmp_path / "plain.safetensors", *options) == 0
    assert f"{len(ema) + 2} model_ema.* keys left out" in capsys.readouterr().out
    assert same(read_file(tmp_path / "plain.safetensors"), read_file(converted))
    assert run(path, tmp_path / "ema.safetensors", *options, "--ema") == 0
    assert f"{len(ema)} EMA weights (model_ema.*) taken" in capsys.readouterr().out
    assert run(tmp_path / "ema.safetensors", tmp_path / "back.safetensors", "--to", "release") == 0
    expected = {**arrays, **{name: ema[ema_name(name)] for name in learned}}
    assert same(read_file(tmp_path / "back.safetensors"), expected)


def test_ema_weights_that_are_absent_or_strange_are_an_error(
    arrays, context_file, converted, golden_dir, tmp_path, capsys
):
    strange = {**arrays, "model_ema.diffusion_modelbias": np.ones(3, np.float32)}
    write_file(tmp_path / "strange.safetensors", strange)
    options = ("--head-dim", "16", "--context", context_file)
    for path, more, says in (
        (golden_dir / "weights.safetensors", options, "has no EMA weights"),
        (converted, (), "has one set of weights"),
        (tmp_path / "strange.safetensors", options, "model_ema.diffusion_modelbias"),
    ):
        assert run(path, tmp_path / "a.safetensors", *more, "--ema") == 2
        assert_one_line(capsys.readouterr().err, says, path.name)
        assert not (tmp_path / "a.safetensors").exists()


def test_configuration_from_keys_equals_the_yaml_files(golden_dir):
    state = read_checkpoint(golden_dir / "weights.safetensors")
    yaml_config = config_from_release_yaml(golden_dir / "config.yaml")
    assert read_release(state, config=yaml_config).config == read_release(state, head_dim=16).config


def test_a_shifting_sequence_is_recognised_by_its_buffer(arrays, golden_dir):
    state = read_checkpoint(golden_dir / "weights.safetensors")
    for t1, name in ((500, "trunc_12"), (333, "trunc_13"), (666, "trunc_23")):
        eta = np.ones(1000)
        eta[:t1] = (1 - np.cos(np.pi * np.linspace(0.001, 0.999, t1))) / 2
        array = eta.astype(np.float32)
        tensors = {
            **state.tensors,
            "lambdas": type(state.tensors["betas"])(
                array.shape, array.dtype, lambda array=array: array
            ),
        }
        other = type(state)(state.source, tensors)
        assert read_release(other, head_dim=16).config.process.eta == name


def test_loading_directly_equals_loading_the_converted_file(golden_dir, converted):
    with np.load(golden_dir / "golden.npz") as npz:
        context, negative = npz["context"], npz["context_neg"]
    direct = load_release(
        golden_dir / "weights.safetensors",
        golden_dir / "config.yaml",
        context=context,
        negative_context=negative,
    )
    stored = systems.load_model(converted)
    assert direct.config == stored.config
    pairs = zip(weights.names_and_params(direct), weights.names_and_params(stored), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other and a.dtype == jnp.float32
        np.testing.assert_array_equal(a[...], b[...])
    np.testing.assert_array_equal(direct.context[...], context[0])
    np.testing.assert_array_equal(direct.negative_context[...], negative[0])


def test_equal_encoders_are_kept_once(arrays, context_file, tmp_path):
    twin = dict(arrays)
    for name in arrays:
        if name.startswith("cond_encoder."):
            twin[name] = arrays[name.replace("cond_encoder.", "first_stage_model.")]
    write_file(tmp_path / "twin.safetensors", twin)
    options = ("--head-dim", "16", "--context", context_file)
    assert run(tmp_path / "twin.safetensors", tmp_path / "a.safetensors", *options) == 0
    config, tensors = systems.open_model(tmp_path / "a.safetensors")
    assert config.shared_encoder
    assert not [name for name in tensors if name.startswith("hint_encoder")]
    assert run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "b.safetensors"), twin)


def test_encoders_of_one_value_and_two_dtypes_are_kept_apart(arrays, context_file, tmp_path):
    twin = dict(arrays)
    for name in arrays:
        if name.startswith("cond_encoder."):
            other = arrays[name.replace("cond_encoder.", "first_stage_model.")]
            twin[name] = other.astype(np.float32)
    write_file(tmp_path / "twin.safetensors", twin)
    options = ("--head-dim", "16", "--context", context_file)
    assert run(tmp_path / "twin.safetensors", tmp_path / "a.safetensors", *options) == 0
    assert run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "release") == 0
    assert same(read_file(tmp_path / "b.safetensors"), twin)


def test_absent_buffers_are_computed(arrays, golden_dir, tmp_path):
    bare = {name: a for name, a in arrays.items() if "." in name}
    state = read_checkpoint(write_file(tmp_path / "bare.safetensors", bare))
    model = read_release(state, config=config_from_release_yaml(golden_dir / "config.yaml"))
    exported = {name: tensor.load() for name, tensor in export_release(model).items()}
    assert set(exported) - set(bare) == set(release_buffers(model.config.process))
    np.testing.assert_allclose(exported["lambdas"], arrays["lambdas"], rtol=1e-6)


def test_folders_are_replaced_whole(converted, tmp_path):
    for to in ("orbax", "diffusers"):
        folder = tmp_path / to
        assert run(converted, folder, "--to", to) == 0
        before = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix)
        assert run(converted, folder, "--to", to, "--overwrite") == 0
        assert sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["diffusers", "orbax"]


def test_networks_that_pytorch_lacks_cannot_be_exported(tmp_path, capsys):
    systems.save_model(tmp_path / "tiny.safetensors", tiny_model())
    for to, name in (("release", "a.safetensors"), ("diffusers", "a")):
        assert run(tmp_path / "tiny.safetensors", tmp_path / name, "--to", to) == 2
        assert "cannot be written in that form" in capsys.readouterr().err
