"""`Upscaler`: images in, enlarged images out. The host side of dossr_jax.restore."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from dossr_jax import image_io, prompts, weights
from dossr_jax.config import SamplerConfig
from dossr_jax.convert.rrdb import preprocessor as make_preprocessor
from dossr_jax.diffusion.schedule import GRID_NAMES, make_schedule
from dossr_jax.diffusion.solver import (
    KIND_NAMES,
    START_NAMES,
    SolverTable,
    cast,
    make_table,
    pad_table,
)
from dossr_jax.errors import UserError
from dossr_jax.image import ColorFix, pad_to
from dossr_jax.models.dossr import DoSSR
from dossr_jax.restore import UPSCALE, Knobs, Layout, Stages, restore
from dossr_jax.tiling import plan_tiles

MAX_STEPS = 50
DEFAULT_TILE = 512
_MAX_SEED = 2**32 - 1
BUILT_IN = {"dossr-mini": "dossr-mini.safetensors"}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Result pixels that share a program when several images larger than the tile are batched.
_CANVAS_BUDGET = 8 * 2**20

ImageLike = str | Path | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to restore. None means as stored with the weights: as published, if converted.

    Attributes:
      scale: factor of enlargement, > 0; restored at 4 and resampled to round(scale x size).
      steps: network evaluations, 1 to 50. order: of the solver, 1 to 3.
      solver: "sde" (published) or "ode" (probability flow, deterministic after the start).
      start: "lr" (published) or "noise", plain diffusion: with it order-1 "sde" is spaced DDPM
        and order-1 "ode" is DDIM.
      grid: times "uniform" in t (published), uniform in "log_lambda", or "jump", which spends
        them where they matter most (docs/method.md).
      final_denoise: end at the last prediction of x0, not (as published) at t = 0 with its noise.
      seed: one seed from 0 to 2^32 - 1, or one an image.
      prompt, negative_prompt: of the wanted picture, and what to steer away from.
      cfg_scale: classifier-free guidance against the negative prompt, 1 is off.
      strength: factor on the ControlNet's residuals, 1 as trained.
      fidelity: 0 free, 1 keeps to the pre-restored image.
      color_fix: "wavelet", "adain" or "none".
      batch_size: images, or tiles of larger images, that run together.
      truncate: 8-bit output by truncation, as the PyTorch release does, for comparisons.
    """

    scale: float = 4.0
    steps: int | None = None
    order: int | None = None
    solver: Literal["sde", "ode"] | None = None
    start: Literal["lr", "noise"] = "lr"
    grid: Literal["uniform", "log_lambda", "jump"] | None = None
    final_denoise: bool | None = None
    seed: int | Sequence[int] = 0
    prompt: str | None = None
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    strength: float = 1.0
    fidelity: float | None = None
    color_fix: ColorFix = "wavelet"
    batch_size: int = 1
    truncate: bool = False

    def __post_init__(self) -> None:
        def one_of(name: str, choices: Sequence[Any]) -> tuple[str, bool]:
            value = getattr(self, name)
            listed = ", ".join(map(str, choices))
            return f"{name} {value!r} is not one of {listed}", value in choices

        def within(name: str, low: float, high: float) -> tuple[str, bool]:
            value = getattr(self, name)
            fine = value is None or low <= value <= high
            return f"{name} {value} is not from {low} to {high}", fine

        checks = [
            (f"scale {self.scale} is not a positive number", 0 < self.scale < math.inf),
            (f"cfg scale {self.cfg_scale} is not a finite number", math.isfinite(self.cfg_scale)),
            (f"strength {self.strength} is not a finite number", math.isfinite(self.strength)),
            (f"batch size {self.batch_size} is not 1 or more", self.batch_size >= 1),
            (
                f"seed {self.seed} is not from 0 to {_MAX_SEED}",
                all(0 <= seed <= _MAX_SEED for seed in np.ravel(self.seed)),
            ),
            within("steps", 1, MAX_STEPS),
            within("fidelity", 0, 1),
            one_of("order", (None, 1, 2, 3)),
            one_of("solver", (None, *KIND_NAMES)),
            one_of("start", START_NAMES),
            one_of("grid", (None, *GRID_NAMES)),
            one_of("color_fix", ("wavelet", "adain", "none")),
        ]
        for message, fine in checks:
            if not fine:
                raise UserError(message)

    def completed(self, sampler: SamplerConfig) -> Settings:
        """These settings with what they leave open as `sampler` has it."""
        stored = dataclasses.asdict(sampler)
        missing = {name: v for name, v in stored.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    def seed_of(self, index: int) -> int:
        """Seed of the image at a position in the input.

        Raises:
          UserError: there are fewer seeds than images.
        """
        if isinstance(self.seed, int):
            return self.seed
        if index >= len(self.seed):
            raise UserError(f"{len(self.seed)} seeds for more images; give one seed, or one each")
        return self.seed[index]


@dataclasses.dataclass(frozen=True)
class Restored:
    """One result.

    Attributes:
      image: uint8 (round(scale h), round(scale w), 3).
      pre_restored, decoded: the stages at four times the input, uint8 (4h, 4w, 3).
      seconds: its share of the wall time of its batch, compilation included.
    """

    image: np.ndarray
    pre_restored: np.ndarray
    decoded: np.ndarray
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Canvas:
    """Shape class of an image: canvas sides in units, and whether it is worked on in tiles."""

    height: int
    width: int
    tiled: bool


@dataclasses.dataclass(frozen=True)
class _Job:
    id: Hashable
    image: np.ndarray
    seed: int


class Upscaler:
    """A model ready to restore images.

    Compiled programs are kept per canvas bucket and batch size, never per image size, number of
    steps, seed or any strength.
    """

    def __init__(
        self,
        model: DoSSR,
        *,
        tile: int = DEFAULT_TILE,
        devices: Sequence[jax.Device] | None = None,
        tokenizer_dir: str | Path | None = None,
    ):
        """Wrap a loaded model.

        Args:
          model: see :meth:`from_pretrained`.
          tile: side of a tile in pixels of the fourfold image, rounded up to what the networks
            need; 0 turns tiling off.
          devices: devices that share a batch; all local ones if None.
          tokenizer_dir: folder with vocab.json and merges.txt, for prompts of your own.
        """
        if tile < 0:
            raise UserError(f"tile {tile} is negative; give a side in pixels, or 0 for no tiling")
        self.config = model.config
        self._unit = self.config.vae.downscale
        if self._unit % UPSCALE or self.config.rrdb.fold > self._unit // UPSCALE:
            raise UserError(
                f"a VAE with {self._unit} pixels a latent position does not fit a fourfold image"
            )
        self._align = self.config.unet.downscale
        tile = _round_up(-(-tile // self._unit), self._align)
        self._tile = max(tile, 2 * self._align) if tile else None
        self._tokenizer_dir = None if tokenizer_dir is None else Path(tokenizer_dir)
        self._text = model.text
        self._contexts = {
            self.config.negative_prompt: model.negative_context[...],
            self.config.prompt: model.context[...],
        }
        self._schedule = make_schedule(self.config.process)
        devices = list(devices if devices is not None else jax.local_devices())
        mesh = Mesh(np.array(devices), ("data",))
        self._devices = len(devices)
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._graphdef, state = nnx.split(model)
        self._state = jax.device_put(state, self._everywhere)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "dossr-mini",
        *,
        dtype: str = "float32",
        preprocessor: str | Path | None = None,
        tile: int = DEFAULT_TILE,
        devices: Sequence[jax.Device] | None = None,
        tokenizer_dir: str | Path | None = None,
    ) -> Upscaler:
        """Load a model that comes with the package, by name, or a converted one, by path.

        Args:
          name_or_path: "dossr-mini", a .safetensors file or an Orbax folder.
          dtype: "float32" or "bfloat16", of the networks' arithmetic.
          preprocessor: another pre-restorer: an RRDBNet file, or "realesrgan" from the extra.

        Raises:
          UserError: in one line, what is wrong with the file and what to do.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        model = weights.load_model(_locate(name_or_path), dtype=DTYPES[dtype])
        if preprocessor is not None:
            model.rrdb = make_preprocessor(preprocessor, dtype=DTYPES[dtype])
            model.config = dataclasses.replace(model.config, rrdb=model.rrdb.config)
        return cls(model, tile=tile, devices=devices, tokenizer_dir=tokenizer_dir)

    def restore(
        self, images: ImageLike | Sequence[ImageLike], **settings: Any
    ) -> np.ndarray | list[np.ndarray]:
        """Restore one image or several.

        Args:
          images: file names, PIL images, or arrays (h, w, 3), uint8 or float in [0, 1]; any size
            from 1x1 up.
          **settings: fields of :class:`Settings`.

        Returns:
          uint8 arrays (round(scale h), round(scale w), 3) in the order of the input, or one
          array for one image.

        Raises:
          UserError: an unreadable image or an impossible setting.
        """
        single = isinstance(images, ImageLike)
        arrays = [as_array(image) for image in ([images] if single else images)]
        results = dict(self.stream(enumerate(arrays), Settings(**settings)))
        ordered = [results[i].image for i in range(len(arrays))]
        return ordered[0] if single else ordered

    def stream(
        self, images: Iterable[tuple[Hashable, np.ndarray]], settings: Settings
    ) -> Iterator[tuple[Hashable, Restored]]:
        """Restore images as they come, batching those that fit one program.

        Args:
          images: pairs (anything that names the image, uint8 array (h, w, 3)). Read only as far
            as needed; at most batch_size of them wait for each bucket.

        Yields:
          (name, result), not necessarily in the order of the input.
        """
        settings = settings.completed(self.config.sampler)
        knobs, table = self._knobs(settings), self._table(settings)
        waiting: dict[_Canvas, list[_Job]] = {}
        for index, (name, image) in enumerate(images):
            canvas = self._canvas(*image.shape[:2])
            jobs = waiting.setdefault(canvas, [])
            jobs.append(_Job(name, image, settings.seed_of(index)))
            if len(jobs) == self._capacity(canvas, settings.batch_size):
                yield from self._run(canvas, waiting.pop(canvas), settings, knobs, table)
        for canvas, jobs in waiting.items():
            yield from self._run(canvas, jobs, settings, knobs, table)

    def _canvas(self, height: int, width: int) -> _Canvas:
        """The smallest bucket for an image of these sides in pixels."""
        sides = [_round_up(-(-UPSCALE * s // self._unit), self._align) for s in (height, width)]
        if self._tile is None:
            return _Canvas(*(_grow(s, self._align, 8 * self._align) for s in sides), False)
        if max(sides) > self._tile:
            return _Canvas(*(_grow(s, self._align, self._tile) for s in sides), True)
        side = self._tile
        while side // 2 >= max(*sides, DEFAULT_TILE // 4 // self._unit) and not (
            side // 2 % self._align
        ):
            side //= 2
        return _Canvas(side, side, False)

    def _capacity(self, canvas: _Canvas, batch_size: int) -> int:
        """Images of a bucket that run together."""
        if not canvas.tiled:
            return batch_size
        return max(
            1, min(batch_size, _CANVAS_BUDGET // (canvas.height * canvas.width * self._unit**2))
        )

    def _run(
        self,
        canvas: _Canvas,
        jobs: list[_Job],
        settings: Settings,
        knobs: Knobs,
        table: SolverTable,
    ) -> Iterator[tuple[Hashable, Restored]]:
        begin = time.perf_counter()
        tile_batch = _round_up(settings.batch_size, self._devices)
        # Batches come in powers of two, so that a rest does not bring a program of its own.
        places = 1 << (len(jobs) - 1).bit_length()
        if not canvas.tiled:
            places = _round_up(places, self._devices)
        px = self._unit // UPSCALE
        padded = jobs + [jobs[-1]] * (places - len(jobs))
        lr = np.stack([pad_to(j.image, canvas.height * px, canvas.width * px) for j in padded])
        size = np.array([j.image.shape[:2] for j in padded], np.int32)
        keys = jax.vmap(jax.random.key)(np.array([j.seed for j in padded], np.uint32))
        tiles = self._tiles(canvas, jobs)
        shard = self._split if canvas.tiled and self._devices > 1 else None
        layout = Layout(
            tile=self._tile if canvas.tiled else None,
            overlap=self._overlap,
            margin=self._overlap // 4,
            tile_batch=tile_batch,
            color_fix=settings.color_fix,
            guided=settings.cfg_scale != 1.0,
            truncate=settings.truncate,
            shard=shard,
        )
        place = self._everywhere if canvas.tiled else self._split
        lr, size, keys = jax.device_put((lr, size, keys), place)
        count = np.int32(len(tiles))
        tiles, count, table, knobs = jax.device_put(
            (self._pad_tiles(canvas, tiles, places), count, table, knobs), self._everywhere
        )
        stages = restore(
            self._graphdef, layout, self._state, lr, size, tiles, count, keys, table, knobs
        )
        stages = Stages(*(np.asarray(s) for s in stages))
        seconds = (time.perf_counter() - begin) / len(jobs)
        for i, job in enumerate(jobs):
            yield job.id, _finish(job.image, [s[i] for s in stages], settings.scale, seconds)

    @property
    def _overlap(self) -> int:
        """Units that neighbouring tiles share at least: a quarter of a tile."""
        return 0 if self._tile is None else _round_up(self._tile // 4, self._align)

    def _tiles(self, canvas: _Canvas, jobs: Sequence[_Job]) -> np.ndarray:
        if not canvas.tiled:
            return np.zeros((0, 3), np.int32)
        rows = []
        for i, job in enumerate(jobs):
            sides = (
                max(_round_up(-(-UPSCALE * s // self._unit), self._align), self._tile)
                for s in job.image.shape[:2]
            )
            corners = plan_tiles(*sides, self._tile, self._overlap, self._align)
            rows.append(np.insert(corners, 0, i, axis=1))
        return np.concatenate(rows).astype(np.int32)

    def _pad_tiles(self, canvas: _Canvas, tiles: np.ndarray, places: int) -> np.ndarray:
        """The list of tiles at the length that its bucket can need."""
        if not canvas.tiled:
            return tiles
        full = plan_tiles(canvas.height, canvas.width, self._tile, self._overlap, self._align)
        return np.pad(tiles, ((0, places * len(full) - len(tiles)), (0, 0)))

    def _table(self, settings: Settings) -> SolverTable:
        table = make_table(
            self._schedule,
            steps=settings.steps,
            order=settings.order,
            kind=settings.solver,
            grid=settings.grid,
            start=settings.start,
            final_denoise=settings.final_denoise,
        )
        return cast(pad_table(table, MAX_STEPS), np.float32)

    def _knobs(self, settings: Settings) -> Knobs:
        prompt, negative = settings.prompt, settings.negative_prompt
        return Knobs(
            context=self._context(self.config.prompt if prompt is None else prompt),
            negative=self._context(self.config.negative_prompt if negative is None else negative),
            cfg_scale=np.float32(settings.cfg_scale),
            strength=np.float32(settings.strength),
            fidelity=np.float32(settings.fidelity),
        )

    def _context(self, prompt: str) -> jax.Array:
        if prompt not in self._contexts:
            if self._text is None:
                known = " and ".join(repr(p) for p in self._contexts)
                raise UserError(
                    f"prompt {prompt!r}: this model carries no text encoder, only {known}; "
                    "use one of these, or convert a checkpoint with --keep-text"
                )
            embedded = prompts.embed(self._text, [prompt], tokenizer_dir=self._tokenizer_dir)
            self._contexts[prompt] = embedded[0]
        return self._contexts[prompt]


def as_array(image: ImageLike) -> np.ndarray:
    """An image in any accepted form as uint8 (h, w, 3).

    Raises:
      UserError: unreadable file, or an array of another shape or dtype.
    """
    if isinstance(image, str | Path):
        return image_io.read_image(image)
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(f"array of shape {image.shape} is no image; give (h, w, 3)")
    if image.dtype == np.uint8:
        return image
    if np.issubdtype(image.dtype, np.floating):
        return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    raise UserError(f"image of dtype {image.dtype}; give uint8, or float in [0, 1]")


def _finish(
    image: np.ndarray, stages: Sequence[np.ndarray], scale: float, seconds: float
) -> Restored:
    height, width = image.shape[:2]
    cropped = [s[: UPSCALE * height, : UPSCALE * width] for s in stages]
    target = image_io.output_size(height, width, scale)
    result = image_io.resample(cropped[2], *target)
    return Restored(result, cropped[0], cropped[1], seconds)


def _locate(name_or_path: str | Path) -> Path:
    if str(name_or_path) in BUILT_IN:
        return Path(str(resources.files("dossr_jax") / "assets" / BUILT_IN[str(name_or_path)]))
    path = Path(name_or_path)
    if not path.exists():
        raise UserError(
            f"{path}: no such model; give a file, an Orbax folder or one of {', '.join(BUILT_IN)}"
        )
    return path


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _grow(side: int, align: int, least: int) -> int:
    """Smallest of least x 1, 1.5, 2, 3, 4, 6, 8, ... (rounded up to `align`) that holds `side`."""
    bucket, half = least, True
    while _round_up(bucket, align) < side:
        bucket = bucket * 3 // 2 if half else bucket * 4 // 3
        half = not half
    return _round_up(bucket, align)
