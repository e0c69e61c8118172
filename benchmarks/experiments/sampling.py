"""Experiments on the sampler: which variants, and what the figure says. Measured by runner.py."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dossr_jax.config import SAMPLERS, DoSSRConfig
from dossr_jax.plan.efficiency import ABSENT
from dossr_jax.systems import SYSTEMS
from experiments.bench import Bench, Variant

# Ends at the last prediction of x0, as the start from noise always does: comparable ends.
CLEAN = {"final_denoise": True}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is varied, why, and how it is shown.

    Attributes:
      text: what is set and what has to be known to read the figure.
      axis: name of the curves' x axis, None for none; `timed` puts seconds there.
      shown: labels of the variants whose pictures are shown.
      extra: draws another figure, (bench, path) -> its rows of numbers.
      absent: names of systems that would be in the table if there were weights.
    """

    title: str
    text: str
    variants: tuple[Variant, ...] = ()
    axis: str | None = None
    timed: bool = False
    shown: tuple[str, ...] = ()
    extra: Callable[[Bench, Path], list[dict[str, Any]]] | None = None
    absent: tuple[str, ...] = ()


def _series(
    name: str,
    steps: tuple[int, ...],
    *,
    eta: str | None = None,
    noise_trained: bool = False,
    **settings: Any,
) -> tuple[Variant, ...]:
    one = functools.partial(Variant, series=name, eta=eta, noise_trained=noise_trained)
    return tuple(one(f"{name}, {n}", {**settings, "steps": n}, x=n) for n in steps)


def steps() -> Experiment:
    """Quality against the number of network evaluations."""
    counts = (1, 2, 3, 5, 10, 20, 50)
    return Experiment(
        "Quality against steps",
        "Published: order 3, SDE, uniform grid; it ends at t = 0 with its residual noise. Clean: "
        "order 1; it ends at the last prediction of x0. Asinh: the sampler for few steps. All "
        "three have fidelity 0. Default: the sampler that the model file stores.",
        (
            *_series("published", counts),
            *_series("clean order 1", counts, order=1, **CLEAN),
            *_series("asinh", counts, **SAMPLERS["asinh"]),
            Variant("default", None, "model's default", 5),
        ),
        "steps",
        shown=tuple(f"published, {n}" for n in (1, 5, 20, 50)) + ("asinh, 5", "default"),
    )


def order() -> Experiment:
    """Solver orders 1 to 3 at equal steps."""
    return Experiment(
        "Solver order",
        "SDE, uniform grid, published end, fidelity 0. Orders are compared at equal numbers of "
        "network evaluations.",
        sum((_series(f"order {n}", (3, 5, 10, 20), order=n) for n in (1, 2, 3)), ()),
        "steps",
        shown=tuple(f"order {n}, 5" for n in (1, 2, 3)),
    )


def shift() -> Experiment:
    """Shifting sequence and start time."""
    names = ("trunc_13", "trunc_12", "trunc_23")
    return Experiment(
        "Shifting sequence and start time",
        "Sampling starts at T/3, T/2 or 2T/3, and eta follows. The model was trained with one of "
        "them (named above), so this shows how well a trained model tolerates another, not which "
        "sequence would train best. Order 1, SDE, published end, fidelity 0.",
        sum((_series(name, (5, 10), eta=name, order=1) for name in names), ()),
        "steps",
        shown=tuple(f"{name}, 10" for name in names),
    )


def start(noise_trained: str = "") -> Experiment:
    """The shifted start from the LR latent against plain diffusion from noise.

    Args:
      noise_trained: what has to be said of a model whose ControlNet was trained from noise, and
        which is measured too; "" where there is none.
    """
    counts, usual = (1, 2, 5, 10, 20), (5, 15, 50)
    shown = [f"from {where}, {n}" for n in (5, 20) for where in ("lr", "noise")]
    variants = [
        v
        for where in ("lr", "noise")
        for v in _series(f"from {where}", counts, start=where, order=1, **CLEAN)
    ]
    if noise_trained:
        for kind, name in (("sde", "DDPM"), ("ode", "DDIM")):
            label = f"trained from noise, {name}"
            options = {"start": "noise", "order": 1, "solver": kind, "noise_trained": True}
            variants += _series(label, usual, **options, **CLEAN)
            shown += [f"{label}, {n}" for n in (5, 50)]
    text = (
        "From noise: plain diffusion (eta = 0) over all T times, still with the ControlNet's "
        "hint. Order 1, SDE, uniform grid, ending at x0, fidelity 0. The ControlNet was trained "
        "on the shifted process alone, which favours the start from LR. "
    )
    text += noise_trained or "No ControlNet trained from noise was measured beside it."
    return Experiment(
        "Start from LR against start from noise", text, tuple(variants), "steps", shown=tuple(shown)
    )


def solver() -> Experiment:
    """SDE against probability-flow ODE."""
    return Experiment(
        "ODE against SDE",
        "Uniform grid, ending at x0, fidelity 0; orders 1 and 2.",
        tuple(
            v
            for kind in ("sde", "ode")
            for n in (1, 2)
            for v in _series(f"{kind.upper()} order {n}", (3, 5, 10), solver=kind, order=n, **CLEAN)
        ),
        "steps",
        shown=tuple(f"{kind} order {n}, 5" for kind in ("SDE", "ODE") for n in (1, 2)),
    )


def color_fix() -> Experiment:
    """Colour fixes against the pre-restored image."""
    names = ("wavelet", "residual", "adain", "none")
    return Experiment(
        "Colour fix",
        "The published sampler, 5 steps, fidelity 0; only the fix changes.",
        tuple(Variant(name, {"color_fix": name}) for name in names),
        shown=names,
    )


def latency() -> Experiment:
    """Seconds per image against quality."""
    counts = (1, 5, 20)
    default = Variant("default", None, "model's default", 5, repeats=2)
    settings = {"published": {}, "clean order 1": {"order": 1, **CLEAN}}
    return Experiment(
        "Latency against quality",
        "Seconds per image with a compiled program, all stages included: the faster of two runs "
        "over the images of all tables. Fidelity is 0 except for the model's default. Other work "
        "shared the machine: read ratios, not seconds.",
        tuple(
            dataclasses.replace(v, repeats=2)
            for name, options in settings.items()
            for v in _series(name, counts, **options)
        )
        + (default,),
        "seconds per image",
        timed=True,
    )


def systems(given: Mapping[str, str] = MappingProxyType({})) -> Experiment:
    """Other systems on the same images.

    Args:
      given: what has to be said of the file of each system, by the system's name.
    """
    known = [
        name
        for system in SYSTEMS
        if system.name != DoSSRConfig.system
        for name in system.configurations
    ]
    variants = (
        Variant("DoSSR, published", repeats=2),
        Variant("DoSSR, model's default", None, repeats=2),
        *(Variant(name, system=name, repeats=2) for name in given),
    )
    return Experiment(
        "Other systems",
        " ".join(["Each is sampled as its model file says.", *given.values()]),
        variants,
        shown=tuple(variant.label for variant in variants),
        absent=tuple(name for name in (*known, *ABSENT) if name not in given),
    )
