"""`python -m dossr_jax.evaluate`."""

import sys

from dossr_jax.evaluate.cli import main

if __name__ == "__main__":
    sys.exit(main())
