"""A model's networks on their devices, and the limits that memory sets them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dossr_jax.diffusion.solver import SolverTable
from dossr_jax.method import Controls, KeyNoise
from dossr_jax.pipeline import memory
from dossr_jax.pipeline.limits import Limits
from dossr_jax.pipeline.loading import Loading
from dossr_jax.pipeline.settings import Settings
from dossr_jax.pipeline.work import Work
from dossr_jax.programs import Loaded, Programs, Stored, describe, export_program, shapes_of
from dossr_jax.restore import Images, Layout, restore
from dossr_jax.systems import system_of

# Of the programs, where they are stored.
NAME = "restore"


class Call(NamedTuple):
    """What a restoration depends on besides its images.

    controls: gives those; shapes in place of arrays that are still being read.
    """

    settings: Settings
    table: SolverTable | None
    controls: Callable[[], Controls | None]
    stages: bool


class Placed(NamedTuple):
    """A batch on the devices, and what restores it.

    Attributes:
      program: called with weights, `batch`, controls and `parts`.
    """

    program: Callable[..., Any]
    layout: Layout
    batch: tuple[Any, ...]
    parts: tuple[Any, Any]


class Networks:
    """A model on devices, with its programs.

    Attributes:
      limits: what fits into their memory, as far as it is known; the one thing that changes.
      loading: the weights. everywhere: how what all devices have is placed.
    """

    def __init__(
        self,
        model: Any,
        devices: Sequence[Any],
        limits: Limits,
        *,
        fill: Callable[[], None] | None = None,
        programs: Programs | None = None,
    ):
        """`fill`: see Loading. `programs`: stored ones, for one device."""
        self.system = system_of(model.config)
        self.limits = limits
        self._device = devices[0]
        mesh = Mesh(np.array(devices), ("data",))
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self._programs = programs if len(devices) == 1 else None
        self.loading = Loading(model, fill, self.everywhere)
        self._known: set[Any] = set()

    def at_a_time(self, batch_size: int | str) -> tuple[float, float]:
        """Images, and pixels of them, that run together."""
        return self.limits.at_a_time(batch_size, self._device.platform)

    def layout(self, settings: Settings, **more: Any) -> Layout:
        """What a program depends on by the settings, and `more`: fields of Layout."""
        return Layout(
            color_fix=settings.sampler.color_fix,
            guided=self.system.guided(settings),
            truncate=settings.truncate,
            diffuse=settings.diffuse,
            devices=self.limits.devices,
            **more,
        )

    def place(self, call: Call, work: Work) -> Placed:
        """Put the images of a batch on the devices; the weights may still be on their way."""
        self.loading.start()
        placed = self._placed(call, work)
        if self._programs is None or (work.part and work.part.measure):
            return placed
        shapes = self._arguments(call, placed)
        ready = self._programs.ready(NAME, placed.program, placed.layout, shapes)
        return placed._replace(program=ready) if isinstance(ready, Loaded) else placed

    def needed_memory(self, call: Call, work: Work, placed: Placed) -> int:
        """Bytes that the program of a batch takes; it is compiled. 0 where it was asked before."""
        measure, channels = work.part and work.part.measure, placed.batch[0].shape[-1]
        kind = work.canvas, work.places, work.limits, placed.layout, measure, channels
        if kind in self._known:
            return 0
        self._known.add(kind)
        if isinstance(placed.program, Loaded):
            return memory.needed_memory(placed.program.compiled)
        lowered = restore.lower(
            self.loading.graphdef, placed.layout, *self._arguments(call, placed)
        )
        return memory.needed_memory(lowered.compile())

    def usable_memory(self) -> float:
        """Bytes that a program may take now, while none runs."""
        usable = memory.usable_memory(self._device)
        return math.inf if usable is None else usable

    def start(self, call: Call, placed: Placed) -> Any:
        """Begin to restore what was placed; nothing is waited for but the weights."""
        state = self.loading.state()
        controls = jax.device_put(call.controls(), self.everywhere)
        restored = placed.program(state, *placed.batch, controls, *placed.parts)
        return Images(*restored) if isinstance(restored, tuple) else restored

    def export(self, call: Call, work: Work, platform: str) -> Stored:
        """The program of a batch, traced for one device of a platform."""
        assert self._programs is not None
        placed = self._placed(call, work)
        arguments = self._arguments(call, placed)
        description = describe(NAME, self._programs.model, placed.layout, arguments, platform)
        return export_program(placed.program, arguments, platform, description)

    def _arguments(self, call: Call, placed: Placed) -> tuple[Any, ...]:
        """Of the program, with shapes in place of the weights."""
        controls = shapes_of(call.controls(), self.everywhere)
        return self.loading.shapes, *placed.batch, controls, *placed.parts

    def _placed(self, call: Call, work: Work) -> Placed:
        buckets, canvas = work.limits.buckets, work.canvas
        batch = buckets.arrange(canvas, work.images, work.places)
        seeds = [job.seed for job in work.jobs] + [0] * (work.places - len(work.jobs))
        part = work.part
        row, column = (part.block.row, part.block.column) if part else (0, 0)
        origin = np.array([[row, column]] * work.places, np.int32) // buckets.unit_px
        noise = KeyNoise.of_seeds(seeds)._replace(origin=origin)
        owned = whole = None
        if part is not None and part.measure:
            owned = np.array([part.block.owned], np.int32)
        elif part is not None and part.of.moments is not None:
            whole = part.of.moments[None]
        layout = self.layout(
            call.settings,
            **buckets.tiling(canvas),
            tile_batch=work.tile_batch,
            stages=call.stages and part is None,
            shard=self._split if canvas.tiled and self.limits.devices > 1 else None,
        )
        # Of a tiled batch every device has all images and shares the tiles; of others, the images.
        lr, size, noise = jax.device_put(
            (batch.lr, batch.size, noise), self.everywhere if canvas.tiled else self._split
        )
        tiles, count, table, *parts = jax.device_put(
            (batch.tiles, batch.count, call.table, owned, whole), self.everywhere
        )
        program = functools.partial(restore, self.loading.graphdef, layout)
        return Placed(program, layout, (lr, size, tiles, count, noise, table), (parts[0], parts[1]))
