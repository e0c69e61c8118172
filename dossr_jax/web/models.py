"""The models that the page offers, each loaded once, when it is first asked for."""

from __future__ import annotations

import argparse
import threading
from typing import Any

from dossr_jax import options
from dossr_jax.errors import UserError
from dossr_jax.folder.model import hash_of_model, name_of_model
from dossr_jax.pipeline import MODELS, Settings, Upscaler
from dossr_jax.systems import COMMON_SETTINGS


class Models:
    """Models by the names that users choose.

    Attributes:
      names: in the order of the command line; of files, without folder and suffix.
      args: the options that all of them are loaded with.
    """

    def __init__(self, args: argparse.Namespace):
        """Models of parsed options.

        Raises:
          UserError: a model that is not there, or two of one name.
        """
        self.args = args
        self._places: dict[str, str] = {}
        for place in args.model or MODELS:
            if name_of_model(place) in self._places:
                raise UserError(f"{place}: another model has this name; rename one of the files")
            self._places[name_of_model(place)] = place
        asked = (*self._places.values(), args.preprocessor)
        self.hashes = {place: hash_of_model(place) for place in asked if place is not None}
        self.names = tuple(self._places)
        self._fields = options.picture_fields(args)
        self._loaded: dict[str, Upscaler] = {}
        self._loading = threading.Lock()

    def place(self, name: str) -> str:
        """File, folder or name of a model, as the command line has it.

        Raises:
          UserError: a model that is not offered.
        """
        if name not in self._places:
            raise UserError(f"model {name!r}: choose one of {', '.join(self.names)}")
        return self._places[name]

    def load(self, name: str) -> Upscaler:
        """The model, loaded by the first call; others wait for it.

        Raises:
          UserError: what is wrong with its file.
        """
        place = self.place(name)
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = options.load(self.args, model=place)
            return self._loaded[name]

    def settings(self, name: str, **fields: Any) -> Settings:
        """Settings of a model: `fields` as far as it reads them, else the command line's.

        Raises:
          ConfigError: a value that a field cannot have.
        """
        system = self.load(name).system
        known = COMMON_SETTINGS | system.settings | ({"sampler"} if system.samples else set())
        wanted = {**self._fields, **fields}
        return self.load(name).settings(**{k: v for k, v in wanted.items() if k in known})
