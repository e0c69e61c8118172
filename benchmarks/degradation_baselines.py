"""The degradation chain for one image at a time, in OpenCV/NumPy and in PyTorch.

Both carry out plans that the package has drawn, on images of their true size, so that all sides do
the same work. They are written as these libraries are best used, not as the package is.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from dossr_jax.data.degradation.jpeg import CHROMA_TABLE, LUMA_TABLE
from dossr_jax.data.degradation.noise import GAUSSIAN, NONE
from dossr_jax.data.degradation.plan import Blur, Jpeg, Plan
from dossr_jax.data.degradation.resize import Resize

_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)


class _Chain:
    """The order of operations; what they are is up to the subclass."""

    def __call__(self, plan: Plan, x):
        for step in (plan.first, plan.second):
            x = self.blur(x, step.blur)
            x = self.resize(x, step.resize)
            if step.noise.kind != NONE:
                x = self.noise(x, step.noise)
            if step is plan.first or not plan.jpeg_last:
                x = self.jpeg(x, step.jpeg)
        x = self.blur(self.resize(x, plan.last_resize), plan.sinc)
        return self.finish(self.jpeg(x, plan.second.jpeg) if plan.jpeg_last else x)

    def blur(self, x, blur: Blur):
        if not blur.apply:
            return x
        edge = int(np.argmax(np.any(blur.kernel != 0, axis=1)))  # kernels of their own size
        side = blur.kernel.shape[0]
        return self.filter(x, blur.kernel[edge : side - edge, edge : side - edge])


class OpenCV(_Chain):
    """Images are (h, w, 3) float32 arrays, blue first, as in OpenCV."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def filter(self, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101)

    def resize(self, x: np.ndarray, resize: Resize) -> np.ndarray:
        modes = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA)
        height, width = map(int, resize.size)
        return cv2.resize(x, (width, height), interpolation=modes[resize.mode])

    def noise(self, x: np.ndarray, noise) -> np.ndarray:
        grey = bool(noise.grey)
        if noise.kind == GAUSSIAN:
            shape = (*x.shape[:2], 1) if grey else x.shape
            added = self.rng.standard_normal(shape, np.float32) * (noise.strength / 255)
        else:
            base = (x @ _LUMA[::-1])[..., None] if grey else x
            level = np.rint(np.clip(base, 0, 1) * 255).astype(np.uint8)
            levels = np.count_nonzero(np.bincount(level.ravel(), minlength=256))
            full = np.float32(2 ** np.ceil(np.log2(levels)))
            clean = level * np.float32(1 / 255)
            added = (self.rng.poisson(clean * full) / full - clean) * noise.strength
        return np.clip(x + added.astype(np.float32), 0, 1)

    def jpeg(self, x: np.ndarray, step: Jpeg) -> np.ndarray:
        if not step.apply:
            return x
        image = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
        quality = [cv2.IMWRITE_JPEG_QUALITY, round(float(step.quality))]
        image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
        return image * np.float32(1 / 255)

    def finish(self, x: np.ndarray) -> np.ndarray:
        return np.rint(np.clip(x, 0, 1) * 255) / np.float32(255)


class Torch(_Chain):
    """Images are (1, 3, h, w) float32 tensors."""

    def __init__(self) -> None:
        k, i = np.arange(8)[:, None], np.arange(8)[None]
        rows = np.sqrt(np.where(k == 0, 1, 2) / 8) * np.cos(np.pi * (2 * i + 1) * k / 16)
        self.dct = torch.tensor(np.kron(rows, rows), dtype=torch.float32)
        self.tables = [torch.tensor(table.reshape(64)) for table in (LUMA_TABLE, CHROMA_TABLE)]
        self.to_ycc = torch.tensor(
            [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
        )
        self.to_rgb = torch.linalg.inv(self.to_ycc)

    def filter(self, x: torch.Tensor, kernel: np.ndarray) -> torch.Tensor:
        reach = kernel.shape[0] // 2
        # Reflection is not defined for images below the kernel's reach.
        mode = "reflect" if min(x.shape[2:]) > reach else "replicate"
        weight = torch.from_numpy(np.ascontiguousarray(kernel)).expand(3, 1, *kernel.shape)
        return F.conv2d(F.pad(x, [reach] * 4, mode=mode), weight, groups=3)

    def resize(self, x: torch.Tensor, resize: Resize) -> torch.Tensor:
        mode = ("area", "bilinear", "bicubic", "bicubic")[resize.mode]
        options = {"antialias": True} if resize.mode == 3 else {}
        return F.interpolate(x, tuple(map(int, resize.size)), mode=mode, **options)

    def noise(self, x: torch.Tensor, noise) -> torch.Tensor:
        grey = bool(noise.grey)
        if noise.kind == GAUSSIAN:
            shape = (1, 1, *x.shape[2:]) if grey else x.shape
            added = torch.randn(shape) * (float(noise.strength) / 255)
        else:
            base = torch.einsum("c,bchw->bhw", torch.tensor(_LUMA), x)[:, None] if grey else x
            level = torch.round(base.clamp(0, 1) * 255)
            levels = torch.count_nonzero(torch.bincount(level.flatten().to(torch.uint8)))
            full = float(2 ** torch.ceil(torch.log2(levels.float())))
            clean = level / 255
            added = (torch.poisson(clean * full) / full - clean) * float(noise.strength)
        return (x + added).clamp(0, 1)

    def jpeg(self, x: torch.Tensor, step: Jpeg) -> torch.Tensor:
        if not step.apply:
            return x
        height, width = x.shape[2:]
        x = F.pad(x.clamp(0, 1) * 255, (0, -width % 16, 0, -height % 16))
        ycc = torch.einsum("dc,bchw->bdhw", self.to_ycc, x)
        quality = float(step.quality)
        factor = (5000 / quality if quality < 50 else 200 - 2 * quality) / 100
        luma = self._quantised(ycc[:, :1] - 128, self.tables[0] * factor) + 128
        chroma = self._quantised(F.avg_pool2d(ycc[:, 1:], 2), self.tables[1] * factor)
        chroma = F.interpolate(chroma, scale_factor=2, mode="nearest")
        x = torch.einsum("dc,bchw->bdhw", self.to_rgb, torch.cat([luma, chroma], dim=1))
        return (x[:, :, :height, :width] / 255).clamp(0, 1)

    def _quantised(self, planes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        blocks = F.unfold(planes.transpose(0, 1), 8, stride=8).transpose(1, 2)
        blocks = (torch.round(blocks @ self.dct.T / table) * table) @ self.dct
        folded = F.fold(blocks.transpose(1, 2), planes.shape[2:], 8, stride=8)
        return folded.transpose(0, 1)

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x.clamp(0, 1) * 255) / 255


def run_opencv(plans: list[Plan], images: np.ndarray, threads: int) -> list[np.ndarray]:
    """All images (b, h, w, 3), blue first, one image per thread."""
    cv2.setNumThreads(1)  # whole images in parallel leave no core idle

    def one(i: int) -> np.ndarray:
        return OpenCV()(plans[i], images[i])

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(len(plans))))


def run_torch(plans: list[Plan], images: np.ndarray, threads: int) -> list[torch.Tensor]:
    """All images (b, 3, h, w), each operation on all threads."""
    torch.set_num_threads(threads)
    chain = Torch()
    with torch.inference_mode():
        return [
            chain(plan, torch.from_numpy(image[None]))
            for plan, image in zip(plans, images, strict=True)
        ]
