"""Laws of restorations that vary over the picture: where a map keeps, the picture stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import TINY, randomised, tiny_model
from helpers.solvers import SCHEDULE, denoise, draws
from helpers.systems import small_config, small_model
from PIL import Image
from test_pipeline import assert_same_picture, picture

from dossr_jax.config import SamplerConfig
from dossr_jax.diffusion.process import toward_lr
from dossr_jax.diffusion.schedule import Schedule, make_schedule, make_timesteps
from dossr_jax.diffusion.solver import cast, make_table, pad_table, sample
from dossr_jax.errors import UserError
from dossr_jax.files import Photo, color
from dossr_jax.method import Controls, KeyNoise, Restoration
from dossr_jax.pipeline import Upscaler, restore_photos
from dossr_jax.pipeline.maps import EtaMap, as_map
from dossr_jax.restore import Layout, restore, split
from dossr_jax.systems.task import TaskModel

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# --- the process ----------------------------------------------------------------------------


def mapped(schedule: Schedule, k: np.ndarray) -> Schedule:
    """The shifting sequence eta + k (1 - eta) for shares k < 1 over the latent."""
    eta = schedule.eta.reshape(-1, 1, 1, 1, 1)
    return Schedule(schedule.alpha, schedule.sigma, eta + k * (1 - eta), schedule.t1)


def table_of(schedule: Schedule, k: np.ndarray, sampler: SamplerConfig):
    """Its table, at the times of the process without a map; it ends with the process's own mean."""
    times = make_timesteps(schedule, sampler.steps, sampler.grid)
    table = make_table(mapped(schedule, k), sampler, times=times)
    if sampler.final_denoise:
        table = table._replace(ends=table.ends._replace(m_out=1 - k, shift_out=k))
    return table


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", ["sde", "ode"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("final_denoise", [False, True])
def test_a_mapped_eta_draws_predictions_to_the_lr_latent(solver, order, final_denoise):
    """All noise levels grow by 1 / (1 - k); the same run with D' = (1 - k) D + k x_lr remains."""
    sampler = SamplerConfig(steps=6, solver=solver, order=order, final_denoise=final_denoise)
    x_lr, noise_init, noise = draws(6)
    k = np.random.default_rng(1).uniform(0, 0.999, (*x_lr.shape[:3], 1))
    k[:, 0] = 0

    def without_eta(x, point):
        return denoise(x, point._replace(eta=0.0))

    def drawn(x, point):
        return toward_lr(without_eta(x, point), x_lr, k)

    runs = ((without_eta, table_of(SCHEDULE, k, sampler)), (drawn, make_table(SCHEDULE, sampler)))
    first, second = (
        sample(function, x_lr, table, noise_init, lambda i: noise[i]) for function, table in runs
    )
    # 1 - eta of the map, 2.5e-9 at the first time, has eight digits.
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-7)


# --- the program ----------------------------------------------------------------------------

SIDE = 16  # of a canvas; a position of the tiny model's latent has 2 x 2 of its pixels


@pytest.fixture(scope="module")
def networks():
    return split(tiny_model())


def run(networks, lr: np.ndarray, *, keep: bool = False, fidelity: float = 0.0, **sampler):
    """The production program on canvases (b, h, w, 3 or 4) without tiles."""
    graphdef, state = networks
    layout = Layout(color_fix="wavelet", unit=8, keep=keep, devices=1)
    options = SamplerConfig(steps=3, **sampler)
    table = cast(pad_table(make_table(make_schedule(TINY.process), options), 4), "f4")
    size = np.tile(np.int32(lr.shape[1:3]), (len(lr), 1))
    noise = KeyNoise.of_seeds(range(len(lr)))
    controls = Controls(
        context=state["context"].get_value(),
        negative_context=state["negative_context"].get_value(),
        fidelity=np.float32(fidelity),
    )
    no_tiles = np.zeros((0, 3), np.int32), np.int32(0)
    return restore(graphdef, layout, state, lr, size, *no_tiles, noise, table, controls)


