"""The crosscheck on folders that PyTorch alone has computed, at sizes that nobody chose.

Two folders run by default; CROSSCHECK_FOLDERS=20 in the environment runs so many.
"""

import os

import pytest
from flax import nnx

from dossr_jax.crosscheck import main
from dossr_jax.diffusion import solver
from dossr_jax.models import unet

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from helpers.torch_folder import draw_spec, write_folder  # noqa: E402

pytestmark = pytest.mark.slow
FOLDERS = int(os.environ.get("CROSSCHECK_FOLDERS", "2"))


@pytest.fixture(scope="module", params=range(FOLDERS))
def folder(request, tmp_path_factory):
    """A folder, and how many results it holds."""
    path = tmp_path_factory.mktemp(f"folder{request.param}")
    return path, write_folder(path, draw_spec(request.param))


def test_no_false_alarm(folder, capsys):
    path, count = folder
    status = main([str(path)])
    out = capsys.readouterr().out
    assert status == 0, out
    count += 3  # by the restore program once more
    for dtype in ("float64", "float32"):
        assert f"{dtype}: {count} of {count} entries agree" in out
    print("\n".join(line for line in out.splitlines() if "nearest" in line))


def change_coefficient(monkeypatch):
    """The noise of every step a ten-thousandth larger."""
    original = solver.step_coefficients

    def changed(lam, **options):
        c_y, c_x0, c_noise = original(lam, **options)
        return c_y, c_x0, c_noise * (1 + 1e-4)

    monkeypatch.setattr(solver, "step_coefficients", changed)


def change_epsilon(monkeypatch):
    """The UNet's norms as if they were the VAE's."""
    monkeypatch.setattr(unet, "_RES_EPSILON", 1e-6)


def change_padding(monkeypatch):
    """The VAE's downsampling padded on all sides, as the UNet's."""
    original = nnx.Conv

    def changed(*args, padding, **options):
        wide = ((1, 1), (1, 1)) if padding == ((0, 1), (0, 1)) else padding
        return original(*args, padding=wide, **options)

    monkeypatch.setattr(nnx, "Conv", changed)


@pytest.mark.parametrize(
    ("change", "only"),
    [(change_coefficient, "_x$"), (change_epsilon, "^eps_eps$"), (change_padding, "moments$")],
    ids=["coefficient", "epsilon", "padding"],
)
def test_a_fault_is_found(folder, capsys, monkeypatch, change, only):
    path, _ = folder
    change(monkeypatch)
    assert main([str(path), "--dtype", "float64", "--only", only]) == 1
    assert "FAILED" in capsys.readouterr().out
