"""What a checkpoint is follows from its names; what does not fit together is said in one line."""

import numpy as np
import pytest
from helpers.systems import small_config

from dossr_jax import options, systems, weights
from dossr_jax.convert.__main__ import main as convert
from dossr_jax.convert.reading import read
from dossr_jax.errors import UserError
from dossr_jax.pipeline import Upscaler
from dossr_jax.systems.dasr.keys import generator_table, predictor_table
from dossr_jax.systems.resshift.config import ResShiftConfig, SwinUNetConfig, VQConfig
from dossr_jax.systems.resshift.keys import swin_unet_table, vq_table
from dossr_jax.systems.swinir.config import SwinIRConfig
from dossr_jax.systems.swinir.keys import swinir_table

# Keys do not tell the number of norm groups: 32, as published.
RESSHIFT = ResShiftConfig(
    unet=SwinUNetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=(1, 1),
        swin_embed_dim=32,
        head_dim=16,
        window=2,
    ),
    vq=VQConfig(base_channels=32, channel_mult=(1, 1, 1), num_res_blocks=1, codes=16),
)


def write(path, table) -> None:
    rng = np.random.default_rng(0)
    tensors = {row.torch: 0.1 * rng.normal(size=row.shape).astype("f4") for row in table}
    weights.write_safetensors(path, tensors)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Parts of small models, by the names that the published ones have."""
    folder = tmp_path_factory.mktemp("parts")
    dasr = small_config("dasr")
    fold = SwinIRConfig(embed_dim=8, depths=(2,), heads=2, window=4, scale=8, unshuffle=8)
    tables = {
        "net_g": generator_table(dasr),
        "net_p": predictor_table(dasr),
        "resshift_realsrx4_s4_v3": swin_unet_table(RESSHIFT.unet),
        "autoencoder_vq_f4": vq_table(RESSHIFT.vq),
        "SwinIR-M": swinir_table(small_config("swinir")),
        "general_swinir_v1": swinir_table(fold),
    }
    for name, table in tables.items():
        write(folder / f"{name}.safetensors", table)
    weights.write_safetensors(folder / "other.safetensors", {"fc.weight": np.ones(3, "f4")})
    return {name: folder / f"{name}.safetensors" for name in (*tables, "other")}


@pytest.mark.parametrize(
    ("names", "system"),
    [
        (["net_p", "net_g"], "dasr"),
        (["SwinIR-M"], "swinir"),
        (["resshift_realsrx4_s4_v3", "autoencoder_vq_f4"], "resshift"),
    ],
)
def test_files_of_one_model_are_one_model(files, names, system, tmp_path):
    """Given one by one, or as a folder with nothing else in it."""
    assert read([files[name] for name in names]).config.system == system
    for name in names:
        (tmp_path / files[name].name).write_bytes(files[name].read_bytes())
    assert Upscaler.from_pretrained(tmp_path).system.name == system


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["net_g"], r"DASR's generator \(net_g.pth\) without its predictor \(net_p.pth\)"),
        (["autoencoder_vq_f4"], "ResShift's autoencoder .* without its UNet"),
        (["net_g", "autoencoder_vq_f4"], "does not belong to the others, which look like"),
        (["net_g", "net_p", "net_p"], "does not belong to the others, which look like DASR"),
        (["net_g", "net_p", "other"], r"other\.safetensors: does not belong to the others"),
        (["other"], r"neither a checkpoint of .* \(its first key is fc.weight\)"),
    ],
)
def test_what_is_missing_or_strange_is_said(files, names, message):
    with pytest.raises(UserError, match=message) as refusal:
        read([files[name] for name in names])
    assert "\n" not in str(refusal.value)


def test_a_first_stage_alone_is_no_model_to_restore_with(files):
    with pytest.raises(UserError, match="DiffBIR's first stage; give it with DiffBIR's"):
        Upscaler.from_pretrained(files["general_swinir_v1"])


def test_models_with_equal_keys_are_told_apart_by_name_or_by_you(files, tmp_path, capsys):
    unet, vq = tmp_path / "unet.safetensors", files["autoencoder_vq_f4"]
    unet.write_bytes(files["resshift_realsrx4_s4_v3"].read_bytes())
    target = tmp_path / "model.safetensors"
    assert convert([str(unet), str(vq), str(target)]) == 2
    assert "--variant, one of s15, s4, sinsr" in capsys.readouterr().err
    assert convert([str(unet), str(vq), str(target), "--variant", "sinsr"]) == 0
    assert "non-commercial use only" in capsys.readouterr().out
    config, _ = systems.open_model(target)
    assert (config.process.steps, config.sampler.steps) == (15, 1)
    assert convert([str(unet), str(vq), str(target), "--variant", "v2", "--overwrite"]) == 2
    assert "--variant v2: ResShift has s15, s4, sinsr" in capsys.readouterr().err


def test_a_licence_that_restricts_use_is_said_wherever_it_is_loaded(files, capsys):
    upscaler = Upscaler.from_pretrained(files["SwinIR-M"])
    options.say_licence(upscaler)
    assert capsys.readouterr().err == ""
    upscaler.system = systems.system_of(small_config("resshift"))
    options.say_licence(upscaler)
    assert "non-commercial use only" in capsys.readouterr().err
