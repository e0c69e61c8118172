"""A job whose compiler crashes at some batches, as libtpu does: plan_apart starts it by name."""

import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from dossr_jax.plan import Program


def make_program(devices, samples, *, crashes):
    def compiler(**options):
        if samples in crashes:
            os.kill(os.getpid(), signal.SIGSEGV)
        return jax.jit(jnp.sin).lower(jnp.zeros(samples)).compile()

    traced = SimpleNamespace(lower=lambda: SimpleNamespace(compile=compiler))
    return Program(trace=lambda: traced, arguments={}, samples=samples)
