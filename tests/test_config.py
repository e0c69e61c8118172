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
    OptimizerConfig,
    ParallelConfig,
    SamplerConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
    UNetConfig,
    from_json,
    to_json,
)
from dossr_jax.pipeline import Settings
from dossr_jax.training.fields import flags_help, with_flags
from dossr_jax.training.stages import DoSSRStage

STAGES = [StageConfig.known[n] for n in ("rrdb", "vae", "prior", "dossr")]
CLASSES = [
    *(getattr(config, name) for name in config.__all__ if name.endswith("Config")),
    *STAGES,
    Settings,
]
SECTIONS = ("data", "optimizer", "parallel")
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
        ("--data.crop=511", "data.crop 511: must be a multiple of 64"),
        ("--data.crip=512", "--data.crip, 512; did you mean --data.crop?"),
        ("data", "Unrecognized options: data"),
        ("--stage.kl_weight=1", "Unrecognized options: --stage.kl_weight, 1"),
        ("--stage.name=vae", "Unrecognized options: --stage.name, vae"),
        ("--stage.lora_rank=-2", "stage.lora_rank -2: must be"),
        ("--model.sampler.steps=-3", "model.sampler.steps -3: must be greater"),
        ("--model.sampler.solver=foo", "Expected one of ('sde', 'ode', 'asinh', 'chain')"),
        ("--optimizer.betas=0.9", "--optimizer.betas"),
        ("--optimizer.learning-rate=nan", "optimizer.learning_rate"),
        ("--optimizer.microbatches=3", "optimizer.microbatches 3: must divide data.batch 16"),
    ],
)
def test_a_wrong_flag_names_its_place_in_one_line(change, text):
    with pytest.raises(ConfigError) as error:
        with_flags(TrainConfig(stage=DoSSRStage()), [change])
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"name": "mud"}, 'stage.name "mud": unknown stage; there are'),
        ({"name": "vae", "lora_rank": 1}, "stage.lora_rank: unknown field; VAEStage has"),
    ],
)
def test_a_wrong_stored_stage_names_its_place(values, text):
    with pytest.raises(ConfigError) as error:
        from_json(TrainConfig, json.dumps({"stage": values}))
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("stage", STAGES, ids=lambda cls: cls.__name__)
def test_without_flags_nothing_changes(stage):
    run = TrainConfig(stage=stage(), model=DoSSRConfig(text=TextConfig(heads=8)), seed=7)
    assert with_flags(run, []) == run


def test_flags_change_fields_of_every_kind():
    flags = "--seed 3 --stage.times=first --data.presets light bicubic --optimizer.clip 2"
    flags += " --data.augment False --data.scale_range 0.7 1 --model.unet.channel-mult 1 2 4 4"
    run = with_flags(TrainConfig(stage=DoSSRStage()), [*flags.split(), "--model.prompt=a b"])
    assert (run.seed, run.stage.times, run.data.presets) == (3, "first", ("light", "bicubic"))
    assert run.optimizer.clip == 2.0 and run.data.augment is False and run.model.prompt == "a b"
    assert run.data.scale_range == (0.7, 1.0) and run.stage.name == "dossr"


def test_the_help_describes_every_field_of_a_run_and_its_stage():
    text = flags_help(TrainConfig(stage=DoSSRStage()))
    for cls in (DataConfig, OptimizerConfig, ParallelConfig, TrainConfig, *STAGES):
        for field in dataclasses.fields(cls):
            described = cls.__pydantic_fields__[field.name].description
            assert described or field.name in ("name", "stage", "model", *SECTIONS), field.name
    assert "--data.crop INT" in text and "(default: 512)" in text
