"""The weights of a model on the devices, read while other things happen."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from flax import nnx
from jax.sharding import Sharding

from dossr_jax.gpu import weight_formats
from dossr_jax.programs import shapes_of
from dossr_jax.restore import split


class Loading:
    """A model whose weights are there, or on their way.

    Attributes:
      graphdef, shapes: the split model, with shapes and shardings in place of arrays.
    """

    def __init__(self, model: Any, fill: Callable[[], None] | None, sharding: Sharding):
        """`fill` reads the weights of a model of shapes; None where they are there."""
        self.graphdef, state = split(model)
        self._formats = weight_formats(state, sharding)
        self.shapes = shapes_of(state, self._formats)
        self._model, self._fill = model, fill
        self._state: Any = None
        self._reading: Future[None] | None = None
        if fill is None:
            self.state()

    def start(self) -> None:
        """Begin to read, in another thread, unless that has begun."""
        if self._fill is not None and self._reading is None:
            pool = ThreadPoolExecutor(1, "weights")
            self._reading = pool.submit(self._fill)
            pool.shutdown(wait=False)

    def state(self) -> nnx.State:
        """The weights, on the devices.

        Raises:
          UserError: they are not finite, or the file has changed.
        """
        if self._state is None:
            self.start()
            if self._reading is not None:
                self._reading.result()
            self._state = jax.device_put(nnx.state(self._model), self._formats)
            self._model = self._fill = self._reading = None
        return self._state

    def value(self, name: str) -> Any:
        """A parameter of the model itself: its array, or its shape as long as it is being read."""
        state: Any = self.shapes if self._state is None else self._state
        return state[name].get_value()