def canvases(*maps: np.ndarray | float, seed: int = 0) -> np.ndarray:
    """Random canvases (b, h, w, 4) uint8 with maps in [0, 1] as their fourth channel."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (len(maps), SIDE, SIDE, 3))
    fourth = np.stack([np.broadcast_to(m, (SIDE, SIDE)) for m in maps])[..., None]
    return np.concatenate([colors, np.round(255 * fourth)], axis=-1).astype(np.uint8)


def latent_means(maps: np.ndarray) -> np.ndarray:
    """k of latent positions (b, h, w, 1) from levels (b, SIDE, SIDE, 1): the unit is 2 pixels."""
    means = maps.reshape(len(maps), SIDE // 2, 2, SIDE // 2, 2, 1).mean((2, 4))
    return means.astype(np.float64) / 255


@pytest.mark.parametrize("fidelity", [0.0, 0.8])
def test_the_program_is_the_solver_of_the_mapped_eta(networks, fidelity):
    """In float64, by make_table of a schedule with the map's eta and the networks' predictions."""
    rng = np.random.default_rng(3)
    lr = canvases(rng.uniform(0, 0.9, (SIDE, SIDE)), 0.5)
    run_ = run(networks, lr, keep=True, fidelity=fidelity)
    assert isinstance(run_, Restoration) and run_.condition is not None and run_.path is not None
    k = latent_means(lr[..., 3:])
    x_lr = np.asarray(run_.condition.x_lr, np.float64)
    drawn = np.asarray(run_.path.x0[:3], np.float64)
    predictions = (drawn - k * x_lr) / (1 - k)
    noise = KeyNoise.of_seeds(range(2))
    shape = x_lr.shape[1:]
    start, steps = noise.initial(shape)[1], [noise.step(jnp.int32(i), shape) for i in range(3)]
    schedule = make_schedule(TINY.process)
    table = table_of(schedule, k, SamplerConfig(steps=3))
    with jax.enable_x64(True):
        expected = sample(
            lambda x, point: jnp.asarray(predictions)[point.index],
            jnp.asarray(x_lr),
            table,
            jnp.asarray(np.asarray(start, np.float64)),
            lambda i: jnp.asarray(np.stack(steps).astype(np.float64))[i],
        )
    # Float32 in the program: rounding of a state that starts at 6.5e5, as without a map.
    np.testing.assert_allclose(run_.latents, expected, rtol=0, atol=2e-6)


def test_kept_latents_are_those_of_the_picture(networks):
    """All predictions are the LR latent itself, bit for bit, whatever the fidelity."""
    for fidelity in (0.0, 0.3, 0.8):
        kept = run(networks, canvases(1.0, 1.0), keep=True, fidelity=fidelity)
        x0, x_lr = np.asarray(kept.path.x0[:3]), np.asarray(kept.condition.x_lr)
        np.testing.assert_array_equal(x0, np.broadcast_to(x_lr, x0.shape))


# --- pictures -------------------------------------------------------------------------------


def deep(height: int, width: int, dtype: type) -> np.ndarray:
    """A picture of 8 or 16 bits."""
    image = picture(height, width)
    return image if dtype == np.uint8 else image.astype(np.uint16) * 257


def left_half(height: int, width: int, level: int = 255) -> np.ndarray:
    """A map that keeps the left half."""
    eta_map = np.zeros((height, width), np.uint8)
    eta_map[:, : width // 2] = level
    return eta_map


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(tiny_model(), tile=128, devices=jax.devices()[:1])


@pytest.mark.parametrize("dtype", [np.uint8, pytest.param(np.uint16, marks=pytest.mark.slow)])
def test_the_kept_half_is_that_without_diffusion_and_the_other_is_restored(upscaler, dtype):
    image = deep(24, 30, dtype)
    half = upscaler.restore(image, eta_map=left_half(24, 30), steps=2)
    plain, free = (upscaler.restore(image, steps=2, diffuse=d) for d in (False, True))
    # Of another program: float32 leaves a level here and there, of 16 bits two.
    assert np.abs(half[:, :60].astype(int) - plain[:, :60]).max() <= dtype().itemsize
    levels = 2.0 * np.iinfo(dtype).max / 255
    apart = np.abs(half.astype(float) - plain)[:, 64:].mean()
    assert apart > levels and np.abs(half.astype(float) - free)[:, :56].mean() > levels


def test_a_black_map_is_none_bit_for_bit(upscaler):
    image = picture(24, 30)
    expected = upscaler.restore(image, steps=2)
    found = upscaler.restore(image, eta_map=np.zeros((24, 30)), steps=2)
    np.testing.assert_array_equal(found, expected)


def test_what_a_map_restores_in_full_is_what_no_map_restores(upscaler):
    """Its corner alone is kept, by a share that changes no level: the program with maps runs."""
    image, eta_map = picture(24, 30), np.zeros((24, 30), np.uint8)
    eta_map[0, 0] = 1
    found = upscaler.restore(image, eta_map=eta_map, steps=2)
    assert_same_picture(found[16:], upscaler.restore(image, steps=2)[16:])


@pytest.mark.parametrize("fidelity", [0.0, 0.5])
def test_an_even_grey_is_a_fidelity(upscaler, fidelity):
    """k of a map and f make f + k (1 - f)."""
    image, k = picture(24, 30), 102 / 255
    even = upscaler.restore(image, eta_map=np.full((24, 30), k), steps=2, fidelity=fidelity)
    both = fidelity + k * (1 - fidelity)
    assert_same_picture(even, upscaler.restore(image, steps=2, fidelity=both))


def test_maps_have_any_form_of_a_picture(upscaler, tmp_path):
    """Files of 8 and 16 bits, turned ones too, floats, arrays with a channel and images."""
    image = picture(24, 30)
    levels = left_half(24, 30, 204)
    Image.fromarray(levels).save(tmp_path / "8.png")
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "16.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # rows of the file are columns of the picture
    Image.fromarray(np.ascontiguousarray(np.rot90(levels))).save(tmp_path / "t.png", exif=turned)
    forms = [
        tmp_path / "8.png",
        tmp_path / "16.png",
        str(tmp_path / "t.png"),
        levels / 255,
        np.repeat(levels[..., None], 3, -1),
        Image.fromarray(levels),
    ]
    first, *others = (upscaler.restore(image, eta_map=form, steps=2) for form in [levels, *forms])
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_images_with_and_without_maps_are_restored_together(upscaler):
    images = [picture(24, 30, seed) for seed in range(3)]
    maps = [left_half(24, 30), None, left_half(24, 30, 100)]
    together = upscaler.restore(images, eta_map=maps, steps=2, batch_size=4)
    for image, eta_map, found in zip(images, maps, together, strict=True):
        assert_same_picture(found, upscaler.restore(image, eta_map=eta_map, steps=2))
    shared = upscaler.restore(images[:2], eta_map=maps[0], steps=2)
    assert_same_picture(shared[0], together[0])


def test_what_cannot_be_is_said_in_one_line(upscaler):
    image = picture(8, 12)
    coloured = picture(8, 12, 1)
    see_through = np.zeros((8, 12, 2), np.uint8)
    for options, words in (
        ({"eta_map": np.zeros((12, 8))}, "eta_map: 8x12 pixels, the picture has 12x8"),
        ({"eta_map": coloured}, "eta_map: has colours"),
        ({"eta_map": see_through}, "eta_map: transparent in part"),
        ({"eta_map": [None, None]}, "eta_map: 2 for 1 images"),
        ({"mask": np.zeros((9, 12))}, "mask: 12x9 pixels, the picture has 12x8"),
        ({"mask": np.ones((8, 12))}, "mask: this model of DoSSR fills nothing"),
        ({"mask": image, "eta_map": image}, "give one of them"),
        ({"eta_map": np.ones((8, 12)), "diffuse": False}, "without diffusion all is kept"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            upscaler.restore(image, **options)
        assert "\n" not in str(caught.value)


def test_a_process_from_noise_keeps_too():
    """DiffBIR's has no shift, but the same predictions."""
    diffbir = Upscaler(small_model("diffbir"), tile=128, devices=jax.devices()[:1])
    image, white = picture(24, 30), np.ones((24, 30))
    kept, plain = (diffbir.restore(image, **o) for o in ({"eta_map": white}, {"diffuse": False}))
    assert_same_picture(kept, plain)


