"""Accelerators to plan for: what a chip offers, and slices of them without the hardware.

Figures are those of Google's pages docs.cloud.google.com/tpu/docs/{v5e,v6e,v5p}. XLA keeps a part
of the HBM for itself; `usable` is what its compiler (libtpu 0.0.42) grants a program and names when
one is too large.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

import jax

from dossr_jax.errors import UserError, require_extra

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device.

    Attributes:
      hbm, usable: bytes of memory, and how many of them a program may take.
      flops: peak bfloat16 operations per second; None where unknown, as for a CPU.
      bandwidth: of its memory, bytes per second.
      interconnect: between chips, bytes per second that one chip sends over all its links.
    """

    name: str
    hbm: float
    usable: float
    flops: float | None = None
    bandwidth: float | None = None
    interconnect: float | None = None


def _tpu(
    name: str, *, hbm: float, usable: float, tflops: float, gbps: float, ici_gbps: float
) -> Chip:
    """A row of Google's tables; they state the links' two directions together."""
    return Chip(
        name=name,
        hbm=hbm * GIB,
        usable=usable * GIB,
        flops=tflops * 1e12,
        bandwidth=gbps * 1e9,
        interconnect=ici_gbps / 2 * 1e9,
    )


CHIPS = {
    "v5e": _tpu("v5e", hbm=16, usable=15.75, tflops=197, gbps=819, ici_gbps=400),
    "v6e": _tpu("v6e", hbm=32, usable=31.25, tflops=918, gbps=1638, ici_gbps=800),
    "v5p": _tpu("v5p", hbm=95, usable=95.74, tflops=459, gbps=2765, ici_gbps=1200),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices to compile for. `platform` is JAX's name of their kind."""

    topology: str
    chip: Chip
    platform: str
    devices: tuple[Any, ...]


def open_slice(topology: str) -> Slice:
    """Devices of a topology: "v5e:16x16" and the like, or "cpu", those of this host.

    A TPU topology needs libtpu, not a TPU.

    Raises:
      UserError: unknown topology, no libtpu, or another process holds its lock.
    """
    if topology == "cpu":
        devices = jax.devices("cpu")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
        chip = Chip(name="cpu", hbm=memory, usable=memory)
        return Slice(topology, chip, "cpu", tuple(devices))
    generation = topology.partition(":")[0]
    if not re.fullmatch(r"\w+:\d+(x\d+)+", topology) or generation not in CHIPS:
        known = ", ".join(f"{name}:..." for name in CHIPS)
        raise UserError(f"no topology {topology!r}; give one of {known} (as v5e:16x16), or cpu")
    return Slice(topology, CHIPS[generation], "tpu", _tpu_devices(topology))


def _tpu_devices(topology: str) -> tuple[Any, ...]:
    from jax.experimental import topologies

    require_extra("plan", "libtpu")
    # Compiling touches no TPU, so it need not wait for another process that holds libtpu's lock.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Without these libtpu asks the network for the machine it is on, and says what it misses.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    try:
        return tuple(topologies.get_topology_desc(topology, "tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "libtpu" in message and "lock" in message:
            raise UserError(
                "another process on this machine is using libtpu, as any JAX program does that is "
                "not told JAX_PLATFORMS=cpu; wait until it ends, or set "
                "ALLOW_MULTIPLE_LIBTPU_LOAD=1"
            ) from error
        raise UserError(
            f"libtpu knows no topology {topology!r} ({message.splitlines()[0]}); a slice of "
            "v5e and v6e has two sides (16x16), one of v5p three (4x4x4)"
        ) from error
