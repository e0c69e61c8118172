"""ResShift's folders: networks, chains of several lengths with their noise, tiles, schedules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from dossr_jax import method
from dossr_jax.crosscheck import runner
from dossr_jax.crosscheck.entries import HOST, Entry, Form, match_forms
from dossr_jax.crosscheck.folder import Archive, Folder
from dossr_jax.crosscheck.report import Kind
from dossr_jax.crosscheck.runner import Results, nchw, nhwc, recording
from dossr_jax.crosscheck.suite import Suite, split_networks
from dossr_jax.crosscheck.windows import shifted_mask
from dossr_jax.diffusion import solver
from dossr_jax.diffusion.process import q_sample, take_levels
from dossr_jax.errors import UserError
from dossr_jax.image import enlarge_as_torch, pad_to, pixels_to_levels
from dossr_jax.models.rrdbnet import UPSCALE
from dossr_jax.models.unet import timestep_embedding
from dossr_jax.models.windows import half_regions, position_index
from dossr_jax.pytorch.infer import Settings
from dossr_jax.pytorch.state import State, to_ours
from dossr_jax.restore import Layout
from dossr_jax.systems import Model
from dossr_jax.systems.resshift import ResShift, predict
from dossr_jax.systems.resshift.config import ResShiftConfig
from dossr_jax.systems.resshift.keys import (
    BUFFERS,
    UNET_PREFIX,
    VQ_PREFIX,
    config_from_yaml,
    resshift_table,
)
from dossr_jax.systems.resshift.networks import VQ
from dossr_jax.systems.resshift.process import make_levels, solver_table

_PROCESS = "diffusion_"  # in front of the names of processes in config.yaml

KINDS = {
    "embedding": Kind(1e-6),
    "network": Kind(7e-6),
    "encoding": Kind(2e-5),
    "decoding": Kind(8e-6),
    "trajectory": Kind(6e-5, ("network", "encoding")),
    "image": Kind(6e-5, ("trajectory", "decoding")),
    "training": Kind(1e-5, ("network", "encoding")),
}

# "v1_s15": a process of config.yaml and its steps; "v1_respace5": fewer of them.
_CHAIN = r"(?P<process>v\w+?)_(?:s|respace)(?P<steps>\d+)"
_RUN = rf"samp_(?:(?P<image>\w+?)_)??{_CHAIN}_"
FORMS = (
    Form("encoding", r"stage_(?P<what>bicubic|z_y|z_hr)", "encoding"),
    Form("encoder_layer", r"stage_vq_(?:down(?P<level>\d+)|encoder_out)", "encoding"),
    Form("index_of_codes", r"stage_vq_idx", "decoding"),
    Form("decoding", r"stage_vq_(?P<what>quant|decoded|decoded_noquant)", "decoding"),
    Form("sincos", r"net_sincos", "embedding"),
    Form("network", r"net_out", "network"),
    Form(
        "network_layer",
        r"net_(?:(?P<layer>emb|conv_in|res_0|swin0_embed|swin0_out|mid|up_0)"
        r"|swin0_block(?P<block>\d+)(?:_shifted)?)",
        "network",
    ),
    Form("mask", r"swin_mask_shifted", "network"),
    Form("index", r"swin_rel_index", "network"),
    Form("training", r"train_(?P<what>z_t|pred|mse)", "training"),
    Form("sampled", rf"{_RUN}(?P<what>z_y|lq_padded)", "encoding"),
    Form("sampled", rf"{_RUN}(?P<what>img|uint8_bgr_hwc)", "image"),
    Form("sampled", rf"{_RUN}(?P<what>t|t_net|x|x0|mean|vq_idx)", "trajectory"),
    Form("one_step", r"sinsr_one_step_img", "image"),
    Form("tiled", rf"tile_{_CHAIN}_img", "image"),
    Form("schedule", rf"sched_{_CHAIN}_(?P<what>\w+)", HOST),
)
_SWIN = "unet.down.0.stages.0.swin"
_LAYERS = {
    "emb": "unet.time",
    "conv_in": "unet.conv_in",
    "res_0": "unet.down.0.stages.0.res",
    "swin0_embed": f"{_SWIN}.proj_in",
    "swin0_out": _SWIN,
    "mid": "unet.mid",
    "up_0": "unet.up.0.stages.0",
}


def _read(settings: Settings, state: State, arrays: Path) -> dict[str, Model]:
    """One model per process; the networks are the same."""
    prefixes = {"unet": UNET_PREFIX, "autoencoder": VQ_PREFIX}
    both = {
        prefixes[name] + key: tensor
        for name, part in split_networks(state, settings, prefixes).items()
        for key, tensor in part.tensors.items()
        if not BUFFERS.fullmatch(key)
    }
    models = {}
    for name in settings.tree:
        if name.startswith(_PROCESS):
            config = config_from_yaml(settings, name)
            tensors = to_ours(resshift_table(config), State(state.source, both))
            models[name.removeprefix(_PROCESS)] = Model(config, tensors)
    return models


class Chain(NamedTuple):
    """A process of the folder, how many of its steps are kept, and which."""

    process: str
    steps: int
    spacing: Literal["leading", "trailing"] = "leading"

    @classmethod
    def of(cls, entry: Entry) -> Chain:
        """The chain that an entry's name speaks of."""
        return cls(entry.match["process"], int(entry.match["steps"]))

    def table(self, folder: Folder) -> solver.SolverTable:
        """Its solver, float64."""
        config = folder.models[self.process].config
        config = dataclasses.replace(
            config, process=dataclasses.replace(config.process, spacing=self.spacing)
        )
        return solver_table(config, dataclasses.replace(config.sampler, steps=self.steps))


