"""Every Python block of the pages runs as it is printed.

Each runs in a folder of its own that holds the files it names, in small, and with the variables
that the text around it takes for granted. Models are small ones of random weights under the names
in the block, so what is tested is that the calls exist and fit together. One block needs a Ray
cluster: its imports are made, and its calls matched with the signatures of what they call
(`test_clusters.py` runs such a data set). The stage and the example of
training.md are in `test_stage_of_ones_own.py` and `test_fit.py`, which train them; clients as in
web.md are those of `test_web_server.py`.
"""

import ast
import importlib
import inspect
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.models import TINY, randomised, tiny_model
from helpers.pictures import names_for, picture, save

from dossr_jax import Upscaler
from dossr_jax.models.rrdbnet import RRDBNet

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {
    f"{page.relative_to(ROOT)}:{number}": block
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S))
}
ELSEWHERE = {"docs/training.md:0", "docs/training.md:1", "docs/web.md:0"}
pytestmark = pytest.mark.usefixtures("compiled_quickly", "one_torch_thread")


@pytest.fixture(scope="module")
def upscaler():
    return Upscaler(tiny_model())


@pytest.fixture
def run(upscaler, tmp_path, monkeypatch):
    """Function (block, **variables) -> the variables after it."""
    monkeypatch.chdir(tmp_path)
    signature = inspect.signature(Upscaler.from_pretrained)

    def from_pretrained(*args, **options):
        signature.bind(*args, **options)
        return upscaler

    monkeypatch.setattr(Upscaler, "from_pretrained", from_pretrained)
    for name in ("photo.jpg", "a.png", "b.png"):
        save(tmp_path / name, picture(12, 16))

    def run(block, **variables):
        exec(compile(BLOCKS[block], block, "exec"), variables)
        return variables

    return run


def test_every_block_is_run_by_a_test():
    here = Path(__file__).read_text()
    for block in BLOCKS.keys() - ELSEWHERE:
        assert f'"{block}"' in here, f"{block} is new: run it here"
    assert BLOCKS.keys() >= ELSEWHERE


def test_blocks_that_restore_a_photo(run):
    after = run("README.md:0")
    assert after["large"].shape == after["fast"].shape == after["faithful"].shape == (48, 64, 3)
    assert [image.shape for image in after["several"]] == [(30, 40, 3)] * 2
    assert Path("large.png").exists() and Path("photo_large.jpg").exists()
    assert run("docs/quickstart.md:0")["large"].shape == (24, 32, 3)
    assert run("docs/tasks.md:0")["clean"].shape[2] == 3
    assert len(run("docs/fidelity.md:0")["steps"]) == 3
    assert run("docs/fidelity.md:1")["result"].shape == (48, 64, 3)


def test_programs_are_kept_when_asked_for(run, upscaler):
    assert run("docs/startup.md:0")["upscaler"] is upscaler


def test_the_solver_by_itself(run):
    assert run("docs/api.md:0")["x"].shape == (1, 8, 8, 4)


def test_batches_of_training_data(run):
    for name in names_for("train", 2) + names_for("validation", 1):
        save(Path("photos") / name, picture(200, 200))
    batch = run("docs/data.md:2")["batch"]
    assert batch["hr"].shape == (16, 128, 128, 3) and batch["id"].shape == (16,)


@pytest.mark.slow
def test_a_prepared_data_set_is_read_by_tfds(run):
    from dossr_jax.data.prepare import main

    for name in names_for("train", 2) + names_for("validation", 1):
        save(Path("photos") / name, picture(256, 256))
    assert main(["photos", "DATA", "--tile", "256", "--workers", "1"]) == 0
    for block in ("docs/data.md:0", "docs/data.md:1"):
        assert run(block)["tiles"][0]["hr"].shape == (256, 256, 3)


def test_a_checkpoint_of_the_release(run, golden_dir, golden):
    for name in ("dossr.ckpt", "BSRGAN.pth"):  # the content of a file tells its kind
        shutil.copy(golden_dir / "weights.safetensors", name)
    shutil.copy(golden_dir / "config.yaml", "dossr.yaml")
    context, negative = golden["context"], golden["context_neg"]
    after = run("docs/porting.md:0", context=context, negative=negative)
    np.testing.assert_array_equal(after["model"].context[...], context[0])
    assert isinstance(after["net"], RRDBNet)


def test_a_crosscheck_folder_of_ones_own(run):
    import torch

    class Encoder(torch.nn.Module):
        def encode(self, x):
            moments = torch.nn.functional.avg_pool2d(x, 4).mean(1, keepdim=True).repeat(1, 8, 1, 1)
            return type("Posterior", (), {"parameters": moments})

    model = torch.nn.Module()
    model.preprocess_model = torch.nn.Conv2d(3, 3, 1)
    model.first_stage_model = Encoder()
    Path("folder").mkdir()
    context = np.zeros((1, 2, 8), np.float32)
    run(
        "docs/porting.md:2",
        model=model,
        lr=torch.rand(1, 3, 16, 16),
        context=context,
        context_neg=1,
    )
    with np.load("folder/golden.npz") as arrays:
        assert arrays["stage_moments"].shape == (1, 8, 4, 4)
    assert Path("folder/weights.safetensors").exists()


@pytest.mark.slow
def test_lr_images_and_their_scores(run):
    hr = picture(256, 256)
    after = run("docs/evaluation.md:0", hr=hr, restored=picture(256, 256, seed=1))
    assert after["lr"].shape == (64, 64, 3) and after["values"].keys() == {"psnr_y", "niqe"}


@pytest.mark.slow
def test_networks_of_diffusers_there_back_and_sampled(run):
    import torch
    from diffusers import AutoencoderKL
    from helpers.diffusers_modules import WIDTH, make_text, make_unet

    from dossr_jax import convert

    torch.manual_seed(0)
    unet, text = make_unet().eval(), make_text()
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 16),  # latents of a quarter
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
    ).eval()
    rrdb = randomised(lambda rngs: RRDBNet(TINY.rrdb, rngs=rngs))
    pipeline = type("Pipeline", (), {"unet": unet, "vae": vae, "text_encoder": text})
    after = run("docs/porting.md:1", unet=unet, vae=vae, pipeline=pipeline, rrdb=rrdb)
    assert after["large"].shape == (48, 64, 3)
    assert isinstance(after["networks"], convert.Networks)
    context, pre_restored = torch.randn(1, 2, WIDTH), torch.rand(1, 3, 16, 16)
    decoded = run("docs/samplers.md:0", context=context, pre_restored=pre_restored)["decoded"]
    assert decoded.shape == (1, 3, 16, 16) and torch.isfinite(decoded).all()


def test_a_ray_data_set_is_restored_by_calls_that_fit():
    tree = ast.parse(BLOCKS["docs/clusters.md:0"])
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            known |= {alias.name: getattr(module, alias.name) for alias in node.names}
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in known
    ]
    assert calls
    for call in calls:
        function = inspect.signature(known[call.func.id])
        given = function.bind(*call.args, **{word.arg: word.value for word in call.keywords})
        # The rest are settings of the model, which an Upscaler knows by name.
        fields = given.arguments.get("settings", {})
        Upscaler(tiny_model()).settings(**{k: ast.literal_eval(v) for k, v in fields.items()})
