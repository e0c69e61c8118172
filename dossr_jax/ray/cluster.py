"""A Ray cluster, and how many workers of which kind it has room for."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import jax

from dossr_jax.errors import UserError, require_extra
from dossr_jax.pipeline import MODELS

KINDS = {"gpu": "GPU", "tpu": "TPU", "cpu": "CPU"}  # Ray's names of them
AUTO = "auto"
_EXTRAS = {"gpu": "cuda12", "tpu": "tpu"}


@dataclasses.dataclass(frozen=True)
class Workers:
    """Actors with a model each.

    Attributes:
      count: how many. kind: of KINDS. each: accelerators, or CPU cores, that each reserves.
    """

    count: int
    kind: str
    each: int

    def __str__(self) -> str:
        return f"{self.count} worker(s) with {self.each} {KINDS[self.kind]} each"

    @property
    def resources(self) -> dict[str, Any]:
        """What each reserves, as options of Ray."""
        if self.kind == "cpu":
            return {"num_cpus": self.each}
        if self.kind == "gpu":
            return {"num_cpus": 0, "num_gpus": self.each}
        return {"num_cpus": 0, "resources": {KINDS[self.kind]: self.each}}

    def check_devices(self) -> None:
        """Call it in a worker before it uses JAX.

        Raises:
          UserError: JAX does not see the accelerator that the worker was given.
        """
        if self.kind == "cpu":
            jax.config.update("jax_platforms", "cpu")  # Others may use an accelerator of its node.
        elif jax.default_backend() == "cpu":
            raise UserError(
                f"a worker has a {KINDS[self.kind]} that JAX does not see; install "
                f"'dossr-jax[{_EXTRAS[self.kind]}]' on every node"
            )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Flags for :func:`connect` and :func:`plan_workers`."""
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--address",
        default=AUTO,
        help="'auto' for the cluster that this machine belongs to or RAY_ADDRESS names, 'local' "
        "for one that ends with this command, or HOST:PORT or ray://HOST:PORT of one "
        "(default: auto)",
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes with a model each (default: as many as the cluster has accelerators for; "
        "on CPUs one per node)",
    )
    group.add_argument(
        "--accelerator",
        choices=(AUTO, *KINDS),
        default=AUTO,
        help="what workers run on (default: the first of gpu, tpu and cpu that the cluster has)",
    )
    group.add_argument(
        "--accelerators-per-worker",
        type=int,
        metavar="N",
        help="GPUs, TPU chips or CPU cores of a worker (default: 1 GPU; all TPU chips of a node; "
        "the cores of a node, or an equal part of them where --workers asks for more)",
    )


def check_options(args: argparse.Namespace) -> None:
    """Check that Ray is installed, and numbers of parsed options.

    Raises:
      UserError: what is missing or wrong.
    """
    for name in ("workers", "accelerators_per_worker"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: give a number from 1 up, or leave it out")
    require_extra("ray", "ray", "pandas", "pyarrow")


def connect(address: str) -> None:
    """Connect to a cluster, or start one with the address "local"; a connection there is stays.

    Raises:
      UserError: it cannot be reached.
    """
    import ray  # pyright: ignore[reportMissingImports]
    import ray.data  # pyright: ignore[reportMissingImports] - sets the level of its messages

    if ray.is_initialized():
        return
    _knock(address)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises almost anything.
        raise _unreachable(address, error) from error
    if main:
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own in place of the command's.
    # Its bars and reports of every data set would fall between our lines.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _knock(address: str) -> None:
    """Check that somebody listens at HOST:PORT: Ray would try for minutes.

    Of "auto", too: the file that tells Ray of a cluster on this machine outlives it.
    """
    place = (os.environ.get("RAY_ADDRESS") if address == AUTO else None) or address
    try:
        if place == AUTO:
            from ray._private import services  # pyright: ignore[reportMissingImports]

            place = services.canonicalize_bootstrap_address_or_die(place)
        host, colon, port = place.removeprefix("ray://").rpartition(":")
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:  # ConnectionError is one
        raise _unreachable(address, error, place) from error


def _unreachable(address: str, error: Exception, place: str = "") -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    at = f"{place}: " if place != address and place else ""
    return UserError(
        f"--address {address}: no Ray cluster can be reached ({at}{reason}); start one with "
        "'ray start --head', or give --address local"
    )


def plan_workers(
    accelerator: str = AUTO, each: int | None = None, count: int | None = None
) -> Workers:
    """Workers for the nodes of the cluster; what is not given is chosen by what they have."""
    import ray  # pyright: ignore[reportMissingImports]

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return choose_workers(nodes, accelerator, each, count)


def choose_workers(
    nodes: list[dict[str, float]], accelerator: str, each: int | None, count: int | None
) -> Workers:
    """See :func:`plan_workers`; `nodes` are resources by Ray's names."""
    kind = accelerator
    if kind == AUTO:
        there = (kind for kind, name in KINDS.items() if any(node.get(name) for node in nodes))
        kind = next(there, "cpu")
    have = [n for node in nodes if (n := int(node.get(KINDS[kind], 0)))]
    room = functools.partial(_room, have)
    if each is None:
        each = {"gpu": 1, "tpu": min(have, default=1), "cpu": min(have, default=1)}[kind]
        if kind == "cpu" and count is not None:
            sizes = range(max(have, default=1), 0, -1)
            each = next((size for size in sizes if room(size) >= count), 1)
    return Workers(count or room(each) or 1, kind, each)


def _room(have: list[int], each: int) -> int:
    return sum(number // each for number in have)


def path_of_model(model: str | Path) -> str:
    """A model's name, or its path for processes with another working directory."""
    return str(model) if str(model) in MODELS else str(Path(model).absolute())
