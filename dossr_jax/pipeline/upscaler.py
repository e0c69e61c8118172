"""`Upscaler`: images in, restored images out."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dossr_jax import prompts
from dossr_jax.config import MAX_STEPS, LatentConfig
from dossr_jax.convert.reading import prepare, replace_pre_restorer
from dossr_jax.diffusion.solver import SolverTable, cast, pad_table
from dossr_jax.errors import UserError
from dossr_jax.method import Controls, KeyNoise
from dossr_jax.pipeline.buckets import Buckets
from dossr_jax.pipeline.limits import Limits
from dossr_jax.pipeline.maps import check_maps
from dossr_jax.pipeline.networks import Call, Networks
from dossr_jax.pipeline.photos import restore_photos
from dossr_jax.pipeline.pictures import ImageLike, Result, as_maps, as_photo, is_single
from dossr_jax.pipeline.queueing import Queue
from dossr_jax.pipeline.settings import (
    BUILT_IN,
    DEFAULT_TILE,
    DTYPE_NAMES,
    MODELS,
    Settings,
    check_settings,
    make_settings,
)
from dossr_jax.pipeline.steps import Stages, as_stages, run_stages
from dossr_jax.pipeline.stream import Restored, Stream
from dossr_jax.programs import Programs, Stored, about, folder_for
from dossr_jax.systems import system_of
from dossr_jax.systems.rrdb import PACKAGED
from dossr_jax.systems.rrdb import preprocessor as make_preprocessor

DTYPES = {name: getattr(jnp, name) for name in DTYPE_NAMES}

Name = TypeVar("Name")


class Upscaler:
    """A model ready to restore images.

    Compiled programs are kept per canvas bucket and batch size, never per image size, number of
    steps, seed or any strength.
    """

    def __init__(
        self,
        model: Any,
        *,
        tile: int | None = None,
        devices: Sequence[Any] | None = None,
        tokenizer_dir: str | Path | None = None,
        fill: Callable[[], None] | None = None,
        programs: Programs | None = None,
    ):
        """Wrap a loaded model.

        Args:
          model: networks of any of dossr_jax.systems; see :meth:`from_pretrained`.
          tile: side of a tile in pixels of the result as the networks make it, rounded up to what
            they need; 0 turns tiling off. Where memory is short, it is halved. None is
            DEFAULT_TILE.
          devices: devices that share a batch; all local ones if None.
          tokenizer_dir: folder with vocab.json and merges.txt, for prompts of your own.
          fill: reads the weights of a model of shapes; it is called in another thread when they
            are needed, and what it raises is raised there.
          programs: stored ones, for one device.
        """
        tile = DEFAULT_TILE if tile is None else tile
        if tile < 0:
            raise UserError(f"tile {tile} is negative; give a size in pixels, or 0 for no tiling")
        self.config = model.config
        self.system = system_of(model.config)
        self.geometry = self.system.geometry(self.config)
        buckets = Buckets.of_pixels(self.geometry, tile)
        self._tokenizer_dir = None if tokenizer_dir is None else Path(tokenizer_dir)
        self._embedded: dict[str, jax.Array] = {}
        devices = list(devices if devices is not None else jax.local_devices())
        limits = Limits(buckets, len(devices))
        self._networks = Networks(model, devices, limits, fill=fill, programs=programs)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "dossr-mini",
        *,
        dtype: str = "float32",
        preprocessor: str | Path | None = None,
        tile: int | None = None,
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
            upscaler._networks.loading.state()
        return upscaler

    @property
    def parameters(self) -> dict[str, int]:
        """Parameter counts by network: "unet", "control", "vae", "rrdb", ..."""
        counts: dict[str, int] = {}
        for path, value in nnx.to_flat_state(self._networks.loading.shapes):
            network = self.system.name if self.system.single else str(path[0])
            counts[network] = counts.get(network, 0) + value.size
        return counts

    @property
    def model(self) -> Any:
        """The networks, on the devices; a new module of the same arrays at every call."""
        loading = self._networks.loading
        return nnx.merge(loading.graphdef, loading.state())

    def settings(self, **fields: Any) -> Settings:
        """Settings from fields of :class:`Settings` and of its sampler, else the model's own.

        Raises:
          ConfigError: an unknown field, a value that it cannot have, or a field that the model's
            system does not read.
        """
        if fields.get("scale") is None:
            fields["scale"] = float(self.geometry.factor)
        settings = make_settings(self.system.sampler(self.config), **fields)
        check_settings(self.system, fields)
        return settings

    def restore(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        eta_map: ImageLike | Sequence[ImageLike | None] | None = None,
        mask: ImageLike | Sequence[ImageLike | None] | None = None,
        **settings: Any,
    ) -> Result | list[Result]:
        """Restore one image or several.

        Args:
          images: file names, open files, bytes of files, PIL images, or arrays (h, w) or
            (h, w, 1 to 4) of uint8, uint16 or floats in [0, 1]; any size from 1x1 up.
          eta_map: how much of every pixel is kept, a grey image of the same size in any of these
            forms, from black, restored as without a map, to white: there the result is that of
            `diffuse=False`, before it is resampled to another scale. One for all images, or one
            per image, of which some may be None.
          mask: white, from mid grey on, where a model that inpaints is to fill; all else is kept.
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
        chosen, sizes = self.settings(**settings), [(photo.height, photo.width) for photo in photos]
        maps = as_maps(eta_map, mask, sizes)
        if any(maps):
            check_maps(self.system, self.config, chosen, mask=mask is not None)
        for index, result in restore_photos(
            self, enumerate(photos), chosen, sizes=sizes, map_of=maps.__getitem__
        ):
            if isinstance(result, UserError):
                raise result
            for note in result.restored.notes:
                warnings.warn(note, stacklevel=2)
            results[index] = finish[index](result.photo)
        ordered = [results[index] for index in range(len(given))]
        return ordered[0] if single else ordered

    def stream(
        self,
        images: Iterable[tuple[Name, np.ndarray]],
        settings: Settings,
        *,
        sizes: Iterable[tuple[int, int]] = (),
        stages: bool = False,
    ) -> Iterator[tuple[Name, Restored | UserError]]:
        """Restore images as they come, batching those that fit one program.

        One batch is on the device and the next beside it. Where memory is short, less runs at a
        time from there on, as the notes of a result say.

        Args:
          images: pairs (anything that names the image, uint8 or uint16 array (h, w, 3), or with an
            eta map (h, w, 4)). Read only as far as needed; those that wait for others to run with
            take 300 MB at most.
          sizes: (h, w) of images to come, as far as they are known; then few programs are compiled
            and batches are full.
          stages: whether results have their stages, see :class:`Restored`.

        Yields:
          (name, result, or what prevented it), not necessarily in the order of the input: an
          image that cannot be restored stops no other.

        Raises:
          UserError: settings that this model or these images cannot have.
        """
        yield from Stream(self._networks, self._call(settings, stages), sizes).run(images)

    def stages(self, image: np.ndarray, settings: Settings) -> Stages:
        """What becomes of a small image on the way, at the size that the networks make.

        Args:
          image: uint8 or uint16 (h, w, 3). It runs without tiles, so that memory limits it.

        Raises:
          UserError: a prompt that this model cannot have.
        """
        buckets, loading = self._networks.limits.buckets, self._networks.loading
        state = loading.state()
        batch = buckets.arrange(buckets.canvas(*image.shape[:2]), [image], 1)
        layout = self._networks.layout(settings, unit=buckets.unit)
        table, noise = self._table(settings), KeyNoise.of_seeds([settings.seed_of(0)])
        inputs = batch.lr[:1], batch.size[:1], noise, table, self._controls(settings)
        placed = jax.device_put(inputs, self._networks.everywhere)
        pictures = run_stages(loading.graphdef, layout, state, *placed)
        steps = settings.sampler.steps if table else 0
        height, width = (self.geometry.factor * side for side in image.shape[:2])
        return as_stages(pictures, height, width, steps)

    def kind(self, height: int, width: int) -> Hashable:
        """What images have in common that can run together, by their size."""
        return self._networks.limits.buckets.canvas(height, width)

    def canvas_of(self, height: int, width: int) -> tuple[int, int]:
        """Sides of the canvas that an image of these sides is restored on: it has the program."""
        buckets = self._networks.limits.buckets
        canvas = buckets.canvas(height, width)
        return canvas.height * buckets.unit_px, canvas.width * buckets.unit_px

    def capacity(self, height: int, width: int, batch_size: int) -> int:
        """How many images of these sides run together, of those that settings allow."""
        buckets, most = self._networks.limits.buckets, self._networks.at_a_time(batch_size)
        return buckets.capacity(buckets.canvas(height, width), *most)

    def export(self, images: Sequence[np.ndarray], settings: Settings, platform: str) -> Stored:
        """The program that restores images like these together, traced for one device.

        For a model :meth:`from_pretrained` on one device.

        Args:
          images: uint8 or uint16 (h, w, 3), of one canvas; their values do not matter.
          platform: "cpu", "cuda" or "tpu", which need not be at hand.
        """
        queue = Queue(self._networks, settings, [image.shape[:2] for image in images], False)
        work = next(queue.works(enumerate(images)))
        assert work is not None
        return self._networks.export(self._call(settings, False), work, platform)

    def _call(self, settings: Settings, stages: bool) -> Call:
        controls = functools.partial(self._controls, settings)
        controls()  # what is wrong with a prompt is said here
        return Call(settings, self._table(settings), controls, stages)

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
            return self._networks.loading.value(names[prompt])
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
