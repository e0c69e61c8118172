"""Restore photos: `python infer.py INPUT... --output DIR`. See `--help`."""

from dossr_jax.commands import restore

if __name__ == "__main__":
    raise SystemExit(restore())