def test_models_without_a_process_refuse_maps():
    rrdb = Upscaler.from_pretrained("realesrgan-anime", devices=jax.devices()[:1])
    with pytest.raises(UserError, match="eta map: .* reads none, only DoSSR"):
        rrdb.restore(picture(8, 8), eta_map=np.ones((8, 8)))


# --- masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_hides_what_is_to_be_filled_and_keeps_all_else(dtype):
    """From mid grey on it fills; the hole is mid grey, as in training, whatever was there."""
    most = np.iinfo(dtype).max
    image = deep(4, 6, dtype)
    levels = np.zeros((4, 6), np.uint8)
    levels[1, 2:4] = 127, 128
    levels[2, 2:4] = 255
    made = as_map(Photo(levels[..., None]), "mask", (4, 6), mask=True).laid_over(image)
    hole = levels >= 128
    assert made.dtype == dtype
    np.testing.assert_array_equal(made[..., 3], np.where(hole, 0, most))
    np.testing.assert_array_equal(made[~hole, :3], image[~hole])
    assert (made[hole, :3] == round(128 / 255 * most)).all()


def test_a_mask_over_all_of_a_picture_leaves_nothing_to_keep():
    white = np.full((4, 6, 1), 255, np.uint8)
    made = as_map(Photo(white), "mask", (4, 6), mask=True).laid_over(picture(4, 6))
    assert made.shape == (4, 6, 3) and (made == 128).all()


