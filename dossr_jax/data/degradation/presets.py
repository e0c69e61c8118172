"""Presets of degradations: ranges and probabilities by name, and their table for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from dossr_jax.data.degradation.resize import MODES
from dossr_jax.errors import UserError

Range = tuple[float, float]


def _register(cls: type) -> type:
    """Make a dataclass a pytree of its numbers; fields marked static stay outside."""
    static = [f.name for f in dataclasses.fields(cls) if f.metadata.get("static")]
    numbers = [f.name for f in dataclasses.fields(cls) if f.name not in static]
    return jax.tree_util.register_dataclass(cls, numbers, static)


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class BlurOdds:
    """A blur: with probability `sinc_odds` a sinc filter, else one of kernels.KINDS."""

    odds: float = 0.0
    sinc_odds: float = 0.1
    kinds: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sigma: Range = (0.2, 3.0)
    beta_generalised: Range = (0.5, 4.0)
    beta_plateau: Range = (1.0, 2.0)


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizeOdds:
    """A resize: probabilities of enlarging, shrinking and keeping, and of resize.MODES."""

    directions: tuple[float, float, float] = (0.0, 0.0, 1.0)
    factor: Range = (1.0, 1.0)
    modes: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3, 0.0)


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseOdds:
    """Gaussian noise of a strength in 8-bit levels, or Poisson noise times a factor."""

    odds: float = 0.0
    gaussian_odds: float = 0.5
    gaussian: Range = (1.0, 30.0)
    poisson: Range = (0.05, 3.0)
    grey_odds: float = 0.4


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class JpegOdds:
    """A JPEG of some quality as libjpeg counts."""

    odds: float = 0.0
    quality: Range = (30.0, 95.0)


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """Blur, resize, noise and JPEG, one after the other."""

    blur: BlurOdds = BlurOdds()
    resize: ResizeOdds = ResizeOdds()
    noise: NoiseOdds = NoiseOdds()
    jpeg: JpegOdds = JpegOdds()


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Two passes; between noise and JPEG of the second, or after it, the resize to the LR size.

    The first pass scales the HR image by a factor, the second makes it that factor of the LR size.
    After the last resize comes a sinc filter with probability `sinc_odds`. `scale` is the HR side
    by the LR side. `sharpen_odds`: probability that the HR image is sharpened first.
    """

    scale: int = dataclasses.field(default=4, metadata={"static": True})
    sharpen_odds: float = 0.0
    first: Pass = Pass()
    second: Pass = Pass()
    sinc_odds: float = 0.0


PRESETS = {
    # The release's training settings: Real-ESRGAN (Wang et al., arXiv 2107.10833), a little milder.
    "realesrgan": Preset(
        first=Pass(
            blur=BlurOdds(odds=1.0, sigma=(0.2, 3.0)),
            resize=ResizeOdds(directions=(0.2, 0.7, 0.1), factor=(0.15, 1.5)),
            noise=NoiseOdds(odds=1.0, gaussian=(1, 30), poisson=(0.05, 3)),
            jpeg=JpegOdds(odds=1.0, quality=(30, 95)),
        ),
        second=Pass(
            blur=BlurOdds(odds=0.8, sigma=(0.2, 1.5)),
            resize=ResizeOdds(directions=(0.3, 0.4, 0.3), factor=(0.3, 1.2)),
            noise=NoiseOdds(odds=1.0, gaussian=(1, 25), poisson=(0.05, 2.5)),
            jpeg=JpegOdds(odds=1.0, quality=(30, 95)),
        ),
        sinc_odds=0.8,
    ),
    # What a decent camera and one upload do to a photo.
    "light": Preset(
        first=Pass(
            blur=BlurOdds(odds=0.7, sinc_odds=0.0, sigma=(0.2, 1.6)),
            resize=ResizeOdds(directions=(0.0, 0.5, 0.5), factor=(0.4, 1.0)),
            noise=NoiseOdds(odds=0.6, gaussian=(1, 8), poisson=(0.05, 0.6)),
            jpeg=JpegOdds(odds=0.35, quality=(60, 95)),
        ),
        second=Pass(jpeg=JpegOdds(odds=0.5, quality=(60, 95))),
    ),
    # The reduction that SR benchmarks mean: antialiased, as in Pillow.
    "bicubic": Preset(second=Pass(resize=ResizeOdds(modes=(0, 0, 0, 1)))),
    "denoise": Preset(
        scale=1, first=Pass(noise=NoiseOdds(odds=1.0, gaussian=(1, 50), poisson=(0.05, 4)))
    ),
    "deblur": Preset(
        scale=1,
        first=Pass(
            blur=BlurOdds(odds=1.0, sigma=(0.6, 4.0)),
            noise=NoiseOdds(odds=0.5, gaussian=(1, 5), poisson=(0.05, 0.4)),
        ),
    ),
    # Two JPEGs, as of a photo that is saved again, some of them sharpened before.
    "deblock": Preset(
        scale=1,
        sharpen_odds=0.3,
        first=Pass(jpeg=JpegOdds(odds=0.3, quality=(30, 95))),
        second=Pass(jpeg=JpegOdds(odds=1.0, quality=(10, 70))),
    ),
}


