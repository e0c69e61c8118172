"""Restoration without learning, as baselines at scale 1: OpenCV and scikit-image.

These methods are told nothing about an image: their parameters are fixed, or follow from it. They
were chosen for the best mean PSNR over tiles of training photos, degraded by the preset of the task
(docs/tasks.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from dossr_jax.errors import require_extra

# Strength by the estimated standard deviation of the noise; window and reach as OpenCV proposes.
_STRENGTH = 0.6
_WINDOW, _REACH = 7, 21
# Of the Gaussian that is taken for the blur, in pixels.
_SIGMA = 1.0
_ROUNDS = 3
_RADIUS = 5  # pixels around a hole's border that Telea's method looks at


def non_local_means(image: np.ndarray) -> np.ndarray:
    """Non-local means (Buades et al. 2005) as strong as the image is noisy; uint8 (h, w, 3)."""
    import cv2

    image = np.ascontiguousarray(image[..., :3])
    strength = _STRENGTH * noise_level(image)
    return cv2.fastNlMeansDenoisingColored(image, None, strength, strength, _WINDOW, _REACH)


def noise_level(image: np.ndarray) -> float:
    """Standard deviation of the noise of an image (h, w, 3), in its levels (Immerkaer 1996)."""
    x = image.astype(np.float64)
    if min(x.shape[:2]) < 3:
        return 0.0
    for axis in (0, 1):  # second differences along both axes; 36 is the sum of their squares
        x = np.diff(x, n=2, axis=axis)
    return float(np.sqrt(np.pi / 2) * np.abs(x).mean() / 6)


def richardson_lucy(image: np.ndarray) -> np.ndarray:
    """Deconvolution (Richardson 1972, Lucy 1974) of a Gaussian blur; uint8 (h, w, 3)."""
    from skimage.restoration import richardson_lucy as deconvolve

    image = image[..., :3]
    reach = int(np.ceil(3 * _SIGMA))
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _SIGMA) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    padded = np.pad(image / 255.0, [(reach, reach)] * 2 + [(0, 0)], mode="symmetric")
    channels = [deconvolve(c, kernel, num_iter=_ROUNDS) for c in np.moveaxis(padded, -1, 0)]
    restored = np.stack(channels, axis=-1)[reach:-reach, reach:-reach]
    return np.rint(255 * np.clip(restored, 0, 1)).astype(np.uint8)


def telea(image: np.ndarray) -> np.ndarray:
    """Inpainting by fast marching (Telea 2004); where a fourth channel is 0, pixels are missing."""
    import cv2

    if image.shape[-1] == 3:
        return image
    missing = (image[..., 3] == 0).astype(np.uint8)
    return cv2.inpaint(np.ascontiguousarray(image[..., :3]), missing, _RADIUS, cv2.INPAINT_TELEA)


def degraded(image: np.ndarray) -> np.ndarray:
    """The degraded image itself; of images to be restored at their own size."""
    return image[..., :3]


# (uint8 (h, w, 3 or 4)) -> uint8 (h, w, 3)
METHODS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "input": degraded,
    "nlm": non_local_means,
    "richardson-lucy": richardson_lucy,
    "telea": telea,
}


def check(name: str) -> None:
    """Raise UserError where what a method needs is not installed."""
    if name != "input":
        module = "skimage" if name == "richardson-lucy" else "cv2"
        require_extra("classical", module, wanted_by=f"baseline {name}")
