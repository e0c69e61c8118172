"""DoSSR's samplers as a scheduler of diffusers, for networks in PyTorch.

Needs the extra `diffusers`. Coefficients come from the tables that our own sampler runs
(dossr_jax.diffusion.solver), in float64 on the host; tensors stay PyTorch's.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from dossr_jax.diffusion.schedule import make_schedule, make_timesteps
from dossr_jax.diffusion.solver import SolverTable, assemble, make_table
from dossr_jax.errors import UserError, require_extra
from dossr_jax.systems.dossr.diffusers import read_fields

require_extra("diffusers", "torch", "diffusers", wanted_by="dossr_jax.schedulers")

import torch  # noqa: E402
from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: E402
from diffusers.utils.outputs import BaseOutput  # noqa: E402
from diffusers.utils.torch_utils import randn_tensor  # noqa: E402


@dataclasses.dataclass
class DoSSRSchedulerOutput(BaseOutput):
    """What a step returns, shaped as its sample.

    Attributes:
      prev_sample: the network's next input, or the final latents after the last step.
      pred_original_sample: the prediction of x0 that this step made.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class _Steps(NamedTuple):
    """A row per step: x' = c_x x + c_lr x_lr + c_x0[0] D + c_x0[1] D_prev + ... + c_noise z."""

    alpha: np.ndarray
    sigma: np.ndarray
    c_x: np.ndarray
    c_lr: np.ndarray
    c_x0: np.ndarray
    c_noise: np.ndarray


def _steps_in_x(table: SolverTable) -> _Steps:
    """A solver in x, the network's input, in place of y; x = m y + shift x_lr.

    The table divides by m ~ 1e-6 here, in float64: what is left for float32 are weights of about 1.
    """
    rows, ends = table
    m = np.append(rows.m, ends.m_out)
    shift = np.append(rows.shift, ends.shift_out)
    c_x = m[1:] * rows.c_y / m[:-1]
    return _Steps(
        rows.alpha,
        rows.sigma,
        c_x,
        shift[1:] - c_x * shift[:-1],
        m[1:, None] * rows.c_x0,
        m[1:] * rows.c_noise,
    )


