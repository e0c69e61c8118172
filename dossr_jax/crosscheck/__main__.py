"""`python -m dossr_jax.crosscheck`."""

import sys

from dossr_jax.crosscheck.cli import main

sys.exit(main())