class Runner(runner.Runner):
    """Chains are one program per size of the canvas, their tables padded to the longest."""

    def __init__(self, folder: Folder, archive: Archive, dtype: str):
        super().__init__(folder, archive, dtype)
        first, *_ = folder.models
        self.config: ResShiftConfig = folder.models[first].config
        self.model: ResShift = folder.build(first, self.dtype)
        steps = {name: model.config.process.steps for name, model in folder.models.items()}
        self.rows = max(steps.values())
        # The process of the training pass and of SinSR's single step.
        self.longest = max(steps, key=steps.__getitem__)
        vq = self.model.vq
        resamples = [f"encoder.down.{i}.resample" for i in range(len(vq.encoder.down))]
        blocks = [f"{_SWIN}.blocks.{i}" for i in range(self.config.unet.swin_depth)]
        self.enlarge = self.jit(lambda lr: enlarge_as_torch(2 * lr - 1, UPSCALE))
        self.encode = self.program(vq, recording(VQ.encode, [*resamples, "encoder.conv_out"]))
        self.decode = self.program(vq, _decode)
        self.nearest_code = self.program(vq, VQ.nearest_code)
        self.predict = self.program(self.model, recording(predict, [*_LAYERS.values(), *blocks]))
        self.encoded = functools.cache(self._encoded)
        self.decoded = functools.cache(self._decoded)
        self.predicted = functools.cache(self._predicted)
        self.training_pass = functools.cache(self._training_pass)
        self.restored = functools.cache(self._restored)

    # --- networks -----------------------------------------------------------------------------

    def _encoded(self) -> tuple[Array, Array, dict[str, Array]]:
        """Of the LR image: enlarged, its latent, outputs of the encoder's layers."""
        enlarged = self.enlarge(self.image("in_lr"))
        return enlarged, *self.encode(enlarged)

    def _encoding(self, entry: Entry) -> np.ndarray:
        if entry.match["what"] == "z_hr":
            z, _ = self.encode(2 * self.image("in_hr") - 1)
            return nchw(z)
        enlarged, z_y, _ = self.encoded()
        return nchw(enlarged if entry.match["what"] == "bicubic" else z_y)

    def _encoder_layer(self, entry: Entry) -> np.ndarray | None:
        *_, layers = self.encoded()
        level = entry.match["level"]
        path = f"encoder.down.{level}.resample" if level else "encoder.conv_out"
        return self.layer(entry, layers, path)

    def _decoded(self) -> dict[str, Array]:
        return self.decode(self.image("in_vq_z"))

    def _index_of_codes(self, entry: Entry) -> Array:
        return self.decoded()["idx"]

    def _decoding(self, entry: Entry) -> np.ndarray:
        return nchw(self.decoded()[entry.match["what"]])

    def _predicted(self) -> tuple[Array, dict[str, Array]]:
        """The network's output for stored inputs, and outputs of its layers."""
        x, t, lq = self.image("in_net_x"), self.times("in_net_t"), self.image("in_net_lq")
        # They are scaled already, which a deviation of 0 leaves as it is.
        return self.predict(x, t, jnp.zeros((len(x), 1, 1, 1), self.dtype), lq)

    def _sincos(self, entry: Entry) -> Array:
        return timestep_embedding(
            self.times("in_net_t"), self.config.unet.model_channels, self.dtype
        )

    def _network(self, entry: Entry) -> np.ndarray:
        output, _ = self.predicted()
        return nchw(output)

    def _network_layer(self, entry: Entry) -> np.ndarray | None:
        _, layers = self.predicted()
        block = entry.match["block"]
        path = f"{_SWIN}.blocks.{block}" if block else _LAYERS[entry.match["layer"]]
        return self.layer(entry, layers, path)

    def _mask(self, entry: Entry) -> np.ndarray:
        return shifted_mask(self.archive.arrays[entry.name], half_regions)

    def _index(self, entry: Entry) -> np.ndarray:
        return position_index(self.config.unet.window)

    def _training_pass(self) -> dict[str, np.ndarray]:
        """Noisy latents, prediction and loss of the stored images and of the same mirrored."""
        lr, hr = (
            jnp.concatenate([image, image[:, :, ::-1]])
            for image in (self.image("in_lr"), self.image("in_hr"))
        )
        # One by one: a program for one image is there already.
        z_y, x0 = (
            jnp.concatenate([self.encode(image[None])[0] for image in images])
            for images in (self.enlarge(lr), 2 * hr - 1)
        )
        t = self.times("train_t")
        levels = make_levels(self.folder.models[self.longest].config.process)
        alpha, sigma, eta = (take_levels(jnp.asarray(a, self.dtype), t) for a in levels)
        z_t = q_sample(x0, z_y, alpha, sigma, eta, self.image("train_noise"))
        # Filled up to as many as there are of the stored inputs, for the same reason.
        count = max(len(t), len(self.archive["in_net_t"]))
        inputs = z_t, t, sigma, 2 * lr - 1
        output, _ = self.predict(*(jnp.resize(a, (count, *a.shape[1:])) for a in inputs))
        pred = output[: len(t)]
        mse = jnp.mean((pred - x0) ** 2, axis=(1, 2, 3))
        return {"z_t": nchw(z_t), "pred": nchw(pred), "mse": np.asarray(mse)}

    def _training(self, entry: Entry) -> np.ndarray:
        return self.training_pass()[entry.match["what"]]

    # --- chains -------------------------------------------------------------------------------

    def sample(self, lr: np.ndarray, noise: np.ndarray, chain: Chain) -> method.Restoration:
        """What the program of `dossr-restore` makes of LR images.

        Args:
          lr: (b, h, w, 3) in [0, 1]; they are continued by reflection to whole windows.
          noise: (draws, b, c, h, w) for the continued ones, first that of the start.

        Raises:
          UserError: the chain needs more noise.
        """
        if len(noise) <= chain.steps:
            raise UserError(
                f"{self.archive.where}: {len(noise)} draws of noise are stored for a chain of "
                f"{chain.steps} steps, which needs one more than steps"
            )
        _, *sides, _ = lr.shape
        multiple = self.config.unet.multiple
        height, width = (side + -side % multiple for side in sides)
        canvases = np.stack([pad_to(image, height, width) for image in lr])
        draws = jnp.asarray(np.moveaxis(noise, 2, -1), self.dtype)
        steps = jnp.resize(draws[1:], (self.rows, *draws.shape[1:]))
        table = solver.cast(chain.table(self.folder), self.dtype)
        return self.restore(
            self.model,
            Layout(color_fix="none", keep=True, devices=1),
            jnp.asarray(canvases, self.dtype),
            (sides[0], sides[1]),
            # There is no posterior to draw from.
            noise=method.StoredNoise(draws[0], draws[0], steps),
            table=solver.pad_table(table, self.rows),
        )

    def _restored(self, lr: str, noise: str, chain: Chain) -> method.Restoration:
        return self.sample(nhwc(self.archive[lr]), self.archive[noise], chain)

    def _sampled(self, entry: Entry) -> Any:
        match, what, chain = entry.match, entry.match["what"], Chain.of(entry)
        if chain.process not in self.folder.models:
            return None
        lr = "_".join(filter(None, ("in_lr", match["image"])))
        restored = self.restored(lr, f"{entry.name[: match.start('what')]}noise", chain)
        assert restored.condition and restored.path and restored.latents is not None
        x, x0 = (a[: chain.steps] for a in (restored.path.x, restored.path.x0))
        match what:
            case "t":
                return np.arange(chain.steps)[::-1]
            case "t_net":
                return chain.table(self.folder).rows.t
            case "z_y":
                return nchw(restored.condition.x_lr)
            case "lq_padded":
                return nchw(restored.condition.hint)
            case "x":
                return np.moveaxis(np.concatenate([x, restored.latents[None]]), -1, 2)
            case "x0":
                return np.moveaxis(x0, -1, 2)
            case "mean":
                of_x, of_x0, _ = _posterior(chain.table(self.folder))
                of_x, of_x0 = (a[:, None, None, None, None] for a in (of_x, of_x0))
                return np.moveaxis(of_x * np.asarray(x) + of_x0 * np.asarray(x0), -1, 2)
            case "vq_idx":
                return self.nearest_code(restored.latents)
        height, width = (UPSCALE * side for side in self.archive[lr].shape[2:])
        if what == "img":
            return _published_image(restored)[:, :, :height, :width]
        return pixels_to_levels(restored.result)[0, :height, :width, ::-1]

    def _one_step(self, entry: Entry) -> np.ndarray:
        """SinSR's step: the last of the chain's, from the chain's first draw."""
        noise = f"samp_{self.longest}_s{self.rows}_noise"
        chain = Chain(self.longest, 1, "trailing")
        return _published_image(self.restored("in_lr", noise, chain))

    def _tiled(self, entry: Entry) -> np.ndarray | None:
        """Stored windows, each sampled alone; where they overlap the mean counts.

        Our own tiles share their noise and are blended inside every step, with other weights.
        """
        chain, name = Chain.of(entry), entry.name.removesuffix("img")
        if chain.process not in self.folder.models:
            return None
        lr, noise = nhwc(self.archive["in_lr_tile"]), self.archive[f"{name}noise"]
        total = np.zeros((len(lr), 3, *(UPSCALE * side for side in lr.shape[1:3])))
        count = np.zeros(total.shape[2:])
        for window, draws in zip(self.archive[f"{name}windows_h0h1w0w1"], noise, strict=True):
            top, bottom, left, right = window // UPSCALE
            restored = self.sample(lr[:, top:bottom, left:right], draws[:, None], chain)
            top, bottom, left, right = window
            image = _published_image(restored)[:, :, : bottom - top, : right - left]
            total[:, :, top:bottom, left:right] += image
            count[top:bottom, left:right] += 1
        return total / count


