"""Our side of the network entries, from the production code, under the names of stored arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dossr_jax import method
from dossr_jax.config import SamplerConfig
from dossr_jax.crosscheck import runner
from dossr_jax.crosscheck.dossr import programs
from dossr_jax.crosscheck.dossr.entries import find_entries
from dossr_jax.crosscheck.dossr.replay import SamplerRun, StoredImage, arguments, run_of
from dossr_jax.crosscheck.entries import Entry
from dossr_jax.crosscheck.folder import Archive, Folder
from dossr_jax.crosscheck.runner import nchw
from dossr_jax.diffusion import process, schedule, solver
from dossr_jax.image import color_fix, pixels_to_levels
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.unet import encoder_channels, timestep_embedding
from dossr_jax.pytorch.state import State, to_torch
from dossr_jax.pytorch.tables import CONTROL_PREFIX, control_table, with_prefix
from dossr_jax.restore import Layout
from dossr_jax.weights import lazy


class Runner(runner.Runner):
    """Results that several entries share are computed once."""

    def __init__(self, folder: Folder, archive: Archive, dtype: str):
        super().__init__(folder, archive, dtype)
        ((name, model),) = folder.models.items()
        self.config = model.config
        self.table = schedule.make_schedule(self.config.process)
        self.graphdef, self.state = nnx.split(folder.build(name, self.dtype))
        self.longest: dict[str, int] = {}
        for entry in find_entries(archive.arrays):
            if entry.form in ("trajectory", "image", "process"):
                prefix, steps = entry.match["prefix"], int(entry.match["steps"])
                self.longest[prefix] = max(steps, self.longest.get(prefix, 0))
        self.encoded = functools.cache(self._encoded)
        self.restored = functools.cache(self._restore)
        self.solved = functools.cache(self._solved)
        self.network_parts = functools.cache(self._network_parts)
        self.training_pass = functools.cache(self._training_pass)
        self.training_step = functools.cache(self._training_step)

    @property
    def model(self) -> DoSSR:
        """The model, a new module of the same arrays at every call."""
        return nnx.merge(self.graphdef, self.state)

    # --- programs -----------------------------------------------------------------------------

    @functools.cached_property
    def _programs(self) -> dict[str, Callable[..., Any]]:
        functions = {
            "pre": lambda model, lr: (model.rrdb(lr), model.pre_restore(lr)),
            "encode": programs.encode,
            "decode": DoSSR.decode,
            "network": programs.network,
            "predict": programs.predict,
            "gradients": programs.gradients,
        }
        model = self.model
        return {name: self.program(model, fn) for name, fn in functions.items()} | {
            "color_fix": self.jit(color_fix, static_argnums=0)
        }

    def call(self, program: str, *args: Any) -> Any:
        """Run a program of the model."""
        return self._programs[program](*args)

    def predict(self, x: Array, t: Array, context: Array, hint: Array) -> Array:
        """Predictions of the noise.

        Few samples at the resolution of the stored network inputs are filled up to their number:
        a program for those is there already.
        """
        stored = self.archive.arrays.get("eps_x_t")
        count = len(x)
        if stored is None or stored.shape[2:] != x.shape[1:3] or len(stored) < count:
            return self.call("predict", x, t, context, hint, self._strengths(1))
        x, t, context, hint = (
            jnp.resize(a, (len(stored), *a.shape[1:])) for a in (x, t, context, hint)
        )
        return self.call("network", x, t, context, hint, self._strengths(1))["eps"][:count]

    def fix(self, kind: str, image: Array, reference: Array) -> Array:
        """Colour fix of whole canvases."""
        size = np.broadcast_to(np.asarray(image.shape[1:3], np.int32), (len(image), 2))
        return self.call("color_fix", kind, image, reference, size)

    # --- entries of one image ------------------------------------------------------------------

    def _encoded(self, prefix: str, source: str) -> dict[str, Array]:
        """All there is before the solver; `source` as in SamplerRun."""
        if source == "own":
            raw, pre = self.call("pre", self.image(f"{prefix}lr"))
        else:
            raw = pre = self.image(f"{prefix}stage_pre")
        noise = self.image(f"{prefix}noise_posterior")
        return {"pre_raw": raw, "pre": pre, **self.call("encode", pre, noise)}

    def _stage(self, entry: Entry) -> np.ndarray:
        what = entry.match["what"]
        found = self.encoded(entry.match["prefix"], "own")
        if what in found:
            return nchw(found[what])
        value = self.call("decode", found["x0_hat"])
        if what == "decoded":
            return nchw(2 * value - 1)  # stored in the VAE's range
        return nchw(self.fix(what, value, found["pre"]))

    # --- the network --------------------------------------------------------------------------

    def _network_parts(self, factor: float = 1, *, only_mid: bool = False) -> dict[str, Any]:
        """The networks' insides and predictions of the stored batch."""
        return self.call(
            "network",
            self.image("eps_x_t"),
            self.times("eps_t"),
            self.given("eps_context"),
            self.image("eps_hint"),
            self._strengths(factor, only_mid=only_mid),
        )

    def _embedding(self, entry: Entry) -> Array:
        return timestep_embedding(self.times("eps_t"), int(entry.match["dim"]), self.dtype)

    def _time(self, entry: Entry) -> Array:
        return self.network_parts()["temb"][entry.match["encoder"]]

    def _network(self, entry: Entry) -> np.ndarray | None:
        match, what = entry.match, entry.match["what"]
        if what == "control_norms":
            return np.stack([_norms(residual) for residual in self.network_parts()["control"]])
        if match["residual"] or match["skip"]:
            group = self.network_parts()["control" if match["residual"] else "skips"]
            index = int(match["residual"] or match["skip"])
            return nchw(group[index]) if index < len(group) else None
        if what in ("unet_mid", "eps_nocontrol"):
            return nchw(self.network_parts()[what])
        digits = match["strength"] or "1"  # "05" reads 0.5
        strength = float(f"{digits[0]}.{digits[1:] or 0}")
        return nchw(self.network_parts(strength, only_mid=what == "eps_onlymid")["eps"])

    def _strengths(self, factor: float, *, only_mid: bool = False) -> Array:
        """One factor per residual; for `only_mid` all but the last, the middle's, are 0."""
        factors = np.full(len(encoder_channels(self.config.unet)) + 1, factor)
        if only_mid:
            factors[:-1] = 0
        return jax.device_put(factors.astype(self.dtype))

    def _network_at(self, entry: Entry) -> np.ndarray:
        prefix = entry.match["prefix"]
        x, hint = self.image(f"{prefix}noise_init"), self.image(f"{prefix}stage_c_latent")
        t = jnp.full(len(x), int(entry.match["t"]), jnp.int32)
        return nchw(self.predict(x, t, self.given("context"), hint))

    # --- trajectories -------------------------------------------------------------------------

    def _restore(self, run: SamplerRun) -> method.Restoration:
        """What the program of `dossr-restore` makes of the LR image, with the stored noise."""
        model = self.model
        if run.source == "stored" or run.prefix:  # compiling it at one resolution is enough
            pre = self.encoded(run.prefix, run.source)["pre"]
            model.rrdb = cast(Any, StoredImage)(pre)
        layout = Layout(color_fix="wavelet", guided=run.cfg is not None, keep=True, devices=1)
        # Padded to the longest run, so that one program serves all of them.
        options = arguments(self, run, self.table, rows=self.longest[run.prefix])
        return self.restore(model, layout, self.image(f"{run.prefix}lr"), **options)

    def _solved(self, run: SamplerRun) -> dict[str, Any]:
        """A run's t, and x, eps, pred_x0 of every step as stored (NCHW)."""
        restored = self.restored(run)
        assert restored.path is not None
        x, x0 = (
            np.asarray(a)[: run.steps, 0].astype(np.float64)
            for a in (restored.path.x, restored.path.x0)
        )
        # The loop knows x0 only; eps follows on the host by the coefficients it was run with.
        table = solver.make_table(self.table, SamplerConfig(steps=run.steps, order=run.order)).rows
        alpha, sigma = (
            a.astype(self.dtype).astype(np.float64)[:, None, None, None]
            for a in (table.alpha, table.sigma)
        )
        return {
            "t": table.t,
            "x": nchw(np.concatenate([x, np.asarray(restored.latents)])),
            "eps": nchw((x - alpha * x0) / sigma),
            "pred_x0": nchw(x0),
        }

    def _image_of(self, run: SamplerRun, fix: str) -> Array:
        """The run's image in [0, 1], not clipped, with its colours fixed."""
        restored = self.restored(run)
        if fix == "wavelet":
            return restored.result
        return self.fix(fix, restored.decoded, restored.pre_restored)

    def _image(self, entry: Entry) -> np.ndarray:
        fix = entry.match["img_fix"] or entry.match["fix"] or "none"
        return nchw(self._image_of(run_of(entry.match), fix))

    def _trajectory(self, entry: Entry) -> np.ndarray:
        run, what = run_of(entry.match), entry.match["what"]
        if what != "same_as":
            return self.solved(run)[what]
        # The array holds the name of an identical run; ours have to be identical too.
        named = self.archive[entry.name]
        (other,) = find_entries([str(named).rstrip("_") + "_x"])
        x, x_other = (self.solved(r)["x"] for r in (run, run_of(other.match)))
        return named if (x == x_other).all() else np.array("another run")

    def _process(self, entry: Entry) -> Array:
        """The 8-bit image of the whole pipeline, from the LR image on."""
        run = run_of(entry.match)._replace(source="own")
        return pixels_to_levels(self._image_of(run, entry.match["fix"])[0], truncate=True)

    def _restored(self, entry: Entry) -> np.ndarray | None:
        """The image of the LR latent itself: the whole program at fidelity 1 returns it."""
        prefix, what = entry.match["prefix"], entry.match["what"]
        if prefix not in self.longest:
            return None
        run = SamplerRun(prefix, 1, 1, source="own", fidelity=1.0)
        value = self._image_of(run, "none" if what == "decoded" else what)
        return nchw(2 * value - 1 if what == "decoded" else value)  # stored in the VAE's range

    # --- training -----------------------------------------------------------------------------

    def _levels(self, t: Array) -> tuple[Array, Array, Array]:
        tables = (self.table.alpha, self.table.sigma, self.table.eta)
        alpha, sigma, eta = (
            process.take_levels(jax.device_put(a.astype(self.dtype)), t) for a in tables
        )
        return alpha, sigma, eta

    def _training_pass(self) -> dict[str, Any]:
        """Forward process, prediction, loss and ControlNet gradients of the stored batch."""
        x0, x_lr, hint = (self.image(n) for n in ("train_x", "train_x_hat", "eps_hint"))
        t = self.times("eps_t")
        alpha, sigma, eta = self._levels(t)
        # Operation by operation, as PyTorch rounds: gradients show the last digit of x enlarged.
        x = process.q_sample(x0, x_lr, alpha, sigma, eta, self.image("train_noise"))
        context = self.given("eps_context")
        (loss, (each, pred_x0)), control = self.call(
            "gradients", x, t, context, hint, x0, alpha, sigma
        )
        table = with_prefix(control_table(self.config.unet), CONTROL_PREFIX, "")
        ours = {
            ".".join(map(str, path)): lazy(np.asarray(gradient[...]))
            for path, gradient in nnx.to_flat_state(control)
        }
        return {
            "x_noisy": nchw(x),
            "pred_x0": nchw(pred_x0),
            "loss": np.asarray(loss),
            "loss_per_sample": np.asarray(each),
            "gradients": to_torch(table, State("gradients", ours)),
        }

    def _training(self, entry: Entry) -> np.ndarray:
        return self.training_pass()[entry.match["what"]]

    def _gradient(self, entry: Entry) -> np.ndarray | None:
        gradients = self.training_pass()["gradients"]
        name = entry.match["parameter"]
        if name is None:
            names = [str(n) for n in self.archive["train_grad_names"]]
            return np.array([np.linalg.norm(gradients[n].load()) for n in names if n in gradients])
        return gradients[name].load() if name in gradients else None

    def _training_step(self) -> dict[str, np.ndarray]:
        """The training step of the release, from the stored batch: images to loss."""
        hint_px, lq = self.archive["step_hint"], self.image("step_pre_lq")
        raw, _ = self.call("pre", lq)  # not clipped in training
        noise = self.image("step_noise_posterior")
        c_latent = self.call("encode", raw, noise)["c_latent"]
        x0 = self.call("encode", (self.given("step_jpg") + 1) / 2, noise)["x0_hat"]
        t = self.times("step_t")
        alpha, sigma, eta = self._levels(t)
        x = process.q_sample(x0, c_latent, alpha, sigma, eta, self.image("step_noise_q"))
        eps = self.predict(x, t, self.given("step_context"), c_latent)
        return {
            "pre_lq": nchw(_quarter(hint_px.astype(self.dtype))),
            "x": nchw(x0),
            "c_latent": nchw(c_latent),
            "loss": np.asarray(process.training_loss(x0, process.eps_to_x0(x, eps, alpha, sigma))),
        }

    def _step(self, entry: Entry) -> np.ndarray:
        return self.training_step()[entry.match["what"]]


def _quarter(image: np.ndarray) -> np.ndarray:
    """PyTorch's bicubic enlargement by 1/4, a = -0.75 without antialiasing: (b, h, w, c).

    Every output lies half-way between the middle two of its four inputs, so the weights of the
    cubic at distances 1.5, 0.5, 0.5, 1.5 are all there is to it.
    """
    b, h, w, c = image.shape
    taps = np.array([-0.09375, 0.59375, 0.59375, -0.09375], image.dtype)
    blocks = image.reshape(b, h // 4, 4, w // 4, 4, c)
    return np.einsum("bhiwjc,i,j->bhwc", blocks, taps, taps)


def _norms(x: Array) -> np.ndarray:
    """L2 norm of every sample."""
    return np.linalg.norm(np.asarray(x).reshape(len(x), -1), axis=1)
