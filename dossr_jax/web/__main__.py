"""A page that restores photos, for the browser of this machine."""

from __future__ import annotations

import argparse
import ipaddress
import sys
import threading
from collections.abc import Sequence

from dossr_jax import options
from dossr_jax.commands import command_line, importing
from dossr_jax.errors import require_extra
from dossr_jax.web import limits

_EXAMPLES = """\
examples:
  python -m dossr_jax.web
  python -m dossr_jax.web --model dossr.safetensors --model realesrgan --dtype bfloat16
  python -m dossr_jax.web --host 0.0.0.0 --port 8000 --max-upload 20 --max-pixels 16

The options of sampler and picture are what the page starts with; those it does not show hold for
all its results. Nothing leaves this machine, and nothing is fetched. Uploads and results lie in a
private temporary folder, which is removed at the end. See docs/web.md.
exit status: 2 something could not be read or understood, 130 or 143 stopped by Ctrl-C or SIGTERM.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser; its help is the reference of the options."""
    parser = argparse.ArgumentParser(
        prog="python -m dossr_jax.web",
        description="Serve a page that restores photos: before and after under a slider, several\n"
        "seeds side by side, stages, downloads. Needs the extra 'web'.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; by default (%(default)s) this machine alone can reach it. "
        "There are no passwords and no TLS: put a proxy that has them before any other",
    )
    server.add_argument(
        "--port", type=int, default=7860, help="port, 0 for any free one (default: %(default)s)"
    )
    limits.add_options(parser)
    options.add_options(
        parser, default_model="those of the package", several="a choice on the page"
    )
    return parser


@command_line("stopped; uploads and results are removed")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; it ends by Ctrl-C or SIGTERM."""
    args = make_parser().parse_args(arguments)
    require_extra("web", "gradio")
    with importing():
        from dossr_jax.web.models import Models
        from dossr_jax.web.server import serving

    bounds = limits.limits_of(args)
    with serving(Models(args), bounds, args.host, args.port) as (address, _):
        if not _is_local(args.host):
            print(
                f"note: whoever reaches {args.host} can use the page; it has no passwords",
                file=sys.stderr,
            )
        print(f"open {address} in a browser; Ctrl-C ends", flush=True)
        threading.Event().wait()
    return 0


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    raise SystemExit(main())
