"""The models of an evaluation: named, checked before the work starts, and loaded one by one."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dossr_jax import options
from dossr_jax.config import ModelConfig
from dossr_jax.convert.reading import read
from dossr_jax.errors import UserError
from dossr_jax.evaluate import candidates
from dossr_jax.evaluate.candidates import Candidate
from dossr_jax.pipeline import Upscaler
from dossr_jax.pipeline.upscaler import locate
from dossr_jax.systems.rrdb import PACKAGED, read_rrdb


def read_config(model: str) -> ModelConfig:
    """The configuration of a model, which is not loaded; see :meth:`Upscaler.from_pretrained`.

    Raises:
      UserError: what is wrong with its file, in one line.
    """
    if model in PACKAGED:
        return read_rrdb(model)[0]
    return read([locate(model)]).config


def unique(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The names, numbered where one is taken or comes again: a, a-2, a-3."""
    known = set(taken)
    found = []
    for name in names:
        new, count = name, 1
        while new in known:
            count += 1
            new = f"{name}-{count}"
        known.add(new)
        found.append(new)
    return found


def check(args: argparse.Namespace, models: Mapping[str, str]) -> None:
    """Refuse options that a model does not read; weights are not read for it.

    Args:
      models: files or names of models, by their names in the report.

    Raises:
      UserError: naming the model and the option.
    """
    fields = options.picture_fields(args)
    baselines = args.baselines
    for name, model in models.items():
        config = read_config(model)
        try:
            candidates.check_model(
                config, fields, baselines=baselines, preprocessor=args.preprocessor
            )
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        baselines = ()  # they run in the first model


def make_candidates(
    args: argparse.Namespace, models: Mapping[str, str]
) -> Iterator[Iterator[Candidate]]:
    """The baselines and the first model, then every other model.

    A model is loaded when the first of its candidates is asked for, and let go with the last.
    """
    fields = options.picture_fields(args)
    baselines = list(dict.fromkeys(args.baselines))
    if not models:  # and no baseline that needs one
        load = functools.partial(options.load, args)
        yield (candidates.make_baseline(name, fields, load) for name in baselines)
    for name, model in models.items():
        load = functools.partial(options.load, args, model=model)
        yield _of_model(load, name, fields, baselines)
        baselines = []


def _of_model(
    load: Callable[..., Upscaler], name: str, fields: Mapping[str, Any], baselines: Iterable[str]
) -> Iterator[Candidate]:
    """Baselines that run in a model, and the model itself, which nothing else holds."""
    load_once = functools.cache(load)

    def get(preprocessor: str | None = None) -> Upscaler:
        return load_once() if preprocessor is None else load(preprocessor=preprocessor)

    for baseline in baselines:
        yield candidates.make_baseline(baseline, fields, get)
    yield candidates.make_model(get(), fields, name)
