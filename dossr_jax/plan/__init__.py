"""Will a job fit? Programs compiled ahead of time for devices that are not there.

`chips` knows the accelerators, `programs` builds the very training step and restoring program
with shapes in place of arrays, `hlo` reads what XLA made of them, `report` says what that means,
`trials` and `search` do so at several batches.
`python -m dossr_jax.plan --help`.
"""

from dossr_jax.plan.chips import Chip, Slice, open_slice
from dossr_jax.plan.programs import Program, restore_program, sample_flops, train_program
from dossr_jax.plan.report import Report, plan

__all__ = [
    "Chip",
    "Program",
    "Report",
    "Slice",
    "open_slice",
    "plan",
    "restore_program",
    "sample_flops",
    "train_program",
]
