"""The step is one function: devices, parts, recomputation and dtype change how, not what."""

import json

import numpy as np
import pytest
from helpers.distributed_worker import run_python
from helpers.small import make_batch, make_config

from dossr_jax import parallel
from dossr_jax.config import ParallelConfig
from dossr_jax.errors import UserError
from dossr_jax.training import state as run_state
from dossr_jax.training import step as run_step

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS = 3


def losses(stage="dossr", **changes):
    """Losses of a few steps, and the weights after them."""
    config = make_config(stage, learn_decoder=stage == "dossr", **changes)
    mesh = parallel.make_mesh(config.parallel.fsdp)
    run = run_state.start_run(config, None, mesh, lambda: make_batch()["hr"])
    step = run_step.make_train_step(run.config, run.graphdef, mesh)
    state, out = run.state, []
    for i in range(STEPS):
        state, metrics = step(state, parallel.put_batch(make_batch(i), mesh))
        out.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(out), {n: parallel.to_host(v) for n, v in state.learn.items()}


@pytest.fixture(scope="module")
def plain():
    return losses()


def assert_same(a, b, rtol):
    np.testing.assert_allclose(a[0], b[0], rtol=rtol)
    for name, value in a[1].items():
        # Adam divides by the gradient's size: where that is rounding alone, so is the update.
        np.testing.assert_allclose(value, b[1][name], atol=3e-4, err_msg=name)


def test_accumulating_parts_equals_the_whole_batch(plain):
    assert_same(plain, losses(optimizer={"microbatches": 2}), rtol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputation_changes_nothing(plain, remat):
    assert_same(plain, losses(parallel=ParallelConfig(remat=remat)), rtol=1e-5)


def test_bfloat16_is_close(plain):
    config = ParallelConfig(dtype="bfloat16", frozen_dtype="bfloat16")
    got, learn = losses(parallel=config)
    np.testing.assert_allclose(got[:, 0], plain[0][:, 0], rtol=0.03)
    assert all(value.dtype == np.float32 for value in learn.values())


_CODE = """
import json, sys
from test_training_step import losses
from dossr_jax.config import ParallelConfig
out = {fsdp: losses(parallel=ParallelConfig(fsdp=fsdp))[0].tolist() for fsdp in (1, 2)}
print(json.dumps(out))
"""


def test_devices_and_their_layout_change_nothing(plain, monkeypatch):
    result = run_python(_CODE, devices=4)
    for fsdp, got in json.loads(result.stdout.splitlines()[-1]).items():
        np.testing.assert_allclose(got, plain[0], rtol=1e-5, err_msg=f"fsdp {fsdp}")


def test_large_arrays_are_split_and_small_ones_are_not():
    code = """
import jax
from dossr_jax import parallel
mesh = parallel.make_mesh(2)
assert dict(mesh.shape) == {"data": 2, "fsdp": 2}
spec = jax.sharding.PartitionSpec
for shape, want in [
    ((3, 3, 64, 64), spec(None, None, None, ("fsdp",))),
    ((3, 3, 4096, 3), spec(None, None, ("fsdp",), None)),
    ((255, 255), spec()),
    ((64,), spec()),
    ((), spec()),
]:
    assert parallel.param_spec(shape, mesh) == want, (shape, parallel.param_spec(shape, mesh))
"""
    run_python(code, devices=4)


def test_what_devices_cannot_share_is_refused():
    mesh = parallel.make_mesh(1)
    parallel.check_batch(4, 2, mesh)
    with pytest.raises(UserError, match="multiple of 3"):
        parallel.check_batch(4, 3, mesh)
    with pytest.raises(UserError, match="parallel.fsdp = 3"):
        parallel.make_mesh(3)
