"""Degradation of HR crops on the host, with NumPy and Pillow.

`degrade(rng, hr, preset)` is the whole interface. Preset "realesrgan" follows the second-order
chain of Real-ESRGAN (Wang et al., arXiv 2107.10833): blur, resize, noise, JPEG, blur, resize,
noise, then the last resize with a sinc filter and JPEG in either order. "light" is one mild
blur, noise and JPEG around the resize, what a decent camera and one upload do to a photo.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import scipy.fft
import scipy.special
from PIL import Image

SCALE = 4
_KERNEL_KINDS = (
    "iso",
    "aniso",
    "generalised_iso",
    "generalised_aniso",
    "plateau_iso",
    "plateau_aniso",
)
_KERNEL_ODDS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
_RESIZE_MODES = ("area", "bilinear", "bicubic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """Ranges of one blur, resize, noise, JPEG pass. Noise strengths are in 8-bit levels."""

    blur_odds: float = 1.0
    sinc_odds: float = 0.1
    sigma: tuple[float, float]
    resize_odds: tuple[float, float, float]  # enlarge, shrink, keep
    resize_range: tuple[float, float]
    gaussian: tuple[float, float]
    poisson: tuple[float, float]
    noise_odds: float = 1.0
    grey_odds: float = 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Passes in order, then the last resize, with a final sinc filter and JPEG."""

    passes: tuple[Pass, ...]
    final_sinc_odds: float
    jpeg_quality: tuple[float, float]
    final_jpeg_odds: float = 1.0


PRESETS = {
    "realesrgan": Preset(
        passes=(
            Pass(
                sigma=(0.2, 3.0),
                resize_odds=(0.2, 0.7, 0.1),
                resize_range=(0.15, 1.5),
                gaussian=(1, 30),
                poisson=(0.05, 3),
            ),
            Pass(
                blur_odds=0.8,
                sigma=(0.2, 1.5),
                resize_odds=(0.3, 0.4, 0.3),
                resize_range=(0.3, 1.2),
                gaussian=(1, 25),
                poisson=(0.05, 2.5),
            ),
        ),
        final_sinc_odds=0.8,
        jpeg_quality=(30, 95),
    ),
    "light": Preset(
        passes=(
            Pass(
                blur_odds=0.7,
                sinc_odds=0.0,
                sigma=(0.2, 1.6),
                resize_odds=(0.0, 0.5, 0.5),
                resize_range=(0.4, 1.0),
                gaussian=(1, 8),
                poisson=(0.05, 0.6),
                noise_odds=0.6,
            ),
        ),
        final_sinc_odds=0.0,
        jpeg_quality=(60, 95),
        final_jpeg_odds=0.7,
    ),
}


def degrade(rng: np.random.Generator, hr: np.ndarray, preset: str) -> np.ndarray:
    """Degraded low-resolution partner of a crop.

    Args:
      rng: source of every draw; the same state gives the same result.
      hr: (h, w, 3) uint8, sides multiples of 4.
      preset: a key of PRESETS.

    Returns:
      (h/4, w/4, 3) uint8.
    """
    settings = PRESETS[preset]
    height, width = hr.shape[:2]
    size = height // SCALE, width // SCALE
    x = hr.astype(np.float32) / 255
    for i, step in enumerate(settings.passes):
        if i > 0:  # the JPEG of the pass before; the last pass is followed by the final one
            x = _jpeg(x, rng.uniform(*settings.jpeg_quality))
        if rng.random() < step.blur_odds:
            x = _filter(x, _blur_kernel(rng, step))
        # The first pass scales the crop itself, the second the size it is to end with.
        x = _resize(x, _random_size(rng, (height, width) if i == 0 else size, step), rng)
        if rng.random() < step.noise_odds:
            x = _noise(rng, x, step)
    sinc = rng.random() < settings.final_sinc_odds
    quality = rng.uniform(*settings.jpeg_quality)
    jpeg = rng.random() < settings.final_jpeg_odds
    if rng.random() < 0.5:
        x = _resize(x, size, rng)
        x = _filter(x, _sinc_kernel(rng)) if sinc else x
        x = _jpeg(x, quality) if jpeg else x
    else:
        x = _jpeg(x, quality) if jpeg else x
        x = _resize(x, size, rng)
        x = _filter(x, _sinc_kernel(rng)) if sinc else x
    return _to_uint8(x)


