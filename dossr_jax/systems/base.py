"""What a system is: one description, from which every command knows how to work with its models."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx
from jax import Array

from dossr_jax.config import UPSCALE, ModelConfig, SamplerConfig
from dossr_jax.config.sampler import ColorFix
from dossr_jax.diffusion.solver import SolverTable
from dossr_jax.errors import UserError
from dossr_jax.method import Apply, Controls, Noise, Restoration, Sizes
from dossr_jax.pytorch.state import State, to_ours, to_torch
from dossr_jax.pytorch.tables import Row
from dossr_jax.weights import Lazy

# Fields of Settings that every system reads.
COMMON_SETTINGS = frozenset({"scale", "batch_size", "truncate"})


class Geometry(NamedTuple):
    """Shapes that the networks take.

    unit: pixels of the result per position of the latent. align: canvases, tiles and their corners
    are multiples of it, in units. factor: pixels of the result per pixel of the input.
    """

    unit: int
    align: int
    factor: int = UPSCALE


class Run(NamedTuple):
    """What a restoration depends on besides model and images.

    Attributes:
      size: valid part of every LR canvas, int32 (b, 2).
      apply: runs a network over canvases, tile by tile where they are large.
      noise, table, controls: absent where nothing is sampled.
      fix: the colour fix. guided: a second evaluation per step, see Controls.
      diffuse: False asks for the pre-restored image alone. keep_path: keep every step.
      gradient_steps: how many of the last steps gradients flow through, without keep_path.
    """

    size: Sizes
    apply: Apply
    noise: Noise | None = None
    table: SolverTable | None = None
    controls: Controls | None = None
    fix: ColorFix = "none"
    guided: bool = False
    diffuse: bool = True
    keep_path: bool = False
    gradient_steps: int | None = None

    def sampling(self) -> dict[str, Any]:
        """What :func:`dossr_jax.method.restore_images` takes of it."""
        return {
            "table": self.table,
            "controls": self.controls,
            "noise": self.noise,
            "fix": self.fix,
            "guided": self.guided,
            "keep_path": self.keep_path,
            "gradient_steps": self.gradient_steps,
            "apply": self.apply,
        }


@dataclasses.dataclass(frozen=True)
class Model:
    """A whole model, not read yet: configuration, tensors under our names, notes for the user."""

    config: Any
    tensors: dict[str, Lazy]
    notes: tuple[str, ...] = ()

    def replace(
        self,
        *,
        drop: str | None = None,
        add: Mapping[str, Lazy] | None = None,
        note: str | None = None,
        **fields: Any,
    ) -> Model:
        """Drop the names that start with `drop`, add tensors, and change config `fields`."""
        tensors = {
            name: tensor
            for name, tensor in self.tensors.items()
            if drop is None or not name.startswith(drop)
        }
        tensors.update(add or {})
        notes = self.notes if note is None else (*self.notes, note)
        return Model(dataclasses.replace(self.config, **fields), tensors, notes)


class Part(NamedTuple):
    """One of the files that a system's checkpoint consists of.

    Attributes:
      what: the network in it, and a name by which the file is known.
      prefix: of its names once all parts are together.
      marks: names of which this part of this system has one, and nothing else has.
      rename: brings the names of older files to those of the table.
    """

    what: str
    prefix: str
    marks: tuple[str, ...]
    rename: Callable[[str], str] = str


@dataclasses.dataclass(frozen=True)
class KeyTable:
    """Conversion of a model whose configuration follows from its keys, both ways.

    Attributes:
      rows: a configuration's table, which names every tensor.
      infer: (checkpoint, variant) -> configuration.
      buffers: names of tensors that hold no learning; they are computed, and do not come back.
    """

    rows: Callable[[Any], list[Row]]
    infer: Callable[[State, str | None], ModelConfig]
    buffers: re.Pattern[str] | None = None

    def read(self, state: State, variant: str | None = None) -> Model:
        """The model of a checkpoint.

        Raises:
          UserError: listing every missing, extra, doubled and misshapen key.
        """
        config, buffers = self.infer(state, variant), self.buffers
        if buffers is not None:
            state = state.select(lambda name: not buffers.fullmatch(name))
        return Model(config, to_ours(self.rows(config), state))

    def export(self, model: Model) -> dict[str, Lazy]:
        """A model's tensors under PyTorch's names, bit for bit."""
        return to_torch(self.rows(model.config), State("the model", model.tensors))


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A kind of model: its networks, how an LR image is restored, how its checkpoints are read.

    Attributes:
      name: as in its configuration. title: as people write it.
      config, module: class of the configuration; (config, **LayerOptions) -> the networks.
      geometry: shapes that a configuration's networks take.
      restore: (model, images (b, h, w, 3) in [0, 1], run) -> images (b, H, W, 3). Pure.
      table: the solver of a configuration; None where nothing is sampled.
      settings: fields of Settings and of SamplerConfig that it reads, besides COMMON_SETTINGS.
      guided: whether these settings ask for a second evaluation per step.
      parts: of its PyTorch checkpoint. read: the model of these parts together. export: the
        tensors of a model under PyTorch's names, by the inverse table.
      variants: of models whose checkpoints have the same keys, and patterns of their files' names;
        `read` is given one of them.
      pre_restorer: attribute of a network that can be exchanged and used alone.
      single: whether it is one network, without parts of its own to count.
      keeps_areas: whether results of a configuration's models have the mean colours of areas of the
        input, and its smooth gradients.
      whole_image: whether its networks look at the image as a whole, so that large ones cannot be
        restored in blocks.
      published: configurations of its published models by the names that people give them, where
        they are others than `config`'s defaults under `title`; see :attr:`configurations`.
      licence: what is said where its checkpoints are loaded.
    """

    name: str
    title: str
    config: type[ModelConfig]
    module: Callable[..., nnx.Module]
    geometry: Callable[[Any], Geometry]
    restore: Callable[[Any, Array, Run], Restoration]
    table: Callable[[Any, SamplerConfig], SolverTable] | None = None
    settings: frozenset[str] = frozenset()
    guided: Callable[[Any], bool] = lambda settings: False
    parts: tuple[Part, ...] = ()
    read: Callable[[State, str | None], Model] | None = None
    variants: Mapping[str, str] = dataclasses.field(default_factory=dict)
    export: Callable[[Model], dict[str, Lazy]] | None = None
    pre_restorer: str | None = None
    single: bool = False
    keeps_areas: Callable[[Any], bool] = lambda config: True
    whole_image: bool = False
    published: Mapping[str, ModelConfig] = dataclasses.field(default_factory=dict)
    licence: str | None = None

    def to_pytorch(self, model: Model) -> dict[str, Lazy]:
        """A model's tensors under PyTorch's names.

        Raises:
          UserError: no such checkpoint of the system is published.
        """
        if self.export is None:
            raise UserError(f"{self.title} has no form for PyTorch; write it in our own instead")
        return self.export(model)

    @property
    def samples(self) -> bool:
        """Whether its results are sampled, from noise and by a solver."""
        return self.table is not None

    @property
    def configurations(self) -> Mapping[str, ModelConfig]:
        """Configurations of its published models by name."""
        if not self.parts:  # no checkpoint of it is published
            return {}
        return self.published or {self.title: self.config()}  # pyright: ignore[reportCallIssue]

    def sampler(self, config: Any) -> SamplerConfig:
        """The sampler that a model comes with; what is not sampled needs no colour fix either."""
        return config.sampler if self.samples else SamplerConfig(color_fix="none")

    def evaluations(self, settings: Any) -> int:
        """Evaluations of the network that denoises, per image or per tile of it."""
        if not (self.samples and settings.diffuse):
            return 0
        return settings.sampler.steps * (2 if self.guided(settings) else 1)
