"""SD folders of diffusers, written and read by diffusers itself."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from helpers.checkpoints import assert_one_line, read_file, run, same, write_file
from helpers.diffusers_modules import WIDTH, assert_same, make_text, make_unet, make_vae
from transformers import CLIPTextConfig, CLIPTextModel

from dossr_jax import systems, weights
from dossr_jax.config import RRDBConfig, TextConfig, UNetConfig, VAEConfig
from dossr_jax.pytorch.state import State
from dossr_jax.pytorch.tables import control_table, rrdb_table, text_table, unet_table, vae_table
from dossr_jax.systems.dossr.diffusers.configs import control_json, text_json
from dossr_jax.systems.dossr.diffusers.hint import split_hint
from dossr_jax.weights import Lazy


@pytest.fixture(scope="module")
def modules():
    torch.manual_seed(0)
    return make_unet().eval(), make_vae().eval(), make_text()


@pytest.fixture(scope="module")
def rrdb_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rrdb") / "net.safetensors"
    rows = rrdb_table(RRDBConfig(num_features=8, num_blocks=1, growth=4))
    arrays = {row.torch: np.ones(row.shape, np.float32) for row in rows}
    return write_file(path, arrays)


@pytest.fixture
def folder(modules, tmp_path):
    unet, vae, text = modules
    path = tmp_path / "sd"
    unet.save_pretrained(path / "unet")
    vae.save_pretrained(path / "vae")
    text.save_pretrained(path / "text_encoder")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back_and_loaded_by_diffusers(modules, rrdb_file, tmp_path, dtype):
    unet, vae, _ = modules
    torch.manual_seed(1)
    unet = make_unet().to(dtype)
    unet.save_pretrained(tmp_path / "sd" / "unet")
    vae = make_vae().to(dtype)
    vae.save_pretrained(tmp_path / "sd" / "vae")
    np.savez(tmp_path / "c.npz", context=np.ones((7, WIDTH)), context_neg=np.ones((7, WIDTH)))
    options = ("--rrdb", rrdb_file, "--context", tmp_path / "c.npz")
    assert run(tmp_path / "sd", tmp_path / "a.safetensors", *options) == 0
    assert run(tmp_path / "a.safetensors", tmp_path / "back", "--to", "diffusers") == 0
    assert_same(
        unet, UNet2DConditionModel.from_pretrained(tmp_path / "back/unet", torch_dtype=dtype)
    )
    assert_same(vae, AutoencoderKL.from_pretrained(tmp_path / "back/vae", torch_dtype=dtype))
    control = ControlNetModel.from_pretrained(tmp_path / "back/controlnet", torch_dtype=dtype)
    assert control.config.conditioning_channels == 4
    # The ControlNet comes back, too, and the sampler.
    assert run(tmp_path / "back", tmp_path / "again.safetensors", *options) == 0
    assert same(read_file(tmp_path / "a.safetensors"), read_file(tmp_path / "again.safetensors"))
    assert (
        systems.open_model(tmp_path / "a.safetensors")[0]
        == (systems.open_model(tmp_path / "again.safetensors")[0])
    )


def test_the_exported_configuration_means_the_same_network(modules, folder, rrdb_file, tmp_path):
    unet, vae, _ = modules
    assert run(folder, tmp_path / "a.safetensors", "--rrdb", rrdb_file) == 0
    assert run(tmp_path / "a.safetensors", tmp_path / "back", "--to", "diffusers") == 0
    back = UNet2DConditionModel.from_pretrained(tmp_path / "back/unet").eval()
    vae_back = AutoencoderKL.from_pretrained(tmp_path / "back/vae").eval()
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, WIDTH)
    t = torch.tensor([321])
    # Not bit for bit: where a file's weights happen to lie in memory changes PyTorch's kernels.
    with torch.no_grad():
        sample, same = (net(x, t, context).sample for net in (unet, back))
        torch.testing.assert_close(sample, same, rtol=0, atol=1e-5)
        sample, same = (net.decode(x).sample for net in (vae, vae_back))
        torch.testing.assert_close(sample, same, rtol=0, atol=1e-5)
    assert vae.config.scaling_factor == vae_back.config.scaling_factor


def test_the_text_tower_gives_the_embeddings(modules, folder, rrdb_file, tmp_path):
    options = ("--rrdb", rrdb_file, "--keep-text")
    assert run(folder, tmp_path / "a.safetensors", *options) == 0
    model = systems.load_model(tmp_path / "a.safetensors")
    assert model.config.text.layers == 2 and model.config.text.skip_layers == 0
    ids = torch.zeros(2, 77, dtype=torch.long)
    ids[0, :10] = torch.tensor([49406, 3772, 267, 1400, 268, 9977, 267, 279, 330, 49407])
    ids[1, :2] = torch.tensor([49406, 49407])
    with torch.no_grad():
        expected = modules[2](ids).last_hidden_state.numpy()
    np.testing.assert_allclose(model.context[...], expected[0], atol=2e-6)
    np.testing.assert_allclose(model.negative_context[...], expected[1], atol=2e-6)


def test_shards_variants_and_older_names(modules, folder, rrdb_file, tmp_path):
    unet, vae, text = modules
    assert run(folder, tmp_path / "plain.safetensors", "--rrdb", rrdb_file, "--keep-text") == 0
    other = tmp_path / "other"
    unet.save_pretrained(other / "unet", max_shard_size="2MB")
    assert len(list((other / "unet").glob("*.safetensors"))) > 1
    vae.save_pretrained(other / "vae", variant="fp16")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    rewrite(
        other / "vae" / "diffusion_pytorch_model.fp16.safetensors",
        lambda name: re.sub(
            r"(mid_block\.attentions\.0\.)(to_q|to_k|to_v|to_out\.0)",
            lambda match: match[1] + old[match[2]],
            name,
        ),
    )
    text.save_pretrained(other / "text_encoder")
    rewrite(
        other / "text_encoder" / "model.safetensors",
        lambda name: f"text_model.{name.removeprefix('text_model.')}",
        **{"text_model.embeddings.position_ids": np.arange(77)[None]},
    )
    assert run(other, tmp_path / "other.safetensors", "--rrdb", rrdb_file, "--keep-text") == 0
    whole, parts = (read_file(tmp_path / f"{name}.safetensors") for name in ("plain", "other"))
    assert same(whole, parts)


def rewrite(path, new_name, **more) -> None:
    arrays = {new_name(name): array for name, array in read_file(path).items()} | more
    weights.write_safetensors(path, arrays, {"format": "pt"})


def test_a_shortened_tower_is_told_when_written_for_the_release(
    folder, rrdb_file, tmp_path, capsys
):
    for part, name in (("unet", "norm_num_groups"), ("vae", "norm_num_groups")):
        change(folder / part / "config.json", **{name: 32})
    options = ("--rrdb", rrdb_file, "--to", "release")
    assert run(folder, tmp_path / "a.safetensors", *options) == 0
    assert "a shortened text tower" in capsys.readouterr().out
    assert "control_model.zero_convs.0.0.weight" in read_file(tmp_path / "a.safetensors")


def change(path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_scheduler_file_is_read(folder, rrdb_file, tmp_path, capsys):
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    scheduler.write_text(json.dumps({"prediction_type": "v_prediction", "beta_end": 0.02}))
    assert run(folder, tmp_path / "a.safetensors", "--rrdb", rrdb_file) == 0
    assert "WARNING: this UNet predicts v_prediction" in capsys.readouterr().out
    config, _ = systems.open_model(tmp_path / "a.safetensors")
    assert config.process.beta_end == 0.02
    change(scheduler, beta_schedule="linear")
    assert run(folder, tmp_path / "b.safetensors", "--rrdb", rrdb_file) == 2


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "vae/config.json").unlink(), "vae/config.json: no such file"),
        (lambda f: (f / "unet/config.json").write_text("{"), "not a JSON file"),
        (lambda f: (f / "unet/config.json").write_text("[]"), "its top is no mapping"),
        (
            lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
            "holds no diffusion_pytorch_model.safetensors",
        ),
        (
            lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_text("no weights"),
            "not a whole .safetensors file",
        ),
        (lambda f: change(f / "unet/config.json", _class_name="UNet3D"), "describes a UNet3D"),
        (lambda f: change(f / "unet/config.json", use_linear_projection=False), "SD 2.x"),
        (lambda f: change(f / "unet/config.json", attention_head_dim=8), "of one width"),
        (lambda f: change(f / "unet/config.json", down_block_types=["X"] * 3), "only Cross"),
        (lambda f: change(f / "unet/config.json", in_channels=9), "must equal vae.z_channels"),
        (lambda f: change(f / "unet/config.json", block_out_channels="wide"), "not supported"),
        (lambda f: change(f / "vae/config.json", block_out_channels=[None]), "not supported"),
        (lambda f: change(f / "unet/config.json", layers_per_block=2), "misshapen"),
        (lambda f: change(f / "vae/config.json", use_quant_conv=False), "use_quant_conv"),
        (lambda f: change(f / "text_encoder/config.json", hidden_act="quick_gelu"), "hidden_act"),
        (
            lambda f: rewrite(
                f / "text_encoder/model.safetensors",
                lambda name: name.replace("fc1.bias", "fc1.bais"),
            ),
            "2 missing, 2 extra, 0 doubled, 0 misshapen",
        ),
    ],
)
def test_damaged_folders_are_one_line(folder, rrdb_file, tmp_path, capsys, damage, says):
    damage(folder)
    assert run(folder, tmp_path / "a.safetensors", "--rrdb", rrdb_file) == 2
    assert_one_line(capsys.readouterr().err, says)
    assert not (tmp_path / "a.safetensors").exists()


def test_a_folder_needs_a_pre_restorer_and_no_other_settings(folder, rrdb_file, tmp_path, capsys):
    assert run(folder, tmp_path / "a.safetensors") == 2
    assert "add one with --rrdb" in capsys.readouterr().err
    assert run(folder, tmp_path / "a.safetensors", "--rrdb", rrdb_file, "--head-dim", "64") == 2
    assert "leave out" in capsys.readouterr().err


def test_full_size_tables_are_those_of_sd_2_1():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        control = ControlNetModel.from_config(control_json(UNetConfig(), 4))
        text = CLIPTextModel(CLIPTextConfig(**text_json(TextConfig(skip_layers=0, layers=23))))
    for module, table in (
        (unet, unet_table(UNetConfig(), "diffusers")),
        (vae, vae_table(VAEConfig(), "diffusers")),
    ):
        assert {row.torch: row.shape for row in table} == shapes_of(module)
        assert len({row.ours for row in table}) == len(table)
    names = {f"text_model.{n.removeprefix('text_model.')}": s for n, s in shapes_of(text).items()}
    rows = text_table(TextConfig(skip_layers=0, layers=23, projection_dim=0), "transformers")
    assert {f"text_model.{row.torch}": row.shape for row in rows} == names
    tensors = {
        row.torch: Lazy(row.shape, np.dtype(np.float32), lambda: None)
        for row in control_table(UNetConfig(), "diffusers")
    }
    split = split_hint(State("the model", tensors), 4)
    assert {name: t.shape for name, t in split.tensors.items()} == shapes_of(control)


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}
