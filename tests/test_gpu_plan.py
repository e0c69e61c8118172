"""The recorded plan for a GPU is that of this program, and within its budget."""

import copy
import json

import jax
import pytest

from benchmarks import gpu_plan

RECORD = json.loads(gpu_plan.BUDGET.read_text())


@pytest.mark.slow
def test_the_record_is_of_this_program():
    """Where it is not: run benchmarks/gpu_plan.py, look at what changed, and record it."""
    if RECORD["versions"]["jax"] == jax.__version__:  # others write the same program differently
        assert gpu_plan.program_digest() == RECORD["program"]


def test_the_record_has_every_batch_and_what_made_it():
    assert [found["batch"] for found in RECORD["batches"]] == list(gpu_plan.BATCHES)
    assert (RECORD["config"], RECORD["topology"]) == (gpu_plan.CONFIG, gpu_plan.TOPOLOGY)
    assert {"jax", "jaxlib", "jax_cuda12_plugin"} <= RECORD["versions"].keys()


def test_more_than_the_budget_is_named():
    budget = RECORD["batches"][0]
    assert gpu_plan.over_budget(budget, budget) == []
    found = copy.deepcopy(budget)
    found["kernels"] = 2 * budget["kernels"]
    (line,) = gpu_plan.over_budget(found, budget)
    assert line == f"batch 1: kernels {found['kernels']}, {budget['kernels']} allowed"
