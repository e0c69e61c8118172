"""Degradation presets by name: probabilities, and ranges to draw from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dossr_jax.errors import UserError

Range = tuple[float, float]


class BlurOdds(NamedTuple):
    """A blur: with probability `sinc_odds` a sinc filter, else one of kernels.KINDS."""

    odds: float = 0.0
    sinc_odds: float = 0.1
    kinds: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sigma: Range = (0.2, 3.0)
    beta_generalised: Range = (0.5, 4.0)
    beta_plateau: Range = (1.0, 2.0)


class ResizeOdds(NamedTuple):
    """A resize: probabilities of enlarging, shrinking and keeping, and of resize.MODES."""

    directions: tuple[float, float, float] = (0.0, 0.0, 1.0)
    factor: Range = (1.0, 1.0)
    modes: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3, 0.0)


class NoiseOdds(NamedTuple):
    """Gaussian noise of a strength in 8-bit levels, or Poisson noise times a factor."""

    odds: float = 0.0
    gaussian_odds: float = 0.5
    gaussian: Range = (1.0, 30.0)
    poisson: Range = (0.05, 3.0)
    grey_odds: float = 0.4


class JpegOdds(NamedTuple):
    """A JPEG of some quality as libjpeg counts."""

    odds: float = 0.0
    quality: Range = (30.0, 95.0)


class HoleOdds(NamedTuple):
    """Strokes that are missing, one at least: share of all possible ones, length and radius."""

    odds: float = 0.0
    share: Range = (0.05, 0.6)
    length: Range = (0.0, 60.0)
    radius: Range = (1.0, 12.0)


class Pass(NamedTuple):
    """Blur, resize, noise and JPEG, one after the other."""

    blur: BlurOdds = BlurOdds()
    resize: ResizeOdds = ResizeOdds()
    noise: NoiseOdds = NoiseOdds()
    jpeg: JpegOdds = JpegOdds()


class Preset(NamedTuple):
    """Two passes; between noise and JPEG of the second, or after it, the resize to the LR size.

    The first pass scales the HR image by a factor, the second makes it that factor of the LR size.
    After the last resize comes a sinc filter with probability `sinc_odds`, and holes last of all.
    `scale` is the HR side by the LR side. `sharpen_odds`: probability that the HR image is
    sharpened first.
    """

    scale: int = 4
    sharpen_odds: float = 0.0
    first: Pass = Pass()
    second: Pass = Pass()
    sinc_odds: float = 0.0
    holes: HoleOdds = HoleOdds()


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
    "inpaint": Preset(scale=1, holes=HoleOdds(odds=1.0)),
}


def choose_presets(names: Sequence[str]) -> tuple[Preset, ...]:
    """The presets of these names, for `degrade`, which draws one of them per image.

    Raises:
      UserError: no names, an unknown one, or presets of different scales.
    """
    known = ", ".join(PRESETS)
    if not names:
        raise UserError(f"no degradation preset given; choose from {known}")
    for name in names:
        if name not in PRESETS:
            raise UserError(f"no degradation preset {name!r}; choose from {known}")
    chosen = tuple(PRESETS[name] for name in names)
    if len({preset.scale for preset in chosen}) > 1:
        listed = ", ".join(f"{name} {PRESETS[name].scale}" for name in names)
        raise UserError(f"presets of one run share one scale, these do not: {listed}")
    return chosen
