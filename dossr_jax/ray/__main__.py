"""Restore folders on a Ray cluster: the command line of infer.py, with workers elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dossr_jax import cli
from dossr_jax.commands import command_line
from dossr_jax.ray.cluster import add_options, check_options
from dossr_jax.ray.engine import Cluster

_EXAMPLES = """\
examples:
  python -m dossr_jax.ray album/ --output restored
  python -m dossr_jax.ray album/ --output restored --address local --workers 2
  python -m dossr_jax.ray /shared/album --output /shared/restored --address ray://head:10001
  python -m dossr_jax.ray album/ --output restored --accelerator tpu --accelerators-per-worker 4

INPUT, DIR and the model are paths that every node sees. Results, their names and dossr.jsonl are
those of infer.py, and each of the two goes on where the other one was stopped. What a worker that
dies was doing is done again by another one.
exit status: that of infer.py. See docs/clusters.md.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser; its help is the reference of the options."""
    parser = argparse.ArgumentParser(
        prog="python -m dossr_jax.ray",
        description="Restore photos with the workers of a Ray cluster.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_arguments(parser)
    add_options(parser)
    return parser


@command_line("stopped; results so far are complete, the same command goes on from there")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = cli.parse(make_parser(), arguments)
    check_options(args)
    return cli.restore(args, Cluster())


if __name__ == "__main__":
    raise SystemExit(main())
