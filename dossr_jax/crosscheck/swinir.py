"""SwinIR's folders: networks of several configurations, each on images of its own.

Of the way in which DiffBIR feeds its network (arrays `stage1_*`) the resizing alone is compared:
its padding and tiles are not ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from dossr_jax.crosscheck import runner
from dossr_jax.crosscheck.entries import Entry, Form, match_forms
from dossr_jax.crosscheck.folder import Archive, Folder
from dossr_jax.crosscheck.report import Kind
from dossr_jax.crosscheck.runner import nchw, nhwc, recording
from dossr_jax.crosscheck.suite import Suite, split_networks
from dossr_jax.crosscheck.windows import shifted_mask
from dossr_jax.image import pad_to
from dossr_jax.models.rrdbnet import enlarge
from dossr_jax.models.windows import band_regions, position_index
from dossr_jax.pytorch.infer import Settings
from dossr_jax.pytorch.state import State, to_ours
from dossr_jax.systems import Model
from dossr_jax.systems.swinir.keys import BUFFERS, config_from_yaml, swinir_table
from dossr_jax.systems.swinir.networks import SwinIR

KINDS = {"network": Kind(3e-6), "resizing": Kind(6e-6)}

# "x4_rect": a network and an image.
_RUN = r"(?P<run>\w+?)(?P<mirror>_mirror)?"
FORMS = (
    Form("mask", r"mask_shifted", "network"),
    Form("index", r"rel_index", "network"),
    Form("reflected", r"padded_(?P<image>\w+)", "network"),
    Form("mirrored", rf"{_RUN}_padded", "network"),
    Form(
        "resized",
        r"stage1_resize_short(?P<short>\d+)(?:_of_(?P<sides>\d+x\d+))?",
        "resizing",
    ),
    Form("output", rf"{_RUN}_out", "network"),
    Form(
        "layer_output",
        rf"{_RUN}_(?P<layer>conv_first|patch_embed|norm|after_body|before_upsample"
        r"|block(?P<block>\d+)(?:_shifted)?|rstb(?P<group>\d+)|up(?P<up>\d))",
        "network",
    ),
)
_LAYERS = {
    "conv_first": "conv_first",
    "patch_embed": "norm_in",
    "norm": "norm_out",
    "after_body": "conv_body",
    "before_upsample": "conv_head",
}


def _networks(settings: Settings) -> list[str]:
    """The networks' names: mappings with what SwinIR alone has."""
    return [
        name
        for name, node in settings.tree.items()
        if isinstance(node, Mapping) and {"window_size", "upsampler"} <= node.keys()
    ]


def _read(settings: Settings, state: State, arrays: Path) -> dict[str, Model]:
    models = {}
    for name, part in split_networks(state, settings, _networks(settings)).items():
        config = config_from_yaml(settings.at(name))
        learned = part.select(lambda key: not BUFFERS.fullmatch(key))
        models[name] = Model(config, to_ours(swinir_table(config), learned))
    return models


class _Run(NamedTuple):
    """A network and a stored image (b, c, h, w), and whether that is mirrored or reflected."""

    network: str
    image: str
    mirror: bool


class Runner(runner.Runner):
    """Every network is one program per size of its input."""

    def __init__(self, folder: Folder, archive: Archive, dtype: str):
        super().__init__(folder, archive, dtype)
        self.network = functools.cache(self._network)
        self.ran = functools.cache(self._ran)
        self.enlarge = self.jit(enlarge, static_argnums=1)

    def _network(self, name: str) -> Any:
        """images -> (output, outputs of its layers)."""
        network: SwinIR = self.folder.build(name, self.dtype)
        layers = [*_LAYERS.values()]
        layers += [f"groups.{i}" for i in range(len(network.groups))]
        layers += [f"groups.0.blocks.{i}" for i in range(len(network.groups[0].blocks))]
        layers += [f"ups.{i}" for i in range(len(network.ups))]
        return self.program(network, recording(SwinIR.__call__, layers))

    def run_of(self, entry: Entry) -> _Run | None:
        """What an entry's name speaks of; None where that is no network of the folder."""
        run, mirror = entry.match["run"], entry.match["mirror"] or ""
        names = [name for name in self.folder.models if run.startswith(f"{name}_")]
        if not names:
            return None
        network = max(names, key=len)
        image = f"in_{run.removeprefix(network)[1:]}"
        # An image may be there once more in other sides; the output's tell which one it was.
        arrays, upscale = self.archive.arrays, self.folder.models[network].config.upscale
        output = arrays.get(f"{run}{mirror}_out")
        for name in arrays:
            if output is not None and re.fullmatch(rf"{re.escape(image)}_\d+x\d+", name):
                if tuple(upscale * side for side in arrays[name].shape[2:]) == output.shape[2:]:
                    image = name
        return _Run(network, image, bool(mirror))

    def padded(self, run: _Run) -> np.ndarray:
        """The input of a network, (b, h, w, c): its image filled up to whole windows.

        Mirroring, as the public script has it, repeats the edge and always adds a window's part or
        all of one.
        """
        images = nhwc(self.archive[run.image])
        multiple = self.folder.models[run.network].config.multiple
        _, *sides, _ = images.shape
        if run.mirror:
            pads = [(0, multiple - side % multiple) for side in sides]
            return np.pad(images, ((0, 0), *pads, (0, 0)), mode="symmetric")
        height, width = (side + -side % multiple for side in sides)
        return np.stack([pad_to(image, height, width) for image in images])

    def _ran(self, run: _Run) -> tuple[Array, dict[str, Array]]:
        return self.network(run.network)(self.padded(run).astype(self.dtype))

    def _mask(self, entry: Entry) -> np.ndarray:
        return shifted_mask(self.archive.arrays[entry.name], band_regions)

    def _index(self, entry: Entry) -> np.ndarray:
        first, *_ = self.folder.models.values()
        return position_index(first.config.window)

    def _reflected(self, entry: Entry) -> np.ndarray:
        first, *_ = self.folder.models
        return nchw(self.padded(_Run(first, f"in_{entry.match['image']}", mirror=False)))

    def _mirrored(self, entry: Entry) -> np.ndarray | None:
        run = self.run_of(entry)
        return nchw(self.padded(run)) if run and run.mirror else None

    def _resized(self, entry: Entry) -> np.ndarray:
        short, sides = int(entry.match["short"]), entry.match["sides"]
        image = self.image(f"in_rect_{sides}" if sides else "in_rect")
        _, height, width, _ = image.shape
        size = short * height // min(height, width), short * width // min(height, width)
        return nchw(self.enlarge(image, size))

    def _output(self, entry: Entry) -> np.ndarray | None:
        run = self.run_of(entry)
        if run is None:
            return None
        output, _ = self.ran(run)
        upscale = self.folder.models[run.network].config.upscale
        height, width = (upscale * side for side in self.archive[run.image].shape[2:])
        return nchw(output)[:, :, :height, :width]

    def _layer_output(self, entry: Entry) -> np.ndarray | None:
        match, run = entry.match, self.run_of(entry)
        if run is None:
            return None
        _, layers = self.ran(run)
        if match["block"]:
            path = f"groups.0.blocks.{match['block']}"
        elif match["group"]:
            path = f"groups.{match['group']}"
        elif match["up"]:
            path = f"ups.{int(match['up']) - 1}"
        else:
            path = _LAYERS[match["layer"]]
        return self.layer(entry, layers, path)


SUITE = Suite(
    recognise=lambda settings: bool(_networks(settings)),
    read=_read,
    find=functools.partial(match_forms, FORMS),
    kinds=KINDS,
    runner=Runner,
)