def _to_uint8(x: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def _grid(size: int) -> np.ndarray:
    axis = np.arange(size) - size // 2
    return np.stack(np.meshgrid(axis, axis), axis=-1).astype(np.float64)


def _blur_kernel(rng: np.random.Generator, step: Pass) -> np.ndarray:
    """A kernel of odd size 7 to 21: sinc, or one of six kinds that differ in shape and tail."""
    if rng.random() < step.sinc_odds:
        return _sinc_kernel(rng)
    size = 2 * int(rng.integers(3, 11)) + 1
    kind = rng.choice(_KERNEL_KINDS, p=_KERNEL_ODDS)
    sigma = rng.uniform(*step.sigma, size=2)
    angle = rng.uniform(-np.pi, np.pi)
    if kind.endswith("_iso") or kind == "iso":
        sigma[1], angle = sigma[0], 0.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = turn @ np.diag(1 / sigma**2) @ turn.T
    grid = _grid(size)
    radius = np.einsum("hwi,ij,hwj->hw", grid, inverse, grid)
    if kind.startswith("generalised"):
        kernel = np.exp(-0.5 * radius ** _shape(rng, 0.5, 4.0))
    elif kind.startswith("plateau"):
        kernel = 1 / (1 + radius ** _shape(rng, 1.0, 2.0))
    else:
        kernel = np.exp(-0.5 * radius)
    return kernel / kernel.sum()


def _shape(rng: np.random.Generator, low: float, high: float) -> float:
    """Shape exponent: below and above 1 equally often, for heavy and light tails alike."""
    if low < 1 and rng.random() < 0.5:
        return rng.uniform(low, 1)
    return rng.uniform(1, high)


def _sinc_kernel(rng: np.random.Generator) -> np.ndarray:
    """Circular ideal low-pass of odd size 7 to 21: the ringing of sharpened photos."""
    size = 2 * int(rng.integers(3, 11)) + 1
    cutoff = rng.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi)
    radius = np.hypot(*np.moveaxis(_grid(size), -1, 0))
    safe = np.where(radius > 0, radius, 1.0)
    kernel = cutoff * scipy.special.j1(cutoff * safe) / (2 * np.pi * safe)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return kernel / kernel.sum()


def _filter(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter (h, w, 3) with a symmetric kernel, reflecting at the border."""
    pad = kernel.shape[0] // 2
    height, width = x.shape[:2]
    # Images as small as the pad cannot be reflected in one go; "symmetric" never fails.
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)), mode="symmetric")
    shape = [scipy.fft.next_fast_len(n, real=True) for n in padded.shape[:2]]
    spectrum = scipy.fft.rfft2(padded, shape, axes=(0, 1))
    spectrum *= scipy.fft.rfft2(kernel.astype(np.float32), shape)[..., None]
    full = scipy.fft.irfft2(spectrum, shape, axes=(0, 1))
    return full[2 * pad : 2 * pad + height, 2 * pad : 2 * pad + width].astype(np.float32)


def _random_size(rng: np.random.Generator, shape: tuple[int, ...], step: Pass) -> tuple[int, int]:
    direction = rng.choice(3, p=step.resize_odds)
    low, high = step.resize_range
    factor = (rng.uniform(1, max(1, high)), rng.uniform(low, 1), 1.0)[direction]
    return max(8, round(shape[0] * factor)), max(8, round(shape[1] * factor))


def _resize(x: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Resize to (height, width). "area" averages; the other two do not antialias."""
    mode = rng.choice(_RESIZE_MODES)
    height, width = size
    if x.shape[:2] == size:
        return x
    channels = []
    for channel in np.moveaxis(x, -1, 0):
        image = Image.fromarray(np.ascontiguousarray(channel))
        if mode == "area":
            image = image.resize((width, height), Image.Resampling.BOX)
        else:
            step = image.width / width, 0, 0, 0, image.height / height, 0
            method = Image.Resampling[mode.upper()]
            image = image.transform((width, height), Image.Transform.AFFINE, step, method)
        channels.append(np.asarray(image))
    return np.stack(channels, axis=-1)


def _noise(rng: np.random.Generator, x: np.ndarray, step: Pass) -> np.ndarray:
    """Gaussian or Poisson noise, either in colour or the same in all channels; clipped."""
    grey = rng.random() < step.grey_odds
    if rng.random() < 0.5:
        shape = (*x.shape[:2], 1 if grey else 3)
        strength = rng.uniform(*step.gaussian) / 255
        noise = strength * rng.standard_normal(shape, dtype=np.float32)
    else:
        strength = rng.uniform(*step.poisson)
        clean = np.clip(x.mean(axis=-1, keepdims=True) if grey else x, 0, 1)
        # As many photons at full scale as the image has distinct levels, rounded to a power of 2.
        levels = 2 ** np.ceil(np.log2(len(np.unique(np.rint(clean * 255)))))
        noise = strength * (rng.poisson(clean * levels) / levels - clean)
    return np.clip(x + noise, 0, 1).astype(np.float32)


def _jpeg(x: np.ndarray, quality: float) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(_to_uint8(x)).save(buffer, "JPEG", quality=round(quality), subsampling="4:2:0")
    return np.asarray(Image.open(buffer), np.float32) / 255
