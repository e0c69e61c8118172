"""Plans are of the programs that run, and their accounts add up."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.crashing import make_program
from helpers.models import TINY, tiny_model
from helpers.small import make_batch, make_config
from helpers.systems import small_config

from dossr_jax import parallel, pipeline
from dossr_jax.config import SamplerConfig
from dossr_jax.errors import UserError, require_extra
from dossr_jax.plan import (
    Program,
    efficiency,
    hlo,
    open_slice,
    plan,
    programs,
    restore_program,
    text,
    train_program,
)
from dossr_jax.plan.__main__ import main
from dossr_jax.plan.chips import GPUS
from dossr_jax.plan.kernels import count_kernels, count_launches
from dossr_jax.plan.report import Report
from dossr_jax.plan.search import largest_fit, plan_apart, try_batches
from dossr_jax.systems import SYSTEMS, System, abstract_model
from dossr_jax.training import state as run_state
from dossr_jax.weights import names_and_params

# What is asserted of compiled programs are arguments, counts and sums, not how fast they are.
pytestmark = pytest.mark.usefixtures("compiled_quickly")

ROOT = Path(__file__).parent.parent

HLO = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[], bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %g = ((bf16[8,128]{1,0}), (bf16[32,128]{1,0})) all-gather-start(%x), replica_groups=[64,4]<=[256]
  %d = bf16[32,128]{1,0} all-gather-done(%g)
}

%cond (p: (s32[], bf16[8,128])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: bf16[8,128]) -> f32[4,100] {
  %loop = (s32[], bf16[8,128]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %r = (f32[100]{0}, f32[3,100]{1,0:T(8,128)}) all-reduce(%a, %b), replica_groups={{0,1},{2,3}}, to_apply=%add
  %s = f32[10]{0} reduce-scatter(%r), replica_groups={{0,1,2,3,4}}, to_apply=%add
  %c = f32[6]{0} collective-permute(%s), source_target_pairs={{0,1}}
}
"""  # noqa: E501


def test_collectives_count_loops_groups_and_asynchronous_starts():
    found = hlo.collectives(HLO, devices=256)
    gathered = 5 * 32 * 128 * 2
    assert found["all-gather"] == hlo.Collective(5, gathered, gathered * 3 / 4)
    assert found["all-reduce"] == hlo.Collective(1, 1600, 1600)
    assert found["reduce-scatter"] == hlo.Collective(1, 200, 160)
    assert found["collective-permute"] == hlo.Collective(1, 24, 24)


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 22.50G of 15.75G hbm. Exceeded hbm capacity by 6.75G.",
            22.5 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (400.00G) exceeds available HBM (15.75G).",
            400 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: no figure", None),
    ],
)
def test_a_program_that_the_compiler_refuses_does_not_fit(message, wanted):
    def refuse(**options):
        raise jax.errors.JaxRuntimeError(message)

    traced = SimpleNamespace(lower=lambda: SimpleNamespace(compile=refuse))
    program = Program(trace=lambda: traced, arguments={}, samples=1)
    report = plan(program, open_slice("cpu"))
    assert (report.fits, report.memory, report.refusal) == (False, wanted, message)
    assert message in text.describe(report, {"what": "train", "config": "x", "size": 8})


def make_report(samples=8, fits=True, memory=1.0, **fields):
    options = {"topology": "x", "chip": "x", "devices": 4, "hbm": 16.0, "usable": 15.0}
    options |= {"arguments": {}, "effort": "quick", "seconds": {}} | fields
    return Report(samples=samples, fits=fits, memory=memory, **options)


@pytest.mark.parametrize("first", [4, 8, 28, 40, 64])
@pytest.mark.parametrize("capacity", [3.0, 15.0, 29.9])
def test_search_ends_at_the_largest_batch_that_fits(first, capacity):
    """Memory 2 + batch / 2 plus a bend: a straight line alone would not find it."""

    def compiled(batch):
        memory = 2 + batch / 2 + 0.001 * batch**2
        return make_report(batch, memory <= capacity, memory, usable=capacity)

    fitting = [b for b in range(4, 100, 4) if compiled(b).fits]
    tried = try_batches(compiled, compiled(first), 4)
    assert largest_fit(tried) == max(fitting, default=0)
    assert len(tried) <= 6


