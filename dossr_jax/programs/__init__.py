"""Programs that are stored: traced once, kept as data, found again by what they depend on.

A stored program is StableHLO, which XLA compiles for the devices at hand; together with JAX's cache
of what XLA compiled, a start neither traces nor compiles. Nothing in it is run by Python.
"""

from dossr_jax.programs.calling import Loaded, Programs, folder_for, shapes_of
from dossr_jax.programs.description import about, code_hash, describe
from dossr_jax.programs.exporting import export_program
from dossr_jax.programs.files import Stored, read_program, write_program

__all__ = [
    "Loaded",
    "Programs",
    "Stored",
    "about",
    "code_hash",
    "describe",
    "export_program",
    "folder_for",
    "read_program",
    "shapes_of",
    "write_program",
]
