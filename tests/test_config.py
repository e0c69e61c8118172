"""Configurations: every field refuses what it cannot be, in one line with field, value, remedy."""

import dataclasses
import json
import types
import typing

import pytest

from dossr_jax import config
from dossr_jax.config import (
    ConfigError,
    DataConfig,
    DoSSRConfig,
    LatentConfig,
    ModelConfig,
    SamplerConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
    UNetConfig,
    from_json,
    to_json,
    with_changes,
)
from dossr_jax.pipeline import Settings
from dossr_jax.training.stages import DoSSRStage

STAGES = [StageConfig.known[n] for n in ("rrdb", "vae", "prior", "dossr")]
CLASSES = [
    *(getattr(config, name) for name in config.__all__ if name.endswith("Config")),
    *STAGES,
    Settings,
]
GIVEN = {
    TrainConfig: {"stage": DoSSRStage()},
    Settings: {"sampler": SamplerConfig()},
    StageConfig: {"name": "any"},
    ModelConfig: {"system": "any"},
    LatentConfig: {"system": "any"},
}


def plain(hint):
    """The types that a field may have, without annotations."""
    if isinstance(hint, types.UnionType):
        return [t for part in typing.get_args(hint) for t in plain(part)]
    if typing.get_origin(hint) is typing.Annotated:
        return plain(typing.get_args(hint)[0])
    return [hint]


def wrong_values(hint):
    """Values of another type than a field has, and out of any range."""
    kinds = plain(hint)
    wrong = [object()]
    if str not in kinds and not any(typing.get_origin(k) is typing.Literal for k in kinds):
        wrong.append("wide")
    if any(typing.get_origin(k) is typing.Literal for k in kinds):
        wrong += ["karras", -7]
    if int in kinds:
        wrong += [-1, 2.5, True, 2**70]
    if float in kinds:
        wrong += [float("nan"), float("inf"), True]
    if bool in kinds:
        wrong += [1, "yes"]
    if any(typing.get_origin(k) is tuple for k in kinds):
        wrong += [({},), 3, [1]]
    if any(dataclasses.is_dataclass(k) for k in kinds):
        wrong += [{}, 1]
    return wrong


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_refuses_every_wrong_value_in_one_line_that_names_it(cls):
    given = GIVEN.get(cls, {})
    cls(**given)
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        for value in wrong_values(hints[field.name]):
            if value == 2**70 and _unbounded(cls, field.name):
                continue
            with pytest.raises(ConfigError) as error:
                cls(**given | {field.name: value})
            text = str(error.value)
            assert text.startswith(field.name) and "\n" not in text, text
    with pytest.raises(ConfigError, match="^speed: unknown field"):
        cls(**given, speed=1)


def _unbounded(cls, name):
    """Whether a whole number has no upper limit: a size that only memory bounds."""
    return not any(
        hasattr(m, "le") or hasattr(m, "lt") for m in cls.__pydantic_fields__[name].metadata
    )


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: SamplerConfig(steps=-3), "steps -3: must be greater than or equal to 1"),
        (lambda: SamplerConfig(order=7), "order 7: must be 1, 2 or 3"),
        (
            lambda: SamplerConfig(solver="foo"),
            "solver \"foo\": must be 'sde', 'ode', 'asinh' or 'chain'",
        ),
        (lambda: UNetConfig(attention_levels=(True,)), "give one flag per level, 4"),
        (lambda: UNetConfig(norm_groups=7), "norm_groups 7: 320 channels do not divide"),
        (lambda: TextConfig(heads=7), "heads 7: must divide width 1024"),
        (lambda: TextConfig(skip_layers=24), "skip_layers 24: fewer than layers 24"),
        (lambda: DoSSRConfig(unet=UNetConfig(in_channels=3)), "unet.in_channels 3: must equal"),
        (lambda: DataConfig(scale_range=(1.0, 0.5)), "scale_range [1.0, 0.5]: give the smaller"),
        (lambda: DoSSRStage(start="noise", times="first"), 'start "noise": only with times'),
    ],
)
def test_fields_that_do_not_go_together_are_named(build, text):
    with pytest.raises(ConfigError) as error:
        build()
    assert text in str(error.value)


@pytest.mark.parametrize("stage", STAGES, ids=lambda cls: cls.__name__)
def test_json_brings_a_run_back(stage):
    run = TrainConfig(stage=stage(), model=DoSSRConfig(text=TextConfig()))
    assert from_json(TrainConfig, to_json(run)) == run
    assert hash(from_json(TrainConfig, to_json(run))) == hash(run)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("data.crop=511", "data.crop 511: must be a multiple of 64"),
        ("data.crip=512", "data.crip=512: give FIELD=VALUE of an existing field; data has"),
        ("data", "data: give FIELD=VALUE"),
        ("stage.kl_weight=1", "stage has learn_decoder, lora_rank, name"),
        ("stage.lora_rank=-2", "stage.lora_rank -2: must be"),
        ('stage={"name": "mud"}', 'stage.name "mud": unknown stage; there are'),
        ('stage={"name": "vae", "lora_rank": 1}', "stage.lora_rank: unknown field; VAEStage has"),
        ("model.sampler.steps=-3", "model.sampler.steps -3: must be greater"),
        ("model.sampler.solver=foo", 'model.sampler.solver "foo": must be'),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("optimizer.microbatches=3", "optimizer.microbatches 3: must divide data.batch 16"),
    ],
)
def test_a_wrong_change_names_its_place(change, text):
    with pytest.raises(ConfigError) as error:
        with_changes(TrainConfig(stage=DoSSRStage()), [change])
    assert text in str(error.value) and "\n" not in str(error.value)


def test_changes_are_json_or_plain_text():
    run = with_changes(
        TrainConfig(stage=DoSSRStage()),
        ["seed=3", "stage.times=first", 'data.presets=["light"]', "optimizer.clip=2"],
    )
    assert (run.seed, run.stage.times, run.data.presets) == (3, "first", ("light",))
    assert run.optimizer.clip == 2.0 and json.loads(to_json(run))["stage"]["name"] == "dossr"