@pytest.mark.parametrize(
    ("first", "crashes"), [(4, {8, 28}), (8, {8}), (4, {4, 8, 12}), (64, {32})]
)
def test_search_goes_around_batches_at_which_the_compiler_crashes(first, crashes):
    def compiled(batch):
        if batch in crashes:
            return make_report(batch, False, None, usable=16.0, crashed=True)
        return make_report(batch, 2 + batch / 2 <= 16, 2 + batch / 2, usable=16.0)

    tried = try_batches(compiled, compiled(first), 4)
    assert largest_fit(tried) == (24 if 28 in crashes else 28) and len(tried) <= 6


def test_a_compiler_that_crashes_takes_only_its_own_process_along():
    job, target = functools.partial(make_program, crashes=(2,)), open_slice("cpu")
    report = plan_apart(job, target, 2, quick=True)
    assert report.crashed and not report.fits and report.samples == 2
    described = text.describe(report, {"what": "train", "config": "x", "size": 8})
    assert "the compiler crashed" in described and "NOT KNOWN" in described
    assert "2 (2 per device): ?, refused" in text.describe_search({2: report})
    here, apart = plan(job(target.devices, 3), target), plan_apart(job, target, 3, quick=True)
    assert apart.fits and not apart.crashed
    assert dataclasses.replace(apart, seconds={}) == dataclasses.replace(here, seconds={})


def test_remedies_name_what_can_still_be_changed():
    state = {"parameters": 1e9}
    report = make_report(16, False, arguments=state)
    ways = text.remedy(report, {"remat": "dots", "fsdp": 2})
    assert "parallel.remat full" in ways and "--batch 8" in ways and "parallel.fsdp 4" in ways
    report = make_report(4, False, arguments=state)
    assert "--batch" not in text.remedy(report, {"remat": "full", "fsdp": 4})


def test_the_training_step_planned_is_the_one_that_runs():
    """Its arguments have the shapes, dtypes and places of a real run's, and are counted so."""
    config = make_config("prior")
    program = train_program(config, jax.devices("cpu"), config.data.batch)
    mesh = parallel.make_mesh(1)
    state = run_state.start_run(config, None, mesh, lambda: make_batch()["hr"]).state
    real = {
        "parameters": state.learn,
        "average": state.ema,
        "optimizer": state.opt_state,
        "frozen": state.frozen,
        "batch": parallel.put_batch({k: make_batch()[k] for k in ("hr", "id")}, mesh),
    }
    assert described(program.arguments) == described(real)
    report = plan(program, open_slice("cpu"))
    assert report.fits and report.flops > 0 and not report.collectives
    for name, tree in real.items():
        assert report.arguments[name] == sum(a.nbytes for a in jax.tree.leaves(tree))


def described(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype, a.sharding), tree)


def test_the_restoring_program_planned_is_the_one_that_runs(monkeypatch):
    """The pipeline calls it with arguments like these, but for what whole canvases do not use."""
    calls = []

    class Called(Exception):
        pass

    def record(*arguments):
        calls.append(arguments)
        raise Called

    def program(*arguments):
        raise AssertionError("it is compiled first")

    program.lower = record
    monkeypatch.setattr(pipeline.networks, "restore", program)
    with pytest.raises(Called):
        pictures = [np.zeros((128, 128, 3), np.uint8)] * 2
        pipeline.Upscaler(tiny_model()).restore(pictures, batch_size=2)
    monkeypatch.setattr(programs, "restore", SimpleNamespace(trace=record))
    planned = restore_program(TINY, jax.local_devices(), 2, size=512, dtype="float32")
    with pytest.raises(Called):
        planned.trace()
    real, ours = calls
    assert real[0] == ours[0]
    unused = {"overlap": 0, "margin": 0, "tile_batch": 0}
    assert dataclasses.replace(real[1], **unused) == dataclasses.replace(ours[1], **unused)
    assert described(jax.tree.leaves(real[2:])) == described(jax.tree.leaves(ours[2:]))


