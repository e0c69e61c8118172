"""Networks of diffusers: its folders and live modules as ours, and back.

`configs` and `scheduler` translate config.json files, `hint` the one part of DoSSR's ControlNet
that differs, `networks` whole networks by their tables. `modules` builds ours, `folder` reads and
writes folders.
"""

from dossr_jax.systems.dossr.diffusers.folder import (
    read_as_ldm,
    read_diffusers,
    write_part,
    write_scheduler,
)
from dossr_jax.systems.dossr.diffusers.modules import Networks, build_networks, tensors_of
from dossr_jax.systems.dossr.diffusers.networks import (
    NAMES,
    Configs,
    Part,
    Source,
    export_model,
    export_networks,
    left_out,
    read_model,
    read_networks,
)
from dossr_jax.systems.dossr.diffusers.scheduler import read_fields, scheduler_fields

__all__ = [
    "NAMES",
    "Configs",
    "Networks",
    "Part",
    "Source",
    "build_networks",
    "export_model",
    "export_networks",
    "left_out",
    "read_as_ldm",
    "read_diffusers",
    "read_fields",
    "read_model",
    "read_networks",
    "scheduler_fields",
    "tensors_of",
    "write_part",
    "write_scheduler",
]