class DoSSRScheduler(SchedulerMixin, ConfigMixin):
    """The solvers of DoSSR: orders 1 to 3, SDE and ODE, and the sampler for few steps.

    A run starts from the LR latent, which :meth:`set_lr` is given: scaled as the sampled latents
    are, (b, c, h, w), b being 1 or the batch. A step depends on the sample that it is given, on
    that latent, and on the predictions of the steps before it since :meth:`set_timesteps`.

    Args:
      num_train_timesteps: times of the noise schedule, as in diffusers' own schedulers.
      beta_start: likewise.
      beta_end: likewise.
      beta_schedule: likewise.
      prediction_type: "epsilon" or "v_prediction".
      rescale_betas_zero_snr: as in diffusers' own schedulers.
      eta_schedule: shifting sequence: "trunc_12" (published), "trunc_13" or "trunc_23".
      num_inference_steps: steps where :meth:`set_timesteps` is given none, 1 to 50.
      solver_order: 1, 2 or 3.
      solver: "sde" (published), "ode", or "asinh", the same ODE for few steps.
      grid: times: "uniform" (published), "asinh", which are not whole numbers, or "spaced".
      start: "lr", or "noise" for the plain diffusion of networks that were trained for it.
      final_denoise: end with the last prediction, without the noise left at t = 0.
      fidelity: share of the LR latent in every prediction, 0 to 1.

    Raises:
      ConfigError: a field that cannot have its value.
    """

    order = 1  # evaluations of the network per step, which pipelines ask for
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        eta_schedule: str = "trunc_12",
        num_inference_steps: int = 5,
        solver_order: int = 3,
        solver: str = "sde",
        grid: str = "uniform",
        start: str = "lr",
        final_denoise: bool = False,
        fidelity: float = 0.0,
    ):
        self._process, self._sampler = read_fields(self.config)
        schedule = make_schedule(self._process)
        self._schedule = schedule.no_shift() if start == "noise" else schedule
        self._lr: torch.Tensor | None = None
        self.set_timesteps()

    def __len__(self) -> int:
        return self._process.timesteps

    @property
    def step_index(self) -> int | None:
        """How many steps of the run are done; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The step that a run starts with, where :meth:`set_begin_index` was called."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the run with a later step, for images that are noised less."""
        self._begin_index = begin_index

    def set_lr(self, lr_latents: torch.Tensor) -> None:
        """Give the LR latents (b, c, h, w) that runs from now on start from and shift to."""
        self._lr = lr_latents

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None
    ) -> None:
        """Begin a run: its times are in `timesteps`, one per evaluation of the network.

        Raises:
          ConfigError: more steps than 50 or than the grid has times.
        """
        if num_inference_steps is not None:
            self._sampler = dataclasses.replace(self._sampler, steps=num_inference_steps)
        self.num_inference_steps = self._sampler.steps
        # All but the end, which the spaced grid does not have.
        self._times = make_timesteps(self._schedule, self._sampler.steps, self._sampler.grid)
        times = self._times[: self._sampler.steps]
        whole = bool((times == np.round(times)).all())
        self.timesteps = torch.tensor(
            times.tolist(), dtype=torch.int64 if whole else torch.float32, device=device
        )
        self._steps: _Steps | None = None
        self._step_index = self._begin_index = None
        self._predictions: list[torch.Tensor] = []

    def scale_model_input(
        self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """The sample itself, which is the network's input."""
        return sample

    def first_sample(self, noise: torch.Tensor) -> torch.Tensor:
        """The sample that a run starts from: the noised LR latents, or `noise` (b, c, h, w) itself.

        Raises:
          UserError: no LR latents, or of another shape.
        """
        if self._sampler.start == "noise":
            return noise
        lr = self._lr_for(noise)
        return self.add_noise(lr.expand_as(noise), noise, self.timesteps[:1])

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The forward process alpha ((1 - eta) x0 + eta x_lr) + sigma noise, shaped as x0.

        Args:
          original_samples: x0 (b, c, h, w). noise: as x0. timesteps: (b,) or (1,).

        Raises:
          UserError: no LR latents, or of another shape.
        """
        levels = self._schedule.at(timesteps.cpu().double().reshape(-1).numpy())

        def over(values: np.ndarray) -> torch.Tensor:
            return original_samples.new_tensor(values.tolist()).reshape(-1, 1, 1, 1)

        x = over(levels.m) * original_samples + over(levels.sigma) * noise
        if self._sampler.start == "lr":
            x = x + over(levels.shift) * self._lr_for(original_samples)
        return x

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: torch.Tensor | None = None,
        lr_latents: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DoSSRSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Go from one time of the run to the next, or from the last to the result.

        Args:
          model_output: what the network predicts of `sample` at `timestep`, after guidance.
          timestep: of `timesteps`; it tells where a run begins, later ones follow in turn.
          sample: (b, c, h, w). Half precision is computed in float32 and cast back.
          generator: draws the noise of a stochastic step. noise: given in its place.
          lr_latents: as for :meth:`set_lr`, from this step on.
          return_dict: False returns a tuple.

        Raises:
          UserError: a time that is not of the run, a run that is over, no LR latents, shapes that
            do not fit.
        """
        if lr_latents is not None:
            self.set_lr(lr_latents)
        if self._step_index is None:
            self._begin(timestep)
        assert self._step_index is not None and self._steps is not None
        row = self._step_index - self._first
        if row >= len(self._steps.alpha):
            raise UserError("this run is over; call set_timesteps to begin another")
        steps = _Steps(*(values[row] for values in self._steps))
        kind = torch.promote_types(sample.dtype, torch.float32)
        x, output = sample.to(kind), model_output.to(kind)
        if self._process.prediction == "v":
            x0 = float(steps.alpha) * x - float(steps.sigma) * output
        else:
            x0 = (x - float(steps.sigma) * output) / float(steps.alpha)
        fidelity, start_lr = self._sampler.fidelity, self._sampler.start == "lr"
        lr = self._lr_for(x) if start_lr or fidelity else None
        if lr is not None and fidelity:
            x0 = (1 - fidelity) * x0 + fidelity * lr
        self._predictions = [x0, *self._predictions[:2]]
        weighted = zip(steps.c_x0, self._predictions, strict=False)
        after = float(steps.c_x) * x + sum(float(weight) * d for weight, d in weighted)
        if lr is not None and start_lr:
            after = after + float(steps.c_lr) * lr
        if steps.c_noise:
            if noise is None:
                noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=kind)
            after = after + float(steps.c_noise) * noise.to(x)
        self._step_index += 1
        after, x0 = after.to(sample.dtype), x0.to(sample.dtype)
        return DoSSRSchedulerOutput(after, x0) if return_dict else (after, x0)

    def _begin(self, timestep: float | torch.Tensor) -> None:
        """Find the step that a run begins with; later ones have no predictions before that."""
        if self._begin_index is None:
            found = (self.timesteps.cpu() == torch.as_tensor(timestep).cpu()).nonzero()
            if len(found) == 0:
                raise UserError(
                    f"timestep {float(timestep):g} is none of this run's {self.num_inference_steps}"
                    "; give those of scheduler.timesteps in their order"
                )
            self._step_index = int(found[0])
        else:
            if not 0 <= self._begin_index < self.num_inference_steps:
                raise UserError(
                    f"begin index {self._begin_index}: this run has {self.num_inference_steps} "
                    "steps; begin with one of them"
                )
            self._step_index = self._begin_index
        self._first = self._step_index
        times = self._times[self._first :]
        if self._sampler.grid == "spaced":
            table = assemble(times, self._schedule.at(times), None, self._sampler)
        else:
            table = make_table(self._schedule, self._sampler, times=times)
        self._steps = _steps_in_x(table)

    def _lr_for(self, sample: torch.Tensor) -> torch.Tensor:
        """The LR latents in the device and dtype of a sample that they belong to."""
        if self._lr is None:
            raise UserError("DoSSRScheduler has no LR latents; call set_lr(lr_latents) before")
        fits = self._lr.shape[1:] == sample.shape[1:] and len(self._lr) in (1, len(sample))
        if not fits:
            raise UserError(
                f"LR latents are {tuple(self._lr.shape)}, the sample {tuple(sample.shape)}; give "
                "latents of the same size and batch"
            )
        return self._lr.to(sample)