def flops(traced):
    return programs.count_flops(traced, "tpu")


def test_a_step_of_the_solver_is_one_evaluation_of_the_networks():
    """And what XLA counts of the whole program holds it once, however many steps there are."""
    devices = jax.devices("cpu")[:1]
    config = dataclasses.replace(TINY, sampler=SamplerConfig(steps=3))
    program = restore_program(config, devices, 1, size=128, dtype="float32")
    whole, step = flops(program.trace()), flops(program.body())
    graphdef, state = nnx.split(tiny_model())
    side, context = 128 // TINY.vae.downscale, np.zeros((1, 2, 8), np.float32)
    x = np.zeros((1, side, side, 4), np.float32)

    @jax.jit
    def evaluate(state, x, t, context):
        return nnx.merge(graphdef, state).predict_noise(x, t, context, x)

    alone = flops(evaluate.trace(state, x, np.zeros(1, np.float32), context))
    assert alone < step < 1.1 * alone and whole > step
    assert program.repeats == 3
    row = efficiency.measure("tiny", config, 128)
    assert row.flops == pytest.approx(whole + 2 * step, rel=0.02) and row.evaluations == 3
    assert row.parameters == sum(p.size for _, p in names_and_params(tiny_model()))
    assert row.weight_bytes == 2 * row.parameters


def test_published_models_have_their_published_sizes():
    """Without text towers. Sources: the releases' checkpoints."""
    found = {n: c for system in SYSTEMS for n, c in system.configurations.items()}
    sizes = {
        "Real-ESRGAN": 16_697_987,
        "SwinIR-M": 11_715_559,
        "SwinIR-L": 28_013_059,
        "DASR": 7_587_855 + 468_143,
    }
    for name, size in sizes.items():
        params = names_and_params(abstract_model(found[name]))
        assert sum(p.size for _, p in params) == size, name
    steps = {n: c.sampler.steps for n, c in found.items() if hasattr(c, "sampler")}
    assert {"DoSSR": 5, "ResShift, 4 steps": 4, "ResShift, 15 steps": 15, "SinSR": 1}.items() <= (
        steps.items()
    )


