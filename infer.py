"""Restore photos: `python infer.py INPUT... --output DIR`. See `--help`."""

from dossr_jax.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
