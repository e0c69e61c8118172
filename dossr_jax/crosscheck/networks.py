"""Our side of the network entries, from the production code, under the names of stored arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dossr_jax import method, restore
from dossr_jax.config import SamplerConfig
from dossr_jax.crosscheck import programs
from dossr_jax.crosscheck.entries import Entry, find_entries
from dossr_jax.crosscheck.folder import Archive, Folder, build_model
from dossr_jax.crosscheck.replay import SamplerRun, StoredImage, arguments, run_of
from dossr_jax.diffusion import process, schedule, solver
from dossr_jax.image import color_fix, pixels_to_levels
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.unet import encoder_channels, timestep_embedding
from dossr_jax.pytorch.state import State, to_torch
from dossr_jax.pytorch.tables import CONTROL_PREFIX, control_table, with_prefix
from dossr_jax.restore import Layout
from dossr_jax.weights import lazy

Results = dict[str, np.ndarray]


class Runner:
    """Our side in one dtype. Methods named after forms return results for the entries given.

    Results are laid out as stored. Every compiled program is kept, by shapes, and every result
    that several entries share is computed once.
    """

    def __init__(self, folder: Folder, archive: Archive, dtype: str):
        self.config = folder.config
        self.archive = archive
        self.dtype = jnp.dtype(dtype)
        self.table = schedule.make_schedule(folder.config.process)
        self.graphdef, self.state = nnx.split(build_model(folder, self.dtype))
        self.compiled: dict[Any, Any] = {}
        # Compiling is most of the work. Float64 is there for what is computed, not for how fast or
        # with which rounding; float32 is compiled as users have it.
        quick = self.dtype == jnp.float64 and jax.default_backend() == "cpu"
        self.compiler_options: dict[str, Any] | None = (
            {"xla_backend_optimization_level": 0} if quick else None
        )
        self.longest: dict[str, int] = {}
        for entry in find_entries(archive.arrays):
            if entry.form in ("trajectory", "process"):
                prefix, steps = entry.match["prefix"], int(entry.match["steps"])
                self.longest[prefix] = max(steps, self.longest.get(prefix, 0))
        self.encoded = functools.cache(self._encoded)
        self.restored = functools.cache(self._restore)
        self.solved = functools.cache(self._solved)
        self.training_pass = functools.cache(self._training_pass)

    def results(self, entries: Sequence[Entry]) -> Results:
        """Results by name; an entry of which only the form is known is left out."""
        found: Results = {}
        for form in dict.fromkeys(entry.form for entry in entries):
            compute = getattr(self, f"_{form}")
            found |= compute([entry for entry in entries if entry.form == form])
        return found

    @property
    def model(self) -> DoSSR:
        """The model, a new module of the same arrays at every call."""
        return nnx.merge(self.graphdef, self.state)

    # --- inputs, programs ---------------------------------------------------------------------

    def given(self, name: str) -> Array:
        """A stored input in our dtype, as it lies."""
        return jax.device_put(self.archive[name].astype(self.dtype))

    def image(self, name: str) -> Array:
        """A stored NCHW input as NHWC."""
        return jax.device_put(np.moveaxis(self.archive[name], 1, -1).astype(self.dtype))

    @functools.cached_property
    def _programs(self) -> dict[str, Callable[..., Any]]:
        def with_model(fn: Callable[..., Any]) -> Callable[..., Any]:
            return jax.jit(
                lambda state, *args: fn(nnx.merge(self.graphdef, state), *args),
                compiler_options=self.compiler_options,
            )

        return {
            "pre": with_model(lambda model, lr: (model.rrdb(lr), model.pre_restore(lr))),
            "encode": with_model(programs.encode),
            "decode": with_model(DoSSR.decode),
            "network": with_model(programs.network),
            "predict": with_model(programs.predict),
            "gradients": with_model(programs.gradients),
            "color_fix": jax.jit(
                color_fix, static_argnums=0, compiler_options=self.compiler_options
            ),
        }

    def call(self, program: str, *args: Any) -> Any:
        """Run a program of the model."""
        return self._programs[program](self.state, *args)

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
        return self._programs["color_fix"](kind, image, reference, size)

    # --- entries of one image ------------------------------------------------------------------

    def _encoded(self, prefix: str, source: str) -> dict[str, Array]:
        """All there is before the solver; `source` as in SamplerRun."""
        if source == "own":
            raw, pre = self.call("pre", self.image(f"{prefix}lr"))
        else:
            raw = pre = self.image(f"{prefix}stage_pre")
        noise = self.image(f"{prefix}noise_posterior")
        return {"pre_raw": raw, "pre": pre, **self.call("encode", pre, noise)}

    def _stage(self, entries: list[Entry]) -> Results:
        results = {}
        for entry in entries:
            prefix, what = entry.match["prefix"], entry.match["what"]
            found = self.encoded(prefix, "own")
            if what in found:
                value = found[what]
            else:
                value = self.call("decode", found["x0_hat"])
                if what == "decoded":
                    value = 2 * value - 1  # stored in the VAE's range
                else:
                    value = self.fix(what, value, found["pre"])
            results[entry.name] = _nchw(value)
        return results

    # --- the network --------------------------------------------------------------------------

    def _network(self, entries: list[Entry]) -> Results:
        x, hint, context = (
            self.image("eps_x_t"),
            self.image("eps_hint"),
            self.given("eps_context"),
        )
        t = jax.device_put(self.archive["eps_t"].astype(np.int32))

        @functools.cache
        def parts(factor: float = 1, only_mid: bool = False) -> dict[str, Any]:
            strength = self._strengths(factor, only_mid=only_mid)
            return self.call("network", x, t, context, hint, strength)

        results = {}
        for entry in entries:
            match, what = entry.match, entry.match["what"]
            if match["dim"]:
                value = timestep_embedding(t, int(match["dim"]), self.dtype)
            elif match["mlp"]:
                value = parts()["temb"][match["mlp"]]
            elif what == "control_norms":
                value = np.stack([_norms(residual) for residual in parts()["control"]])
            elif match["residual"] or match["skip"]:
                group = parts()["control" if match["residual"] else "skips"]
                index = int(match["residual"] or match["skip"])
                if index >= len(group):
                    continue
                value = _nchw(group[index])
            elif what in ("unet_mid", "eps_nocontrol"):
                value = _nchw(parts()[what])
            elif what == "eps_onlymid":
                value = _nchw(parts(1, only_mid=True)["eps"])
            else:
                digits = match["strength"] or "1"  # "05" reads 0.5
                value = _nchw(parts(float(f"{digits[0]}.{digits[1:] or 0}"))["eps"])
            results[entry.name] = np.asarray(value)
        return results

    def _strengths(self, factor: float, *, only_mid: bool = False) -> Array:
        """One factor per residual; for `only_mid` all but the last, the middle's, are 0."""
        factors = np.full(len(encoder_channels(self.config.unet)) + 1, factor)
        if only_mid:
            factors[:-1] = 0
        return jax.device_put(factors.astype(self.dtype))

    def _network_at(self, entries: list[Entry]) -> Results:
        results = {}
        for entry in entries:
            prefix = entry.match["prefix"]
            x, hint = self.image(f"{prefix}noise_init"), self.image(f"{prefix}stage_c_latent")
            t = jnp.full(len(x), int(entry.match["t"]), jnp.int32)
            results[entry.name] = _nchw(self.predict(x, t, self.given("context"), hint))
        return results

    # --- trajectories -------------------------------------------------------------------------

    def _restore(self, run: SamplerRun) -> method.Restoration:
        """What the program of `dossr-restore` makes of the LR image, with the stored noise."""
        model = self.model
        if run.source == "stored" or run.prefix:  # compiling it at one resolution is enough
            pre = self.encoded(run.prefix, run.source)["pre"]
            model.rrdb = cast(Any, StoredImage)(pre)
        graphdef, state = nnx.split(model)
        layout = Layout(color_fix="wavelet", guided=run.cfg is not None, keep=True)
        # Padded to the longest run, so that one program serves all of them.
        arrays = arguments(self, run, self.table, rows=self.longest[run.prefix])
        program = layout, graphdef, arrays[0].shape
        if program not in self.compiled:
            lowered = restore.restore.lower(graphdef, layout, state, *arrays)
            self.compiled[program] = lowered.compile(compiler_options=self.compiler_options)
        return self.compiled[program](state, *arrays)

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
            "x": _nchw(np.concatenate([x, np.asarray(restored.latents)])),
            "eps": _nchw((x - alpha * x0) / sigma),
            "pred_x0": _nchw(x0),
        }

    def _image_of(self, run: SamplerRun, fix: str) -> Array:
        """The run's image in [0, 1], not clipped, with its colours fixed."""
        restored = self.restored(run)
        if fix == "wavelet":
            return restored.result
        return self.fix(fix, restored.decoded, restored.pre_restored)

    def _trajectory(self, entries: list[Entry]) -> Results:
        results = {}
        for entry in entries:
            match, what = entry.match, entry.match["what"]
            run = run_of(match)
            if what == "same_as":
                # The array holds the name of an identical run; ours have to be identical too.
                named = self.archive[entry.name]
                (other,) = find_entries([str(named).rstrip("_") + "_x"])
                x, x_other = (self.solved(r)["x"] for r in (run, run_of(other.match)))
                results[entry.name] = named if (x == x_other).all() else np.array("another run")
            elif what == "img":
                fix = match["img_fix"] or match["fix"] or "none"
                results[entry.name] = _nchw(self._image_of(run, fix))
            else:
                results[entry.name] = self.solved(run)[what]
        return results

    def _process(self, entries: list[Entry]) -> Results:
        """8-bit images of the whole pipeline, from the LR image on."""
        results = {}
        for entry in entries:
            run = run_of(entry.match)._replace(source="own")
            image = self._image_of(run, entry.match["fix"])[0]
            results[entry.name] = np.asarray(pixels_to_levels(image, truncate=True))
        return results

    def _restored(self, entries: list[Entry]) -> Results:
        """Images of the LR latent itself: the whole program at fidelity 1 returns them."""
        results = {}
        for entry in entries:
            prefix, what = entry.match["prefix"], entry.match["what"]
            if prefix not in self.longest:
                continue
            run = SamplerRun(prefix, 1, 1, source="own", fidelity=1.0)
            value = self._image_of(run, "none" if what == "decoded" else what)
            if what == "decoded":
                value = 2 * value - 1  # stored in the VAE's range
            results[entry.name] = _nchw(value)
        return results

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
        t = jax.device_put(self.archive["eps_t"].astype(np.int32))
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
            "x_noisy": _nchw(x),
            "pred_x0": _nchw(pred_x0),
            "loss": np.asarray(loss),
            "loss_per_sample": np.asarray(each),
            "gradients": to_torch(table, State("gradients", ours)),
        }

    def _training(self, entries: list[Entry]) -> Results:
        return {entry.name: self.training_pass()[entry.match["what"]] for entry in entries}

    def _gradient(self, entries: list[Entry]) -> Results:
        gradients = self.training_pass()["gradients"]
        results = {}
        for entry in entries:
            name = entry.match["parameter"]
            if name is None:
                names = self.archive["train_grad_names"]
                results[entry.name] = np.array(
                    [np.linalg.norm(gradients[str(n)].load()) for n in names if n in gradients]
                )
            elif name in gradients:
                results[entry.name] = gradients[name].load()
        return results

    def _step(self, entries: list[Entry]) -> Results:
        """The training step of the release, from the stored batch: images to loss."""
        hint_px, lq = self.archive["step_hint"], self.image("step_pre_lq")
        raw, _ = self.call("pre", lq)  # not clipped in training
        noise = self.image("step_noise_posterior")
        c_latent = self.call("encode", raw, noise)["c_latent"]
        x0 = self.call("encode", (self.given("step_jpg") + 1) / 2, noise)["x0_hat"]
        t = jax.device_put(self.archive["step_t"].astype(np.int32))
        alpha, sigma, eta = self._levels(t)
        x = process.q_sample(x0, c_latent, alpha, sigma, eta, self.image("step_noise_q"))
        eps = self.predict(x, t, self.given("step_context"), c_latent)
        values = {
            "pre_lq": _nchw(_quarter(hint_px.astype(self.dtype))),
            "x": _nchw(x0),
            "c_latent": _nchw(c_latent),
            "loss": np.asarray(process.training_loss(x0, process.eps_to_x0(x, eps, alpha, sigma))),
        }
        return {entry.name: values[entry.match["what"]] for entry in entries}


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


def _nchw(x: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)
