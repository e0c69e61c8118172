"""Will a job fit? Programs compiled ahead of time for devices that are not there.

`chips` knows the accelerators, `programs` builds the training step and the restore program with
shapes in place of arrays, `hlo` reads what XLA made of them, `report` and `text` say what that
means, `search` does so at several batches. `efficiency` says what an image costs in each system.
`python -m dossr_jax.plan --help`.
"""

from dossr_jax.plan.chips import open_slice
from dossr_jax.plan.programs import Program, restore_program, sample_flops, train_program
from dossr_jax.plan.report import plan

__all__ = ["Program", "open_slice", "plan", "restore_program", "sample_flops", "train_program"]
