"""Train one stage of a model: `python train.py --config NAME ...`. See `--help`."""

from dossr_jax.commands import train

if __name__ == "__main__":
    raise SystemExit(train())