def test_the_systems_are_compared_without_a_configuration(monkeypatch, tmp_path, capsys):
    small = property(lambda self: {self.title: small_config(self.name)})
    monkeypatch.setattr(System, "configurations", small)
    path = tmp_path / "systems.json"
    assert main(["--systems", "--size", "256", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    assert [row["name"] for row in content["systems"]] == [s.title for s in SYSTEMS]
    rows = {row["system"]: row for row in content["systems"]}
    assert all(row["flops"] > 0 and row["parameters"] > 0 for row in rows.values())
    # Guided, it evaluates its network twice per step.
    assert rows["diffbir"]["evaluations"] == 4 and rows["swinir"]["evaluations"] == 0
    assert all(name in printed for name in ("DoSSR", "StableSR", "no configuration here"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--systems"),
        (["--config", "tiny"], "--topology"),
        (["--systems", "--topology", "cpu"], "--systems"),
        (["--systems", "--search"], "--systems"),
        (["--systems", "--size", "100"], "multiple of"),
    ],
)
def test_what_is_to_be_planned_has_to_be_clear(options, named, capsys):
    assert main(options) == 2
    printed = capsys.readouterr()
    assert named in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    """XLA's analysis counts it once."""
    x = jax.ShapeDtypeStruct(
        (32, 32), np.float32, sharding=parallel.replicated(parallel.make_mesh(1))
    )

    def looped(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: y @ x, x)

    program = Program(
        trace=lambda: jax.jit(looped).trace(x),
        arguments={"batch": x},
        samples=1,
        repeats=7,
        body=lambda: jax.jit(lambda x: x @ x).trace(x),
    )
    assert plan(program, open_slice("cpu")).flops == pytest.approx(7 * 2 * 32**3, rel=0.01)


TRAIN = ["--config", "tiny", "--topology", "cpu", "--what", "train"]


@pytest.fixture
def configs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_command_line_reports_and_its_status_says_whether_it_fits(
    configs, monkeypatch, tmp_path, capsys
):
    """On this host, whose memory is made to be too small."""
    path = tmp_path / "report.json"
    real = open_slice("cpu")
    small = dataclasses.replace(real, chip=dataclasses.replace(real.chip, usable=1000.0))
    monkeypatch.setattr("dossr_jax.plan.__main__.open_slice", lambda *args: small)
    # A stage without degradation, which takes longest to compile.
    prior = tmp_path / "prior.py"
    prior.write_text(
        "import dataclasses\nfrom dossr_jax.training.experiments import load_config\n"
        "from dossr_jax.training.stages import PriorStage\n"
        "CONFIG = dataclasses.replace(load_config('tiny'), stage=PriorStage())\n"
    )
    options = ["--config", str(prior), "--batch", "2", "--json", str(path)]
    assert main([*TRAIN, *options]) == 1
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed and "--parallel.remat full" in printed
    (report,) = json.loads(path.read_text())["reports"]
    assert report["fits"] is False and report["memory"] > 1000
    assert report["flops"] > report["flops_needed_per_sample"] > 0
    assert sum(report["arguments"].values()) < report["memory"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--config", "nothing"], "nothing"),
        (["--topology", "v5e"], "v5e:16x16"),
        (["--topology", "h900:8"], "h900:8"),
        (["--parallel.fsdp"], "parallel.fsdp"),
        (["--set", "parallel.fsdp=7777"], "fsdp"),
        (["--size", "33"], "33"),
        (["--what", "restore", "--size", "1024"], "512"),
    ],
)
def test_bad_input_is_one_line_and_status_2(configs, options, named, capsys):
    assert main([*TRAIN, *options]) == 2
    printed = capsys.readouterr().err
    assert named in printed and printed.startswith("error: ") and printed.count("\n") == 1


def test_a_held_lock_of_libtpu_is_told(monkeypatch):
    def refuse(*args):
        raise jax.errors.JaxRuntimeError("ABORTED: accessing libtpu multi-process lockfile.")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match="another process"):
        open_slice("v5e:2x2")


def test_without_libtpu_its_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"dossr-jax\[plan\]"):
        open_slice("v5e:2x2")


