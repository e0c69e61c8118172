"""Devices: the mesh, what is split over it, and joining several processes.

The only file that names mesh axes. Batches are sharded over both axes. Parameters, their EMA and
the optimizer's moments are sharded over `fsdp`; the step gathers a parameter where it is used.
Logical axes of an array follow from its shape.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dossr_jax.errors import UserError

DATA, FSDP = "data", "fsdp"
# Logical axis -> mesh axes. "out" is an array's last axis, "in" the one before it.
RULES: Mapping[str, tuple[str, ...]] = {"batch": (DATA, FSDP), "out": (FSDP,), "in": (FSDP,)}
# Smaller arrays (biases, norms) are kept whole: gathering them costs more than they take.
_MIN_SPLIT = 2**14

# Each set tells that a cluster starts the processes; jax.distributed finds the rest out itself.
_CLUSTER_VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "COORDINATOR_ADDRESS",
    "SLURM_JOB_NUM_NODES",
    "OMPI_MCA_orte_hnp_uri",
    "TPU_WORKER_HOSTNAMES",
    "MEGASCALE_COORDINATOR_ADDRESS",
)


def initialize_distributed() -> None:
    """Join the other processes of a run, where the environment speaks of any.

    Slurm, Open MPI, GKE and TPU VMs are recognised by JAX. By hand: JAX_COORDINATOR_ADDRESS
    (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Call it before anything asks for devices.

    Raises:
      UserError: the processes do not find each other.
    """
    if jax.distributed.is_initialized():
        return
    tasks = int(os.environ.get("SLURM_NTASKS", "2"))
    alone = "SLURM_JOB_NUM_NODES" in os.environ and tasks == 1
    if alone or not any(os.environ.get(name) for name in _CLUSTER_VARIABLES):
        return
    if _single_host():
        return
    options: dict[str, Any] = {
        option: int(os.environ[name])
        for option, name in (
            ("num_processes", "JAX_NUM_PROCESSES"),
            ("process_id", "JAX_PROCESS_ID"),
        )
        if name in os.environ
    }
    try:
        jax.distributed.initialize(os.environ.get("JAX_COORDINATOR_ADDRESS"), **options)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot join the other processes ({reason}); set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset them all"
        ) from error


def _single_host() -> bool:
    """Whether the only sign of a cluster is a TPU VM that names itself alone."""
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    others = [n for n in _CLUSTER_VARIABLES if n != "TPU_WORKER_HOSTNAMES" and os.environ.get(n)]
    return bool(hosts) and "," not in hosts and not others


def make_mesh(fsdp: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh (data, fsdp) over all devices, those given or all there are.

    Raises:
      UserError: the number of devices is no multiple of `fsdp`.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % fsdp:
        raise UserError(
            f"{len(devices)} devices do not divide into groups of parallel.fsdp = {fsdp}; choose "
            "a divisor"
        )
    shape = len(devices) // fsdp, fsdp
    return jax.make_mesh(shape, (DATA, FSDP), axis_types=(AxisType.Auto,) * 2, devices=devices)


def param_spec(shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """How an array of the state is split: its last axis that divides, or not at all."""
    if math.prod(shape) >= _MIN_SPLIT:
        for axis, logical in ((-1, "out"), (-2, "in")):
            names = RULES[logical]
            ways = math.prod(mesh.shape[name] for name in names)
            if len(shape) >= -axis and ways > 1 and shape[axis] % ways == 0:
                spec: list[Any] = [None] * len(shape)
                spec[axis] = names
                return PartitionSpec(*spec)
    return PartitionSpec()


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of arrays or of their shapes."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, param_spec(leaf.shape, mesh)), tree)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The given axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, RULES["batch"]))


def on_each_device(fn: Callable[..., jax.Array], mesh: Mesh) -> Callable[..., jax.Array]:
    """A function of arrays with a batch axis first, applied by every device to its own part.

    For functions in which samples never meet. The compiler splits most of them by itself, but
    but not one that processes samples one by one: that it would run in full on every device.
    """
    if mesh.size == 1:
        return fn
    spec = PartitionSpec(RULES["batch"])
    # What a loop carries starts as constants, which are not split: the check would refuse them.
    return jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch: int, microbatches: int, mesh: Mesh) -> None:
    """Refuse a batch that devices cannot share evenly.

    Raises:
      UserError: `batch` samples in `microbatches` do not divide among the mesh's devices.
    """
    if batch % (microbatches * mesh.size):
        raise UserError(
            f"a batch of {batch} in {microbatches} microbatch(es) does not divide among "
            f"{mesh.size} devices; make data.batch a multiple of {microbatches * mesh.size}"
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays of a batch from this process's share of it."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A host array, the same in every process, spread as `sharding` says."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_host(array: jax.Array) -> np.ndarray:
    """A distributed array, whole, on every process."""
    if not array.is_fully_addressable:
        assert isinstance(array.sharding, NamedSharding) and isinstance(array.sharding.mesh, Mesh)
        array = jax.jit(lambda x: x, out_shardings=replicated(array.sharding.mesh))(array)
    return np.asarray(array)