# --- pictures that keep their size ----------------------------------------------------------


def small_task(task: str) -> Upscaler:
    config = dataclasses.replace(small_config("task"), task=task)
    model = randomised(lambda rngs: TaskModel(config, rngs=rngs))
    return Upscaler(model, tile=64, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def denoiser() -> Upscaler:
    return small_task("denoise")


@pytest.fixture(scope="module")
def inpainter() -> Upscaler:
    return small_task("inpaint")


def forms(height: int, width: int) -> dict[str, Photo]:
    """One picture as 8 and 16 bits, grey, with alpha, and in a wide colour space."""
    colors = picture(height, width)
    seen = np.where(np.arange(width) % 5, 255, 0).astype(np.uint8)
    alpha = np.broadcast_to(seen, (height, width))[..., None]
    return {
        "8 bits": Photo(colors),
        "16 bits": Photo(deep(height, width, np.uint16)),
        "grey": Photo(colors[..., :1]),
        "alpha": Photo(np.concatenate([colors, alpha], -1)),
        "profile": Photo(colors, profile=color._wide(color._PROPHOTO, color._D50)),
    }


def restored(upscaler: Upscaler, photo: Photo, eta_map: EtaMap, **settings) -> np.ndarray:
    chosen = upscaler.settings(steps=2, **settings)
    ((_, result),) = restore_photos(upscaler, [(0, photo)], chosen, map_of=lambda name: eta_map)
    return result.photo.pixels


@pytest.mark.parametrize(
    ("form", "fix"),
    [
        ("8 bits", "wavelet"),
        ("8 bits", "residual"),
        ("16 bits", "none"),
        ("grey", "wavelet"),
        ("alpha", "wavelet"),
        ("profile", "none"),
    ],
)
def test_what_is_kept_of_a_picture_of_the_same_size_is_its_own_bit_for_bit(denoiser, form, fix):
    photo, eta_map = forms(30, 40)[form], left_half(30, 40)
    result = restored(denoiser, photo, EtaMap(eta_map), color_fix=fix)
    np.testing.assert_array_equal(result[:, :20], photo.pixels[:, :20])
    assert (result[:, 24:] != photo.pixels[:, 24:]).mean() > 0.3


def test_kept_pixels_of_the_program_itself_are_the_inputs(denoiser):
    """Not the host's doing: after colour fix, mean colours and gradients that stay."""
    for dtype, fix in ((np.uint8, "wavelet"), (np.uint16, "none")):
        image = deep(30, 40, dtype)
        laid = EtaMap(left_half(30, 40)).laid_over(image)
        ((_, result),) = denoiser.stream([(0, laid)], denoiser.settings(steps=2, color_fix=fix))
        np.testing.assert_array_equal(result.image[:, :20], image[:, :20])


def test_tiles_keep_bit_for_bit_too(denoiser):
    image, eta_map = picture(100, 130), left_half(100, 130)
    assert denoiser.kind(100, 130).tiled
    result = denoiser.restore(image, eta_map=eta_map, steps=2)
    np.testing.assert_array_equal(result[:, :65], image[:, :65])


def test_a_mask_is_filled_and_all_else_is_the_inputs_own(inpainter):
    """And what the input has in the hole is not seen."""
    image, hole = picture(30, 40), np.zeros((30, 40), bool)
    hole[5:20, 8:30] = True
    other = np.where(hole[..., None], 255 - image, image)
    filled, same = (inpainter.restore(i, mask=hole.astype(float), steps=2) for i in (image, other))
    np.testing.assert_array_equal(filled, same)
    np.testing.assert_array_equal(filled[~hole], image[~hole])
    assert (filled[hole] != 128).mean() > 0.5


def test_holes_are_what_the_networks_make(inpainter):
    """Mean colours of the input, grey where it is missing, and its gradients are no measure."""
    image, hole = deep(30, 40, np.uint16), np.zeros((30, 40), np.float32)
    hole[5:20, 8:30] = 1
    chosen = inpainter.settings(steps=2, color_fix="none")
    laid = as_map(Photo(np.uint8(255 * hole)[..., None]), "mask", (30, 40), mask=True)
    laid = laid.laid_over(image)
    ((_, result),) = inpainter.stream([(0, laid)], chosen, stages=True)
    holes = hole == 1
    assert result.decoded is not None
    np.testing.assert_array_equal(result.image[holes], result.decoded[holes])