@pytest.mark.slow
def test_a_tpu_slice_is_planned_without_a_tpu(tmp_path):
    """In a process of its own, as libtpu is loaded once and for all."""
    pytest.importorskip("libtpu", reason="extra [plan]")
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "dossr_jax.plan", "--config", "tiny", "--topology", "v5e:2x2"]
    options = ["--batch", "8", "--parallel.fsdp", "2", "--size", "64", "--json", str(path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([*command, *options], cwd=ROOT, env=environment, check=True)
    train, restore = json.loads(path.read_text())["reports"]
    for report in (train, restore):
        assert report["fits"] and report["devices"] == 4 and report["bound"] > 0
        assert 0 < report["memory"] < 2**30
    assert {"all-gather", "all-reduce"} & set(train["collectives"])
    assert train["bounds"].keys() == {"arithmetic", "memory", "links"}


# --- GPUs ---------------------------------------------------------------------------------------

# A compiled module in the form of XLA's for a GPU, at its smallest.
_MODULE = """\
HloModule jit_restore

%fused_reduce (p: bf16[8,4]) -> f32[4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %c = f32[8,4]{1,0} convert(%p)
  %zero = f32[] constant(0)
  ROOT %sum = f32[4]{0} reduce(%c, %zero), dimensions={0}, to_apply=%add
}

%fused_copy (q: bf16[8,4]) -> bf16[4,8] {
  %q = bf16[8,4]{1,0} parameter(0)
  ROOT %t = bf16[4,8]{1,0} transpose(%q), dimensions={1,0}
}

%step (s: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %s = (s32[], bf16[8,4]{1,0}) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%s), index=1
  %conv = (bf16[8,4]{1,0}, u8[1000]{0}) custom-call(%x, %x), custom_call_target="__cudnn$conv"
  %y = bf16[8,4]{1,0} get-tuple-element(%conv), index=0
  %z = f32[4]{0} fusion(%y), kind=kInput, calls=%fused_reduce
  ROOT %out = (s32[], bf16[8,4]{1,0}) tuple(%s, %y)
}

ENTRY %main (a: bf16[8,4]) -> bf16[4,8] {
  %a = bf16[8,4]{1,0} parameter(0)
  %loop = (s32[], bf16[8,4]) while(%a), body=%step, condition=%more
  %b = bf16[8,4]{1,0} get-tuple-element(%loop), index=1
  ROOT %r = bf16[4,8]{1,0} fusion(%b), kind=kLoop, calls=%fused_copy
}
"""


def test_kernels_of_a_gpu_are_counted_with_the_active_steps_alone():
    """Scratch memory of a library is not traffic; what a fusion is made of launches nothing."""
    found = count_kernels(_MODULE, steps=5)
    assert {kind: (k.launches, k.bytes) for kind, k in found.items()} == {
        "convolution": (5, 5 * 3 * 64),
        "reduction": (5, 5 * (64 + 16)),
        "copy": (1, 2 * 64),
    }


def test_a_part_that_is_updated_in_place_is_all_that_moves():
    module = """\
HloModule jit_restore, is_scheduled=true

%put (p: bf16[8,4], q: bf16[8,1]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = bf16[8,1]{1,0} parameter(1)
  %negated = bf16[8,1]{1,0} negate(%q)
  %zero = s32[] constant(0)
  ROOT %u = bf16[8,4]{1,0} dynamic-update-slice(%p, %negated, %zero, %zero)
}

ENTRY %main (a: bf16[8,4], b: bf16[8,1]) -> bf16[8,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[8,1]{1,0} parameter(1)
  ROOT %r = bf16[8,4]{1,0} fusion(%a, %b), kind=kLoop, calls=%put
}
"""
    (found,) = count_kernels(module, steps=5).values()
    assert (found.launches, found.bytes) == (1, 16 + 16)


def test_a_graph_is_launched_once_and_a_loop_as_often_as_it_runs():
    thunks = """\
001: kCustomKernel   [source] first
000: kCommandBuffer  [prev=001]
    002: kCustomKernel [source] in_the_graph
    003: kConvolution  [prev=002] kConvolution
004: kWhile          [prev=000]
condition:
    005: kCustomKernel [source] compare
  body:
    000: kCommandBuffer [source]
        006: kCuDnn [source] attention
    007: kCopy [prev=000] kCopy
008: kCopy           [prev=004] kCopy
"""
    assert count_launches(thunks, _MODULE, steps=5) == 2 + 5 * 3 + 1


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_the_compiler_is_told_of_a_gpu_what_the_report_says_of_it(gpu):
    told = dict(line.split(":", 1) for line in gpu.target_config.splitlines() if ":" in line)
    told = {name.strip(): value.strip() for name, value in told.items()}
    assert float(told["device_memory_size"]) == gpu.hbm > gpu.usable
    assert float(told["memory_bandwidth"]) == gpu.bandwidth
    assert told["device_description_str"] == f'"{gpu.product}"'


def test_a_gpu_is_planned_for_with_jaxs_plugin_alone():
    try:
        require_extra("plan-gpu", "jax_plugins.xla_cuda12")
    except UserError:
        with pytest.raises(UserError, match="planning for a GPU: .*pip install 'dossr-jax"):
            open_slice("h100:1")
    else:
        assert len(open_slice("h100:2").devices) == 2
    with pytest.raises(UserError, match="no topology 'h100:0'.*h100:N, a100:N for N of them"):
        open_slice("h100:0")