def _decode(vq: VQ, z: Array) -> dict[str, Array]:
    """Nearest codes, and decodings of a latent with and without them."""
    index = vq.nearest_code(z)
    return {
        "idx": index,
        "quant": vq.codebook[...][index],
        "decoded": vq.decode(z),
        "decoded_noquant": vq.decoder(z),
    }


def _published_image(restored: method.Restoration) -> np.ndarray:
    """Whole canvases as they are stored, (b, 3, h, w) in [-1, 1]."""
    return np.clip(2 * nchw(restored.result) - 1, -1, 1)


def _posterior(table: solver.SolverTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a chain's step makes of x and of x0, and the deviation of its noise, in falling t."""
    rows = table.rows
    m_next = np.append(rows.m[1:], table.ends.m_out)
    return rows.c_y * m_next / rows.m, rows.c_x0[:, 0] * m_next, rows.c_noise * m_next


def _host(folder: Folder, archive: Archive, entries: Sequence[Entry]) -> Results:
    results = {}
    for entry in entries:
        chain, what = Chain.of(entry), entry.match["what"]
        if chain.process in folder.models:
            schedule = _schedule(chain.table(folder))
            if what in schedule:
                results[entry.name] = schedule[what][::-1]
    return results


def _schedule(table: solver.SolverTable) -> dict[str, np.ndarray]:
    """What the public code tabulates for a chain, by its names, in falling t."""
    rows = table.rows
    following = np.append(rows.eta[1:], 0.0)
    of_x, of_x0, deviation = _posterior(table)
    variance = deviation**2
    # At t = 0 there is no noise; its logarithm is that of the step before.
    clipped = np.append(variance[:-1], variance[-2])
    return {
        "etas": rows.eta,
        "sqrt_etas": np.sqrt(rows.eta),
        "etas_prev": following,
        "alpha": rows.eta - following,
        "posterior_variance": variance,
        "posterior_variance_clipped": clipped,
        "posterior_log_variance_clipped": np.log(clipped),
        "posterior_mean_coef1": of_x,
        "posterior_mean_coef2": of_x0,
        "weight_loss_mse": of_x0**2 / (2 * clipped),
        "timestep_map": rows.t,
        "input_std": np.sqrt(rows.sigma**2 + 1),
    }


SUITE = Suite(
    recognise=lambda settings: any(name.startswith(_PROCESS) for name in settings.tree),
    read=_read,
    find=functools.partial(match_forms, FORMS),
    kinds=KINDS,
    runner=Runner,
    host=_host,
)