@dataclasses.dataclass(frozen=True)
class PassOutline:
    """What a pass can do at all; `factor` bounds its resize."""

    blur: bool
    factor: Range
    noise: bool
    jpeg: bool


@dataclasses.dataclass(frozen=True)
class Outline:
    """What any preset of a table can do. What none does is left out of the compiled program."""

    scale: int
    sharpen: bool
    first: PassOutline
    second: PassOutline
    sinc: bool
    antialiased: bool


@_register
@dataclasses.dataclass(frozen=True)
class Table:
    """Presets side by side: every number is an array with the presets along its first axis."""

    presets: Preset
    outline: Outline = dataclasses.field(metadata={"static": True})


def make_table(names: Sequence[str]) -> Table:
    """Table of the presets of these names, for `degrade`, which draws one for each sample.

    Raises:
      UserError: no names, an unknown one, or presets of different scales.
    """
    if not names:
        raise UserError(f"no degradation preset given; choose from {', '.join(PRESETS)}")
    for name in names:
        if name not in PRESETS:
            raise UserError(f"no degradation preset {name!r}; choose from {', '.join(PRESETS)}")
    chosen = [PRESETS[name] for name in names]
    scales = {name: preset.scale for name, preset in zip(names, chosen, strict=True)}
    if len(set(scales.values())) > 1:
        listed = ", ".join(f"{name} {scale}" for name, scale in scales.items())
        raise UserError(f"presets of one run share one scale, these do not: {listed}")
    rows = jax.tree.map(lambda *values: np.array(values, np.float32), *chosen)
    return Table(presets=rows, outline=_outline(chosen))


def _outline(presets: Sequence[Preset]) -> Outline:
    def one_pass(passes: Sequence[Pass]) -> PassOutline:
        factors = [_factors(p.resize) for p in passes]
        return PassOutline(
            blur=any(p.blur.odds > 0 for p in passes),
            factor=(min(low for low, _ in factors), max(high for _, high in factors)),
            noise=any(p.noise.odds > 0 for p in passes),
            jpeg=any(p.jpeg.odds > 0 for p in passes),
        )

    resizes = [p.resize for preset in presets for p in (preset.first, preset.second)]
    return Outline(
        scale=presets[0].scale,
        sharpen=any(p.sharpen_odds > 0 for p in presets),
        first=one_pass([p.first for p in presets]),
        second=one_pass([p.second for p in presets]),
        sinc=any(p.sinc_odds > 0 for p in presets),
        antialiased=any(r.modes[MODES.index("antialiased")] > 0 for r in resizes),
    )


def _factors(resize: ResizeOdds) -> Range:
    """Smallest and largest factor that can be drawn."""
    enlarge, shrink, _ = resize.directions
    return (resize.factor[0] if shrink > 0 else 1.0), (resize.factor[1] if enlarge > 0 else 1.0)
