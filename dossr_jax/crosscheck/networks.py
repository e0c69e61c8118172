"""Our side of the network stages, from the production code, under the names of stored arrays."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dossr_jax.config import SamplerConfig
from dossr_jax.convert.state import State, lazy, to_torch
from dossr_jax.convert.tables import CONTROL_PREFIX, control_table, with_prefix
from dossr_jax.crosscheck import programs
from dossr_jax.crosscheck.folder import Archive, Folder, build_model
from dossr_jax.crosscheck.stages import Stage, find_stages
from dossr_jax.diffusion import process, schedule, solver
from dossr_jax.errors import UserError
from dossr_jax.image import color_fix, pixels_to_uint8
from dossr_jax.models.dossr import DoSSR
from dossr_jax.models.unet import encoder_channels, timestep_embedding

Results = dict[str, np.ndarray]


class Run(NamedTuple):
    """A sampler's run: guidance scale (None: off) and where its pre-restored image comes from.

    That is our own ("own") or the stored one ("stored"): stored stages in float64 go on from their
    own pre-restored image, stored samplers from the float32 one.
    """

    prefix: str
    order: int
    steps: int
    cfg: float | None
    source: str


def _run_of(match: re.Match[str]) -> Run:
    fields = match.groupdict()
    cfg = fields.get("cfg")
    source = "own" if "fix" in fields and "what" not in fields else "stored"
    return Run(
        fields["prefix"],
        int(fields["order"] or 3),  # the release's default
        int(fields["steps"]),
        float(cfg.replace("p", ".")) if cfg else None,
        source,
    )


class Runner:
    """Our side in one dtype. Methods named after forms return results for the stages given.

    Results are laid out as stored. Every compiled program is kept, by shapes, and every result
    that several stages share is computed once.
    """

    def __init__(self, folder: Folder, archive: Archive, dtype: str):
        self.config = folder.config
        self.archive = archive
        self.dtype = jnp.dtype(dtype)
        self.table = schedule.make_schedule(folder.config.process)
        self.graphdef, self.state = nnx.split(build_model(folder, self.dtype))
        self.longest: dict[str, int] = {}
        for stage in find_stages(archive.arrays):
            if stage.form in ("trajectory", "process"):
                prefix, steps = stage.match["prefix"], int(stage.match["steps"])
                self.longest[prefix] = max(steps, self.longest.get(prefix, 0))
        self.encoded = functools.cache(self._encoded)
        self.solved = functools.cache(self._solved)
        self.training_pass = functools.cache(self._training_pass)

    def results(self, stages: Sequence[Stage]) -> Results:
        """Results by name; a stage of which only the form is known is left out."""
        found: Results = {}
        for form in dict.fromkeys(stage.form for stage in stages):
            compute = getattr(self, f"_{form}")
            found |= compute([stage for stage in stages if stage.form == form])
        return found

    # --- inputs, programs ---------------------------------------------------------------------

    def given(self, name: str) -> Array:
        """A stored input in our dtype, as it lies."""
        return jax.device_put(self.archive[name].astype(self.dtype))

    def image(self, name: str) -> Array:
        """A stored NCHW input as NHWC."""
        return jax.device_put(np.moveaxis(self.archive[name], 1, -1).astype(self.dtype))

    @functools.cached_property
    def _programs(self) -> dict[str, Callable[..., Any]]:
        options = None
        if self.dtype == jnp.float64 and jax.default_backend() == "cpu":
            # Compiling is most of the work. Float64 is there for what is computed, not for how
            # fast or with which rounding; float32 is compiled as users have it.
            options = {"xla_backend_optimization_level": 0}

        def with_model(fn: Callable[..., Any]) -> Callable[..., Any]:
            return jax.jit(
                lambda state, *args: fn(nnx.merge(self.graphdef, state), *args),
                compiler_options=options,
            )

        return {
            "pre": with_model(lambda model, lr: (model.rrdb(lr), model.pre_restore(lr))),
            "encode": with_model(programs.encode),
            "decode": with_model(DoSSR.decode),
            "network": with_model(programs.network),
            "predict": with_model(programs.predict),
            "solve": with_model(programs.solve),
            "gradients": with_model(programs.gradients),
            "color_fix": jax.jit(color_fix, static_argnums=0, compiler_options=options),
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

    # --- stages of one image ------------------------------------------------------------------

    def _encoded(self, prefix: str, source: str) -> dict[str, Array]:
        """All there is before the solver; `source` as in Run."""
        if source == "own":
            raw, pre = self.call("pre", self.image(f"{prefix}lr"))
        else:
            raw = pre = self.image(f"{prefix}stage_pre")
        noise = self.image(f"{prefix}noise_posterior")
        return {"pre_raw": raw, "pre": pre, **self.call("encode", pre, noise)}

    def _stage(self, stages: list[Stage]) -> Results:
        results = {}
        for stage in stages:
            prefix, what = stage.match["prefix"], stage.match["what"]
            found = self.encoded(prefix, "own")
            if what in found:
                value = found[what]
            else:
                value = self.call("decode", found["x0_hat"])
                if what == "decoded":
                    value = 2 * value - 1  # stored in the VAE's range
                else:
                    value = self.fix(what, value, found["pre"])
            results[stage.name] = _nchw(value)
        return results

    # --- the network --------------------------------------------------------------------------

    def _network(self, stages: list[Stage]) -> Results:
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
        for stage in stages:
            match, what = stage.match, stage.match["what"]
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
            results[stage.name] = np.asarray(value)
        return results

    def _strengths(self, factor: float, *, only_mid: bool = False) -> Array:
        """A factor a residual; the last, the middle's, is 1 and the others 0 for `only_mid`."""
        factors = np.full(len(encoder_channels(self.config.unet)) + 1, factor)
        if only_mid:
            factors[:-1] = 0
        return jax.device_put(factors.astype(self.dtype))

    def _network_at(self, stages: list[Stage]) -> Results:
        results = {}
        for stage in stages:
            prefix = stage.match["prefix"]
            x, hint = self.image(f"{prefix}noise_init"), self.image(f"{prefix}stage_c_latent")
            t = jnp.full(len(x), int(stage.match["t"]), jnp.int32)
            results[stage.name] = _nchw(self.predict(x, t, self.given("context"), hint))
        return results

    # --- trajectories -------------------------------------------------------------------------

    def _solved(self, run: Run) -> dict[str, Any]:
        """A run with the stored noise: t, and x, eps, pred_x0 of every step as stored (NCHW)."""
        found = self.encoded(run.prefix, run.source)
        noise = self.image(f"{run.prefix}noise_steps")
        if len(noise) < run.steps:
            raise UserError(
                f"{self.archive.where}: {run.prefix}noise_steps has {len(noise)} draws, a run of "
                f"{run.steps} steps needs as many"
            )
        table = solver.make_table(self.table, SamplerConfig(steps=run.steps, order=run.order))
        # Padded to the longest run, so that one program serves all of them.
        rows = self.longest[run.prefix]
        noise = jnp.resize(noise, (rows, *noise.shape[1:]))
        latents, path = self.call(
            "solve",
            solver.pad_table(solver.cast(table, self.dtype), rows),
            (found["x0_hat"], found["c_latent"]),
            self.image(f"{run.prefix}noise_init"),
            noise,
            np.stack([self.given("context"), self.given("context_neg")]),
            np.int32(1 if run.cfg is None else 2),
            np.asarray(run.cfg or 1, self.dtype),
        )
        x, x0 = (np.asarray(a)[: run.steps, 0].astype(np.float64) for a in (path.x, path.x0))
        # The loop knows x0 only; eps follows on the host by the coefficients it was run with.
        alpha, sigma = (
            a.astype(self.dtype).astype(np.float64)[:, None, None, None]
            for a in (table.rows.alpha, table.rows.sigma)
        )
        return {
            "t": table.rows.t,
            "x": _nchw(np.concatenate([x, np.asarray(latents)])),
            "eps": _nchw(process.x0_to_eps(x, x0, alpha, sigma)),
            "pred_x0": _nchw(x0),
            "latents": latents,
        }

    def _image_of(self, run: Run, fix: str) -> Array:
        """The run's image in [0, 1], not clipped, with its colours fixed."""
        image = self.call("decode", self.solved(run)["latents"])
        return self.fix(fix, image, self.encoded(run.prefix, run.source)["pre"])

    def _trajectory(self, stages: list[Stage]) -> Results:
        results = {}
        for stage in stages:
            match, what = stage.match, stage.match["what"]
            run = _run_of(match)
            if what == "same_as":
                # The array holds the name of an identical run; ours have to be identical too.
                named = self.archive[stage.name]
                (other,) = find_stages([str(named).rstrip("_") + "_x"])
                x, x_other = (self.solved(r)["x"] for r in (run, _run_of(other.match)))
                results[stage.name] = named if (x == x_other).all() else np.array("another run")
            elif what == "img":
                fix = match["img_fix"] or match["fix"] or "none"
                results[stage.name] = _nchw(self._image_of(run, fix))
            else:
                results[stage.name] = self.solved(run)[what]
        return results

    def _process(self, stages: list[Stage]) -> Results:
        """8-bit images of the whole pipeline, from the LR image on."""
        return {
            stage.name: np.asarray(
                pixels_to_uint8(
                    self._image_of(_run_of(stage.match), stage.match["fix"])[0], truncate=True
                )
            )
            for stage in stages
        }

    # --- training -----------------------------------------------------------------------------

    def _levels(self, t: Array) -> tuple[Array, Array, Array]:
        tables = (self.table.alpha, self.table.sigma, self.table.eta)
        return tuple(process.take_levels(jax.device_put(a.astype(self.dtype)), t) for a in tables)

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

    def _training(self, stages: list[Stage]) -> Results:
        return {stage.name: self.training_pass()[stage.match["what"]] for stage in stages}

    def _gradient(self, stages: list[Stage]) -> Results:
        gradients = self.training_pass()["gradients"]
        results = {}
        for stage in stages:
            name = stage.match["parameter"]
            if name is None:
                names = self.archive["train_grad_names"]
                results[stage.name] = np.array(
                    [np.linalg.norm(gradients[str(n)].load()) for n in names if n in gradients]
                )
            elif name in gradients:
                results[stage.name] = gradients[name].load()
        return results

    def _step(self, stages: list[Stage]) -> Results:
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
        return {stage.name: values[stage.match["what"]] for stage in stages}


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
