"""Accelerators to plan for: what a chip offers, and slices of them without the hardware.

Figures are those of Google's pages docs.cloud.google.com/tpu/docs/{v5e,v6e,v5p}. XLA keeps a part
of the HBM for itself; `usable` is what its compiler (libtpu 0.0.42) grants a program and names when
one is too large.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPU(Chip):
    """A GPU, and what XLA's compiler wants to know of it; sizes in bytes.

    Attributes:
      product: NVIDIA's name. compute: major version of its compute capability.
      cores: streaming multiprocessors. lanes: float32 units in each of them.
      shared: memory that the threads of a multiprocessor share. l2: cache. clock: in GHz.
    """

    product: str
    compute: int
    cores: int
    lanes: int
    shared: int
    l2: int
    clock: float

    @property
    def target_config(self) -> str:
        """XLA's GpuTargetConfigProto as text."""
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              shared_memory_per_block: 49152
              shared_memory_per_core: {self.shared}
              shared_memory_per_block_optin: {self.shared - 1024}
              threads_per_core_limit: 2048
              core_count: {self.cores}
              fpus_per_core: {self.lanes}
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              memory_bandwidth: {self.bandwidth:.0f}
              l2_cache_size: {self.l2}
              clock_rate_ghz: {self.clock}
              device_memory_size: {self.hbm:.0f}
              cuda_compute_capability {{ major: {self.compute} }}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              driver_version: "12.9.0"
              kernel_mode_driver_version: "12.9.0"
              runtime_version: "12.9.0"
              compile_time_toolkit_version: "12.9.0"
              dnn_version: "9.8.0"
            }}
            platform_name: "CUDA"
            runtime_version {{ major: 12 minor: 8 }}
            dnn_version_info {{ major: 9 minor: 8 }}
            device_description_str: "{self.product}"
        """


# JAX takes this part of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_GPU_SHARE = 0.75
# NVIDIA's data sheets: dense bfloat16, and half of what NVLink states for both directions.
GPUS = {
    "h100": GPU(
        name="h100",
        product="NVIDIA H100 80GB HBM3",
        hbm=84929347584,
        usable=_GPU_SHARE * 84929347584,
        flops=989e12,
        bandwidth=3352.32e9,
        interconnect=450e9,
        compute=9,
        cores=132,
        lanes=128,
        shared=233472,
        l2=52428800,
        clock=1.98,
    ),
    "a100": GPU(
        name="a100",
        product="NVIDIA A100-SXM4-80GB",
        hbm=85100068864,
        usable=_GPU_SHARE * 85100068864,
        flops=312e12,
        bandwidth=2039.04e9,
        interconnect=300e9,
        compute=8,
        cores=108,
        lanes=64,
        shared=167936,
        l2=41943040,
        clock=1.41,
    ),
}
CHIPS = {
    "v5e": _tpu("v5e", hbm=16, usable=15.75, tflops=197, gbps=819, ici_gbps=400),
    "v6e": _tpu("v6e", hbm=32, usable=31.25, tflops=918, gbps=1638, ici_gbps=800),
    "v5p": _tpu("v5p", hbm=95, usable=95.74, tflops=459, gbps=2765, ici_gbps=1200),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices to compile for. `platform` is JAX's name of their kind.

    autotuned: file of algorithms that XLA measured on a GPU of this kind.
    """

    topology: str
    chip: Chip
    platform: str
    devices: tuple[Any, ...]
    autotuned: Path | None = None


def open_slice(topology: str, autotuned: Path | None = None) -> Slice:
    """Devices of a topology: "v5e:16x16" and the like, "h100:8", or "cpu", those of this host.

    A TPU topology needs libtpu, not a TPU; a GPU's needs JAX's CUDA plugin, not a GPU.

    Args:
      autotuned: see :class:`Slice`; of GPUs alone.

    Raises:
      UserError: unknown topology, no compiler for it, another process holds its lock, or there is
        no file `autotuned`.
    """
    if autotuned is not None and not autotuned.is_file():
        raise UserError(f"{autotuned}: no such file; leave out --autotuned, or name XLA's dump")
    if autotuned is not None and topology.partition(":")[0] not in GPUS:
        raise UserError(f"--autotuned is of GPUs, and {topology} is none; leave it out")
    if topology == "cpu":
        devices = jax.devices("cpu")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
        chip = Chip(name="cpu", hbm=memory, usable=memory)
        return Slice(topology, chip, "cpu", tuple(devices))
    generation = topology.partition(":")[0]
    if generation in GPUS and (match := re.fullmatch(r"\w+:([1-9]\d*)", topology)):
        gpu = GPUS[generation]
        return Slice(topology, gpu, "cuda", _gpu_devices(gpu, int(match[1])), autotuned)
    if not re.fullmatch(r"\w+:\d+(x\d+)+", topology) or generation not in CHIPS:
        known = ", ".join(f"{name}:..." for name in CHIPS)
        raise UserError(
            f"no topology {topology!r}; give one of {known} (as v5e:16x16), "
            f"{', '.join(f'{name}:N' for name in GPUS)} for N of them in a node, or cpu"
        )
    return Slice(topology, CHIPS[generation], "tpu", _tpu_devices(topology))


def _gpu_devices(gpu: GPU, count: int) -> tuple[Any, ...]:
    from jax.experimental import topologies

    try:
        require_extra("cuda13", "jax_plugins.xla_cuda13")
    except UserError:
        require_extra("plan-gpu", "jax_plugins.xla_cuda12", wanted_by="planning for a GPU")
    try:
        topology = topologies.get_topology_desc(
            gpu.name, "cuda", target_config=gpu.target_config, topology=f"1x1x{count}"
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"XLA's compiler for CUDA cannot be used ({str(error).splitlines()[0]}); install the "
            "extra plan-gpu again"
        ) from error
    return tuple(topology.devices)


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
        # A host has four chips, unless the slice is smaller.
        sides = [int(side) for side in topology.partition(":")[2].split("x")]
        host = {"chips_per_host_bounds": [*sides, 1][:3]} if math.prod(sides) < 4 else {}
        return tuple(topologies.get_topology_desc(topology, "tpu", **host).devices)
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
