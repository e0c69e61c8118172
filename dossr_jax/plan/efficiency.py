"""What restoring one image costs in every system, at the sizes that were published.

Programs are traced with shapes in place of arrays and lowered, not compiled: nothing is allocated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax

from dossr_jax import systems, weights
from dossr_jax.config import ModelConfig
from dossr_jax.pipeline import DTYPES, make_settings
from dossr_jax.plan.programs import check_size, restore_program, restoring_flops

# Often compared with; their networks are not here.
ABSENT = ("StableSR", "SeeSR")
_DTYPE = "bfloat16"
HEAD = f"{'':20}{'parameters':>12}{'weights':>12}{'evaluations':>13}{'operations':>15}"


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """What an image costs in a published model.

    Attributes:
      size: side of the restored image in pixels.
      parameters: of all networks but a text tower, as the embeddings of the stored prompts travel
        with the model.
      weight_bytes: of these parameters in bfloat16.
      evaluations: of the network that denoises; 0 where there is none.
      flops: operations as the program is written, before XLA's optimisations.
    """

    name: str
    system: str
    size: int
    parameters: int
    weight_bytes: int
    evaluations: int
    flops: float

    @property
    def line(self) -> str:
        """A row below HEAD."""
        return (
            f"{self.name:20}{self.parameters / 1e6:>10.2f} M{self.weight_bytes / 1e6:>9.1f} MB"
            f"{self.evaluations or '-':>13}{self.flops / 1e12:>9.3f} TFLOP"
        )


def measure_systems(size: int) -> Iterator[Efficiency]:
    """Measure the published models of all systems, each when it is asked for.

    Raises:
      UserError: a size that one of them cannot have, before any is measured.
    """
    models = [pair for system in systems.SYSTEMS for pair in system.configurations.items()]
    for _, config in models:
        check_size(config, size)
    return (measure(name, config, size) for name, config in models)


def measure(name: str, config: ModelConfig, size: int) -> Efficiency:
    """Measure a model of any system."""
    system, dtype = systems.system_of(config), DTYPES[_DTYPE]
    model = systems.abstract_model(config, dtype=dtype, param_dtype=dtype)
    params = [p for n, p in weights.names_and_params(model) if not n.startswith("text.")]
    return Efficiency(
        name=name,
        system=system.name,
        size=size,
        parameters=sum(p.size for p in params),
        weight_bytes=sum(p.size * p.dtype.itemsize for p in params),
        evaluations=system.evaluations(make_settings(system.sampler(config))),
        flops=restoring_flops(
            restore_program(config, jax.devices("cpu")[:1], 1, size=size, dtype=_DTYPE), devices=1
        ),
    )
