"""Compare this implementation, stage by stage, with arrays stored by a PyTorch one.

`python -m dossr_jax.crosscheck FOLDER`; docs/parity.md says what is compared with what.
"""

from dossr_jax.crosscheck.cli import main

__all__ = ["main"]
