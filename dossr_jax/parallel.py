"""Devices: the mesh, what is split over it, joining several processes and passing notes.

The only file that names mesh axes. Batches are sharded over both axes. Parameters, their EMA and
the optimizer's moments are sharded over `fsdp`; the step gathers a parameter where it is used.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dossr_jax.errors import UserError

DATA, FSDP = "data", "fsdp"
# Smaller arrays (biases, norms) are kept whole: gathering them costs more than they take.
_MIN_SPLIT = 2**14

_FOREVER = 2**31 - 1  # ms, 25 days: JAX ends a process when it misses another one's heartbeat
_TPU_HOSTS = "TPU_WORKER_HOSTNAMES"
# Any of these says that a cluster starts the processes; jax.distributed finds out the rest.
_CLUSTER_VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "COORDINATOR_ADDRESS",
    "SLURM_JOB_NUM_NODES",
    "OMPI_MCA_orte_hnp_uri",
    _TPU_HOSTS,
    "MEGASCALE_COORDINATOR_ADDRESS",
)


def initialize_distributed(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> bool:
    """Join the other processes of a run, if the arguments or the environment name any.

    Slurm, Open MPI, GKE and TPU VMs are recognised by JAX. By hand: JAX_COORDINATOR_ADDRESS
    (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or all three arguments, which go before.
    Call it before anything asks for devices.

    Returns:
      Whether there are such names, be it of a run of one process.

    Raises:
      UserError: the processes do not find each other.
    """
    if jax.distributed.is_initialized():
        return True
    found = {name: os.environ[name] for name in _CLUSTER_VARIABLES if os.environ.get(name)}
    # A Slurm job of one task, or a TPU VM that lists only itself, has no other processes.
    one_task = "SLURM_JOB_NUM_NODES" in os.environ and os.environ.get("SLURM_NTASKS") == "1"
    one_host = found.keys() == {_TPU_HOSTS} and "," not in found[_TPU_HOSTS]
    if coordinator is None and (not found or one_task or one_host):
        return bool(found)
    numbers = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    options: dict[str, Any] = {
        option: int(os.environ[name]) for option, name in numbers.items() if name in os.environ
    }
    given = {"num_processes": processes, "process_id": process}
    options |= {option: value for option, value in given.items() if value is not None}
    try:
        address = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
        jax.distributed.initialize(address, **options)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot join the other processes ({reason}); set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset them all"
        ) from error
    return True


def send(name: str, value: Any) -> None:
    """Leave a value, which is pickled, for :func:`receive` in any process; each name is used once.

    It goes by the service that joined the processes. Collectives of devices would give up where
    one process works for hours while another one waits.
    """
    _client().key_value_set_bytes(name, pickle.dumps(value))


def receive(name: str) -> Any:
    """The value of a name, as soon as some process has sent it."""
    return pickle.loads(_client().blocking_key_value_get_bytes(name, _FOREVER))


def _client() -> Any:
    # JAX's own code and Orbax use it so; there is no public name.
    return distributed.global_state.client


def make_mesh(fsdp: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh (data, fsdp) over the given devices, by default all.

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
    """How an array of the state is split: its last axis, or else the one before, or not at all."""
    ways = mesh.shape[FSDP]
    if math.prod(shape) >= _MIN_SPLIT and ways > 1:
        for axis in range(1, min(2, len(shape)) + 1):
            if shape[-axis] % ways == 0:
                spec: list[Any] = [None] * len(shape)
                spec[-axis] = (FSDP,)
                return PartitionSpec(*spec)
    return PartitionSpec()


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of arrays or of their shapes."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, param_spec(leaf.shape, mesh)), tree)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Split the given axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, (DATA, FSDP)))


def on_each_device(fn: Callable[..., jax.Array], mesh: Mesh) -> Callable[..., jax.Array]:
    """A function of arrays with a batch axis first, applied by every device to its own part.

    Samples must not depend on each other. The compiler splits most functions by itself, but a loop
    over samples it would run in full on every device.
    """
    if mesh.size == 1:
        return fn
    spec = PartitionSpec((DATA, FSDP))
    # A loop's initial carry is constant, hence not split: the check would refuse it.
    return jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def replicated(mesh: Mesh) -> NamedSharding:
    """Keep the whole array on every device."""
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
    """The global array of a host array that is the same in every process."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_host(array: jax.Array) -> np.ndarray:
    """The whole of a distributed array, on every process."""
    if not array.is_fully_addressable:
        assert isinstance(array.sharding, NamedSharding) and isinstance(array.sharding.mesh, Mesh)
        array = jax.jit(lambda x: x, out_shardings=replicated(array.sharding.mesh))(array)
    return np.asarray(array)
