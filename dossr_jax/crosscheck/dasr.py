"""DASR's folders: a predictor, its mixed kernels, and generators of one scale or several."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dossr_jax.crosscheck import runner
from dossr_jax.crosscheck.entries import Entry, Form, match_forms
from dossr_jax.crosscheck.folder import Archive, Folder
from dossr_jax.crosscheck.report import Kind
from dossr_jax.crosscheck.runner import nchw, recording
from dossr_jax.crosscheck.suite import Suite, split_networks
from dossr_jax.image import pixels_to_levels
from dossr_jax.pytorch.infer import Settings
from dossr_jax.pytorch.state import State, to_ours
from dossr_jax.restore import Layout
from dossr_jax.systems import Model
from dossr_jax.systems.dasr.keys import (
    GENERATOR_PREFIX,
    PREDICTOR_PREFIX,
    config_from_yaml,
    dasr_table,
)
from dossr_jax.systems.dasr.networks import DASR, Generator, Predictor, enlarge_bilinearly

# In config.yaml: the predictor, the generator, and generators of other scales ("network_g_x2").
_PREDICTOR, _GENERATOR = "network_p", "network_g"

KINDS = {
    "bilinear": Kind(4e-7),
    "predictor": Kind(6e-6),
    "generator": Kind(1e-5, ("predictor",)),
}

_IMAGE = r"(?P<image>\w+?)"
FORMS = (
    Form("kernel", r"mixed_body(?P<block>\d+)_conv(?P<n>[12])_(?P<what>weight|bias)", "predictor"),
    Form(
        "predictor_layer", rf"{_IMAGE}_p_(?:conv(?P<conv>\d+)(?:_stride\d)?|hidden\d+)", "predictor"
    ),
    Form("predicted", rf"{_IMAGE}_(?P<what>params|weights)", "predictor"),
    Form("bilinear", rf"{_IMAGE}_bilinear", "bilinear"),
    Form(
        "generator_layer",
        rf"{_IMAGE}_g_(?P<layer>conv_first|conv_hr|body(?P<block>\d*)|upconv(?P<up>\d))",
        "generator",
    ),
    Form("output", rf"{_IMAGE}_out(?:_x(?P<scale>\d))?", "generator"),
    Form(
        "output_with",
        rf"{_IMAGE}_out_(?:expert(?P<expert>\d+)|mean|weights_of_image(?P<source>\d+))",
        "generator",
    ),
    Form("levels", rf"{_IMAGE}_uint8_rgb_hwc", "generator"),
)


def _read(settings: Settings, state: State, arrays: Path) -> dict[str, Model]:
    generators = [name for name in settings.tree if name.startswith(_GENERATOR)]
    networks = split_networks(state, settings, [_PREDICTOR, *generators])
    models = {}
    for name in generators:
        config = config_from_yaml(settings, name)
        parts = {GENERATOR_PREFIX: networks[name], PREDICTOR_PREFIX: networks[_PREDICTOR]}
        both = {
            prefix + key: tensor
            for prefix, part in parts.items()
            for key, tensor in part.tensors.items()
        }
        models[name] = Model(config, to_ours(dasr_table(config), State(state.source, both)))
    return models


class Runner(runner.Runner):
    """Predictor and generator are programs of their own: the generator takes any weights."""

    def __init__(self, folder: Folder, archive: Archive, dtype: str):
        super().__init__(folder, archive, dtype)
        self.model: DASR = folder.build(_GENERATOR, self.dtype)
        paths = [f"convs.{i}" for i in range(len(self.model.predictor.convs))]
        predict = self.program(
            self.model.predictor, recording(Predictor.__call__, [*paths, "hidden"])
        )
        self.predicted = functools.cache(lambda image: predict(self.image(f"in_{image}")))
        self.generator = functools.cache(self._generator)
        self.generated = functools.cache(self._generated)
        self.enlarge = self.jit(enlarge_bilinearly, static_argnums=1)

    def weights(self, image: str) -> Array:
        """Our mixing weights of stored images."""
        (_, weights), _ = self.predicted(image)
        return weights

    def _generator(self, name: str) -> Any:
        """(images, weights) -> (output, outputs of its layers), by one of the generators."""
        generator = (
            self.model.generator
            if name == _GENERATOR
            else self.folder.build(name, self.dtype).generator
        )
        layers = ["conv_first", "conv_hr"]
        layers += [f"body.{i}" for i in range(len(generator.body))]
        layers += [f"upconvs.{i}" for i in range(len(generator.upconvs))]
        return self.program(generator, recording(Generator.__call__, layers))

    def _generated(self, image: str, name: str = _GENERATOR) -> tuple[Array, dict[str, Array]]:
        return self.generator(name)(self.image(f"in_{image}"), self.weights(image))

    def _kernel(self, entry: Entry) -> Array:
        block = self.model.generator.body[int(entry.match["block"])]
        conv = block.conv1 if entry.match["n"] == "1" else block.conv2
        kernel, bias = conv.mix(self.weights("lr"))
        # Stored as (b, out, in, h, w).
        return bias if entry.match["what"] == "bias" else jnp.transpose(kernel, (0, 4, 3, 1, 2))

    def _predictor_layer(self, entry: Entry) -> np.ndarray | None:
        _, layers = self.predicted(entry.match["image"])
        conv = entry.match["conv"]
        return self.layer(entry, layers, f"convs.{conv}" if conv else "hidden")

    def _predicted(self, entry: Entry) -> Array:
        (params, weights), _ = self.predicted(entry.match["image"])
        return params if entry.match["what"] == "params" else weights

    def _bilinear(self, entry: Entry) -> np.ndarray:
        image = self.image(f"in_{entry.match['image']}")
        base = nchw(self.enlarge(image, self.model.config.upscale))
        return base[: len(self.archive.arrays[entry.name])]

    def _generator_layer(self, entry: Entry) -> np.ndarray | None:
        _, layers = self.generated(entry.match["image"])
        match = entry.match
        if match["up"]:
            path = f"upconvs.{int(match['up']) - 1}"
        elif match["block"] is not None:
            last = len(self.model.generator.body) - 1
            path = f"body.{match['block'] or last}"
        else:
            path = match["layer"]
        return self.layer(entry, layers, path)

    def _output(self, entry: Entry) -> np.ndarray | None:
        scale = entry.match["scale"]
        name = f"{_GENERATOR}_x{scale}" if scale else _GENERATOR
        if name not in self.folder.models:
            return None
        output, _ = self.generated(entry.match["image"], name)
        return nchw(output)

    def _output_with(self, entry: Entry) -> np.ndarray:
        """The output of other weights, in place of those of the image itself."""
        match, own = entry.match, self.weights(entry.match["image"])
        if match["expert"]:
            weights = jax.nn.one_hot(jnp.full(len(own), int(match["expert"])), own.shape[1])
        elif match["source"]:
            weights = jnp.broadcast_to(own[int(match["source"])], own.shape)
        else:
            weights = jnp.full(own.shape, 1 / own.shape[1])
        image = self.image(f"in_{match['image']}")
        output, _ = self.generator(_GENERATOR)(image, weights.astype(self.dtype))
        return nchw(output)[: len(self.archive.arrays[entry.name])]

    def _levels(self, entry: Entry) -> Array:
        """What is saved, by the program of `dossr-restore`."""
        image = self.image(f"in_{entry.match['image']}")
        restored = self.restore(self.model, Layout(color_fix="none", keep=True, devices=1), image)
        return pixels_to_levels(restored.result)


SUITE = Suite(
    recognise=lambda settings: _PREDICTOR in settings.tree,
    read=_read,
    find=functools.partial(match_forms, FORMS),
    kinds=KINDS,
    runner=Runner,
)
