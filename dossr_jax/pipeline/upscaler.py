"""`Upscaler`: images in, enlarged images out."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dossr_jax import image_io, prompts
from dossr_jax.config import MAX_STEPS, LatentConfig
from dossr_jax.convert.reading import prepare, replace_pre_restorer
from dossr_jax.diffusion.solver import SolverTable, cast, pad_table
from dossr_jax.errors import UserError
from dossr_jax.method import Controls, KeyNoise
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.pipeline.blocks import Block, blocks_of, check_memory, paste
from dossr_jax.pipeline.buckets import Buckets, Canvas, round_up
from dossr_jax.pipeline.loading import Loading
from dossr_jax.pipeline.photos import restore_photos
from dossr_jax.pipeline.pictures import ImageLike, Result, as_photo, is_single
from dossr_jax.pipeline.settings import (
    BUILT_IN,
    DEFAULT_TILE,
    DTYPE_NAMES,
    MODELS,
    Settings,
    check_settings,
    make_settings,
)
from dossr_jax.programs import (
    Programs,
    Stored,
    about,
    describe,
    export_program,
    folder_for,
    shapes_of,
)
from dossr_jax.restore import Layout, restore
from dossr_jax.systems import system_of
from dossr_jax.systems.rrdb import PACKAGED
from dossr_jax.systems.rrdb import preprocessor as make_preprocessor

# Of the programs, where they are stored.
NAME = "restore"
DTYPES = {name: getattr(jnp, name) for name in DTYPE_NAMES}

Name = TypeVar("Name")


@dataclasses.dataclass(frozen=True)
class Restored:
    """One result.

    Attributes:
      image: (round(scale h), round(scale w), 3), of the input's dtype.
      pre_restored, decoded: the stages at four times the input, (4h, 4w, 3); None for an image that
        was restored in blocks.
      seconds: its share of the wall time of its batch, including compilation.
    """

    image: np.ndarray
    pre_restored: np.ndarray | None
    decoded: np.ndarray | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Job:
    """An image to restore, uint8 or uint16 (h, w, 3)."""

    id: Any
    image: np.ndarray
    seed: int

    @property
    def sides(self) -> str:
        return f"{self.image.shape[1]}x{self.image.shape[0]}"

    def problem(self, scale: float) -> UserError | None:
        """Why the image cannot be restored, if it cannot."""
        try:
            check_memory(self.image.shape[0], self.image.shape[1], scale, self.image.itemsize)
        except UserError as error:
            return error
        return None

    def blocks(self) -> list[Block]:
        """Its parts, where it is too large to be worked on at once."""
        found = blocks_of(self.image.shape[0], self.image.shape[1])
        return found if len(found) > 1 else []

    def finish(self, images: Sequence[np.ndarray], scale: float, seconds: float) -> Restored:
        """The result: images of the canvas cut to this image, the last of them at `scale`."""
        height, width = self.image.shape[:2]
        pre, decoded, result = (s[: UPSCALE * height, : UPSCALE * width] for s in images)
        image = image_io.resample(result, *image_io.output_size(height, width, scale))
        return Restored(image, pre, decoded, seconds)


class Upscaler:
    """A model ready to restore images.

    Compiled programs are kept per canvas bucket and batch size, never per image size, number of
    steps, seed or any strength.
    """

    def __init__(
        self,
        model: Any,
        *,
        tile: int = DEFAULT_TILE,
        devices: Sequence[Any] | None = None,
        tokenizer_dir: str | Path | None = None,
        fill: Callable[[], None] | None = None,
        programs: Programs | None = None,
    ):
        """Wrap a loaded model.

        Args:
          model: networks of any of dossr_jax.systems; see :meth:`from_pretrained`.
          tile: side of a tile in pixels of the fourfold image, rounded up to what the networks
            need; 0 turns tiling off.
          devices: devices that share a batch; all local ones if None.
          tokenizer_dir: folder with vocab.json and merges.txt, for prompts of your own.
          fill: reads the weights of a model of shapes; it is called in another thread when they
            are needed, and what it raises is raised there.
          programs: stored ones, for one device.
        """
        if tile < 0:
            raise UserError(f"tile {tile} is negative; give a size in pixels, or 0 for no tiling")
        self.config = model.config
        self.system = system_of(model.config)
        self._buckets = Buckets.of_pixels(*self.system.geometry(self.config), tile)
        self._tokenizer_dir = None if tokenizer_dir is None else Path(tokenizer_dir)
        self._embedded: dict[str, jax.Array] = {}
        devices = list(devices if devices is not None else jax.local_devices())
        mesh = Mesh(np.array(devices), ("data",))
        self._devices = len(devices)
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._programs = programs if self._devices == 1 else None
        self._loading = Loading(model, fill, self._everywhere)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "dossr-mini",
        *,
        dtype: str = "float32",
        preprocessor: str | Path | None = None,
        tile: int = DEFAULT_TILE,
        devices: Sequence[Any] | None = None,
        tokenizer_dir: str | Path | None = None,
        programs: str | Path | None = None,
        keep: Path | None = None,
        wait: bool = True,
    ) -> Upscaler:
        """Load a model that comes with the package, by name, or a converted one, by path.

        Args:
          name_or_path: "dossr-mini"; "realesrgan" (photos) or "realesrgan-anime" (drawings), which
            are Real-ESRGAN without diffusion; a .safetensors file, a folder with config.json and
            model.safetensors, or an Orbax folder; a checkpoint of one of dossr_jax.systems, or a
            folder with its files.
          dtype: "float32" or "bfloat16", of the networks' arithmetic.
          preprocessor: another pre-restorer: an RRDBNet file, or the name of one of the two.
          programs: folder with programs that `python -m dossr_jax.export` wrote; by default the one
            of that name beside the model's file, or in its folder.
          keep: folder in which programs are kept for the next start, once they are traced.
          wait: for the weights. Otherwise they are read while the first program compiles, and NaN
            in them is reported then.

        Raises:
          UserError: in one line, what is wrong with the file and what to do.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        if str(name_or_path) in PACKAGED:
            if preprocessor is not None:
                raise UserError(f"{name_or_path} is a pre-restorer itself; leave out preprocessor")
            path, fill = None, None
            model = make_preprocessor(name_or_path, dtype=DTYPES[dtype])
        else:
            path = locate(name_or_path)
            model, fill = prepare(path, dtype=DTYPES[dtype])
        if preprocessor is not None:
            replace_pre_restorer(model, make_preprocessor(preprocessor, dtype=DTYPES[dtype]))
        upscaler = cls(
            model,
            tile=tile,
            devices=devices,
            tokenizer_dir=tokenizer_dir,
            fill=fill,
            programs=Programs(
                about(model.config, dtype), folder=folder_for(path, programs), keep=keep
            ),
        )
        if wait:
            upscaler._loading.state()
        return upscaler

    @property
    def parameters(self) -> dict[str, int]:
        """Parameter counts by network: "unet", "control", "vae", "rrdb", ..."""
        counts: dict[str, int] = {}
        for path, value in nnx.to_flat_state(self._loading.shapes):
            network = self.system.name if self.system.single else str(path[0])
            counts[network] = counts.get(network, 0) + value.size
        return counts

    @property
    def model(self) -> Any:
        """The networks, on the devices; a new module of the same arrays at every call."""
        return nnx.merge(self._loading.graphdef, self._loading.state())

    def settings(self, **fields: Any) -> Settings:
        """Settings from fields of :class:`Settings` and of its sampler, else the model's own.

        Raises:
          ConfigError: an unknown field, a value that it cannot have, or a field that the model's
            system does not read.
        """
        settings = make_settings(self.system.sampler(self.config), **fields)
        check_settings(self.system, fields)
        return settings

    def restore(
        self, images: ImageLike | Sequence[ImageLike], **settings: Any
    ) -> Result | list[Result]:
        """Restore one image or several.

        Args:
          images: file names, open files, bytes of files, PIL images, or arrays (h, w) or
            (h, w, 1 to 4) of uint8, uint16 or floats in [0, 1]; any size from 1x1 up.
          **settings: see :meth:`settings`.

        Returns:
          One image for one, else a list in the order of the input. Arrays and PIL images come back
          as such, with their dtype, channels and PIL mode; files as arrays in sRGB, see
          :func:`dossr_jax.pipeline.pictures.as_array`. Sides are round(scale * side).

        Raises:
          UserError: an unreadable image or an impossible setting.
        """
        single = is_single(images)
        given: list[Any] = [images] if single else list(images)  # pyright: ignore[reportArgumentType]
        photos, finish = zip(*map(as_photo, given), strict=True) if given else ((), ())
        results = {}
        for index, result in restore_photos(self, enumerate(photos), self.settings(**settings)):
            if isinstance(result, UserError):
                raise result
            results[index] = finish[index](result.photo)
        ordered = [results[index] for index in range(len(given))]
        return ordered[0] if single else ordered

    def stream(
        self, images: Iterable[tuple[Name, np.ndarray]], settings: Settings
    ) -> Iterator[tuple[Name, Restored | UserError]]:
        """Restore images as they come, batching those that fit one program.

        Args:
          images: pairs (anything that names the image, uint8 or uint16 array (h, w, 3)). Read only
            as far as needed; at most batch_size of them wait for each bucket.

        Yields:
          (name, result, or what prevented it), not necessarily in the order of the input: an
          image that cannot be restored stops no other.

        Raises:
          UserError: settings that this model or these images cannot have.
        """
        controls, table = self._controls(settings), self._table(settings)
        waiting: dict[tuple[Canvas, np.dtype], list[_Job]] = {}
        for index, (name, image) in enumerate(images):
            job = _Job(name, image, settings.seed_of(index))
            problem = job.problem(settings.scale)
            if problem is not None:
                yield name, problem
                continue
            # AdaIN is of the whole image.
            whole = self.system.whole_image or settings.sampler.color_fix == "adain"
            if not whole and (blocks := job.blocks()):
                yield name, self._restore_blocks(job, blocks, settings, controls, table)
                continue
            canvas = self._buckets.canvas(*image.shape[:2])
            jobs = waiting.setdefault((canvas, image.dtype), [])
            jobs.append(job)
            if len(jobs) == self._buckets.capacity(canvas, settings.batch_size):
                del waiting[canvas, image.dtype]
                yield from self._run(canvas, jobs, settings, controls, table)
        for (canvas, _), jobs in waiting.items():
            yield from self._run(canvas, jobs, settings, controls, table)

    def _restore_blocks(
        self, job: _Job, blocks: Sequence[Block], settings: Settings, *options: Any
    ) -> Restored | UserError:
        """Restore a large image part by part; as if at once but for the noise, see blocks."""
        height, width = job.image.shape[:2]
        sides = image_io.output_size(height, width, settings.scale)
        result = np.empty((*sides, 3), job.image.dtype)
        fourfold = dataclasses.replace(settings, scale=float(UPSCALE))
        seconds = 0.0
        for block in blocks:
            # Equal noise in neighbours would show as a pattern.
            part = _Job(job.id, block.cut(job.image), (job.seed + block.number) % 2**32)
            canvas = self._buckets.canvas(*part.image.shape[:2])
            ((_, restored),) = self._run(canvas, [part], fourfold, *options)
            if isinstance(restored, UserError):
                return restored
            seconds += restored.seconds
            paste(result, restored.image, block, (height, width))
        return Restored(result, None, None, seconds)

    def _run(
        self, canvas: Canvas, jobs: Sequence[_Job], *options: Any
    ) -> Sequence[tuple[Any, Restored | UserError]]:
        """Restore a batch, or report for each of its images that memory ran out."""
        try:
            return self._restore(canvas, jobs, *options)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
                raise
            remedy = "reduce the tile or the batch size, or cut the image"
            return [
                (job.id, UserError(f"{job.sides} pixels: out of memory; {remedy}")) for job in jobs
            ]

    def _restore(
        self,
        canvas: Canvas,
        jobs: Sequence[_Job],
        settings: Settings,
        controls: Controls | None,
        table: SolverTable | None,
    ) -> list[tuple[Any, Restored | UserError]]:
        """Restore a batch: images of one class and dtype, no more than its capacity."""
        begin = time.perf_counter()
        batch = self._buckets.arrange(canvas, [job.image for job in jobs], self._devices)
        seeds = [job.seed for job in jobs] + [0] * (len(batch.lr) - len(jobs))
        noise = KeyNoise.of_seeds(seeds)
        layout = self._layout(canvas, settings)
        # Of a tiled batch every device has all images and shares the tiles; of others, the images.
        place = self._everywhere if canvas.tiled else self._split
        lr, size, noise = jax.device_put((batch.lr, batch.size, noise), place)
        tiles, count, table = jax.device_put((batch.tiles, batch.count, table), self._everywhere)
        program = functools.partial(restore, self._loading.graphdef, layout)
        arguments = lr, size, tiles, count, noise, table
        self._loading.start()
        if self._programs is not None:  # it is compiled while the weights are read
            shapes = shapes_of(controls, self._everywhere)
            program = self._programs.ready(
                NAME, program, layout, (self._loading.shapes, *arguments, shapes)
            )
        state = self._loading.state()
        controls = jax.device_put(self._controls(settings), self._everywhere)
        restored = program(state, *arguments, controls)
        remedy = "use --dtype float32, or another model"
        *images, finite = (np.asarray(array) for array in restored)
        seconds = (time.perf_counter() - begin) / len(jobs)
        return [
            (
                job.id,
                job.finish([image[i] for image in images], settings.scale, seconds)
                if finite[i]
                else UserError(f"{job.sides} pixels: the networks gave NaN or infinity; {remedy}"),
            )
            for i, job in enumerate(jobs)
        ]

    def _layout(self, canvas: Canvas, settings: Settings) -> Layout:
        return Layout(
            **self._buckets.tiling(canvas),
            tile_batch=round_up(settings.batch_size, self._devices),
            color_fix=settings.sampler.color_fix,
            guided=self.system.guided(settings),
            truncate=settings.truncate,
            diffuse=settings.diffuse,
            shard=self._split if canvas.tiled and self._devices > 1 else None,
        )

    def canvas_of(self, height: int, width: int) -> tuple[int, int]:
        """Sides of the canvas that an image of these sides is restored on: it has the program."""
        canvas = self._buckets.canvas(height, width)
        return canvas.height * self._buckets.unit_px, canvas.width * self._buckets.unit_px

    def capacity(self, height: int, width: int, batch_size: int) -> int:
        """How many images of these sides run together, of those that settings allow."""
        return self._buckets.capacity(self._buckets.canvas(height, width), batch_size)

    def export(self, images: Sequence[np.ndarray], settings: Settings, platform: str) -> Stored:
        """The program that restores images like these together, traced for one device.

        For a model :meth:`from_pretrained` on one device.

        Args:
          images: uint8 or uint16 (h, w, 3), of one canvas; their values do not matter.
          platform: "cpu", "cuda" or "tpu", which need not be at hand.
        """
        canvas = self._buckets.canvas(*images[0].shape[:2])
        batch, layout = self._buckets.arrange(canvas, images, 1), self._layout(canvas, settings)
        noise, table = KeyNoise.of_seeds([0] * len(batch.lr)), self._table(settings)
        arguments = self._loading.shapes, batch.lr, batch.size, batch.tiles, batch.count, noise
        arguments = (*arguments, table, self._controls(settings))
        program = functools.partial(restore, self._loading.graphdef, layout)
        assert self._programs is not None
        description = describe(NAME, self._programs.model, layout, arguments, platform)
        return export_program(program, arguments, platform, description)

    def _table(self, settings: Settings) -> SolverTable | None:
        if self.system.table is None or not settings.diffuse:
            return None
        table = self.system.table(self.config, settings.sampler)
        return cast(pad_table(table, MAX_STEPS), np.float32)

    def _controls(self, settings: Settings) -> Controls | None:
        if not self.system.samples or not settings.diffuse:
            return None
        contexts = {}
        if isinstance(self.config, LatentConfig):
            contexts = {
                "context": self._context(settings.prompt, self.config.prompt),
                "negative_context": self._context(
                    settings.negative_prompt, self.config.negative_prompt
                ),
            }
        return Controls(
            **contexts,
            cfg_scale=np.float32(settings.sampler.cfg_scale),
            strength=np.float32(settings.strength),
            fidelity=np.float32(settings.sampler.fidelity),
            pixel_scale=np.float32(settings.pixel_scale),
            semantic_scale=np.float32(settings.semantic_scale),
        )

    def _context(self, prompt: str | None, stored: str) -> jax.Array:
        prompt = stored if prompt is None else prompt
        # The stored prompts may be the same text.
        names = {self.config.negative_prompt: "negative_context", self.config.prompt: "context"}
        if prompt in names:
            return self._loading.value(names[prompt])
        if prompt not in self._embedded:
            text = self.model.text
            if text is None:
                known = " and ".join(repr(p) for p in names)
                raise UserError(
                    f"prompt {prompt!r}: this model carries no text encoder, only {known}; "
                    "use one of these, or convert a checkpoint with --keep-text"
                )
            embedded = prompts.embed(text, [prompt], tokenizer_dir=self._tokenizer_dir)
            self._embedded[prompt] = embedded[0]
        return self._embedded[prompt]


def locate(name_or_path: str | Path) -> Path:
    """The file or folder of a model that comes with the package, by name, or is given by path.

    Raises:
      UserError: no such model.
    """
    if str(name_or_path) in BUILT_IN:
        return Path(str(resources.files("dossr_jax") / "assets" / BUILT_IN[str(name_or_path)]))
    path = Path(name_or_path)
    if not path.exists():
        raise UserError(
            f"{path}: no such model; give a file, a folder of a model or one of {', '.join(MODELS)}"
        )
    return path
