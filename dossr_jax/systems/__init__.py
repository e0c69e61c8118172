"""The systems that this engine runs, one folder or file each, and the files of their models.

A system is described once, by a :class:`System`: networks, conversion, how an LR image is restored,
solver and settings. Restoration, conversion, planning, evaluation and training work from that.
"""

from dossr_jax.systems.base import COMMON_SETTINGS, Geometry, Model, Part, Run, System
from dossr_jax.systems.files import (
    BUFFER_PREFIX,
    is_model,
    metadata_for,
    open_model,
    read_header,
    save_model,
)
from dossr_jax.systems.recognition import recognise
from dossr_jax.systems.registry import (
    SYSTEMS,
    abstract_model,
    build_model,
    load_model,
    prepare_model,
    system_of,
)

__all__ = [
    "BUFFER_PREFIX",
    "COMMON_SETTINGS",
    "SYSTEMS",
    "Geometry",
    "Model",
    "Part",
    "Run",
    "System",
    "abstract_model",
    "build_model",
    "is_model",
    "load_model",
    "metadata_for",
    "open_model",
    "prepare_model",
    "read_header",
    "recognise",
    "save_model",
    "system_of",
]
