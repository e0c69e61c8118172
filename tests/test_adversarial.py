"""The adversarial stages: what each of the two players learns from, and what is exported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.models import randomised
from helpers.small import SMALL, make_batch, make_config
from helpers.systems import small_config

from dossr_jax import parallel, systems, weights
from dossr_jax.config import ConfigError
from dossr_jax.models.efficientnet import EfficientNetLite0
from dossr_jax.training import params as run_params
from dossr_jax.training import state as run_state
from dossr_jax.training import step as run_step
from dossr_jax.training.stages import adversarial

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# What the generator of each stage is made of.
GENERATORS = {
    "adversarial": ("control.", "unet.up."),
    "rrdb_adversarial": ("rrdb.conv_last.",),  # all that has a gradient where it starts at zero
}


@pytest.fixture(scope="module", params=GENERATORS)
def run(request):
    """A run of each stage at step 0 with random features, and its mesh."""
    with pytest.MonkeyPatch.context() as patch:
        features = randomised(lambda rngs: EfficientNetLite0(rngs=rngs), seed=3)
        patch.setattr(adversarial, "feature_network", lambda: features)
        config = make_config(request.param, discriminator_features=8)
        mesh = parallel.make_mesh(1)
        yield run_state.start_run(config, None, mesh, lambda: make_batch()["hr"]), mesh


@pytest.fixture(scope="module")
def gradients(run):
    """Function from a stage's fields to the gradients of its loss, by name."""
    start, mesh = run
    make_inputs = run_step.make_inputs(start.config, mesh)
    batch = parallel.put_batch(make_batch(), mesh)

    def of(**fields):
        stage = dataclasses.replace(start.config.stage, **fields)

        def loss(learn):
            model = run_params.build(start.graphdef, start.state.frozen | learn)
            return jnp.mean(stage.loss(model, make_inputs(start.state.key, batch), None)[0])

        # Which gradients there are does not depend on how fast they come.
        quick = {"xla_backend_optimization_level": 0}
        return jax.jit(jax.grad(loss), compiler_options=quick)(start.state.learn)

    return of


def largest(gradients, prefix):
    return max(
        float(np.abs(value).max()) for name, value in gradients.items() if name.startswith(prefix)
    )


def test_neither_player_learns_from_the_others_loss(run, gradients):
    generator = GENERATORS[run[0].config.stage.name]
    off = {"pixel_weight": 0.0, "feature_weight": 0.0, "adversarial_weight": 0.0}
    discriminator_only, both = gradients(**off), gradients(**off | {"adversarial_weight": 1.0})
    learning = {name for name in both if not name.startswith("discriminator.")}
    assert all(largest(discriminator_only, name) == 0 for name in learning)
    assert all(largest(both, part) > 0 for part in generator)
    for name, value in both.items():
        if name.startswith("discriminator."):
            np.testing.assert_allclose(value, discriminator_only[name], rtol=1e-4, atol=1e-7)


def test_a_step_moves_both_players_and_what_is_exported_is_the_model(run):
    start, mesh = run
    before = {name: parallel.to_host(value) for name, value in start.state.learn.items()}
    frozen = set(start.state.frozen)
    assert any(name.startswith("feature_net.") for name in frozen)
    step = run_step.make_train_step(start.config, start.graphdef, mesh)
    state = jax.tree.map(jnp.copy, start.state)  # the step donates it
    state, metrics = step(state, parallel.put_batch(make_batch(), mesh))
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert {name.split(".")[0] for name in before} == {
        part.split(".")[0] for part in (*GENERATORS[start.config.stage.name], "discriminator.")
    }
    for prefix in (*GENERATORS[start.config.stage.name], "discriminator."):
        assert any(
            (parallel.to_host(value) != before[name]).any()
            for name, value in state.learn.items()
            if name.startswith(prefix)
        )
    model = run_state.trained_model(start._replace(state=state))
    plain = systems.abstract_model(SMALL)
    assert [n for n, _ in weights.names_and_params(model)] == [
        n for n, _ in weights.names_and_params(plain)
    ]
    assert isinstance(model, nnx.Module) and model.config == start.config.model


def test_adapters_of_a_one_step_model_learn_from_its_own_step(monkeypatch):
    """One-step training with adapters: nothing else of the model changes."""
    features = randomised(lambda rngs: EfficientNetLite0(rngs=rngs), seed=3)
    monkeypatch.setattr(adversarial, "feature_network", lambda: features)
    config = make_config(
        "adversarial",
        model=small_config("pisasr"),
        discriminator_features=8,
        learn_decoder=False,
        adapters=("semantic_lora",),
    )
    mesh = parallel.make_mesh(1)
    start = run_state.start_run(config, None, mesh, lambda: make_batch()["hr"])
    learnt = {name for name in start.state.learn if not name.startswith("discriminator.")}
    assert learnt and all(name.startswith("semantic_lora.") for name in learnt)
    step = run_step.make_train_step(start.config, start.graphdef, mesh)
    before = {name: np.array(start.state.learn[name]) for name in learnt}
    state, _ = step(start.state, make_batch())
    changed = {name for name in learnt if (before[name] != np.array(state.learn[name])).any()}
    assert any(name.endswith(".up") for name in changed)  # the factors that start at zero
    with pytest.raises(ConfigError, match="only its adapters learn; set stage.learn_decoder=false"):
        make_config("adversarial", model=small_config("pisasr"))
