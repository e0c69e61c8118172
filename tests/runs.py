"""What a run of training needs at its smallest: images in pairs, and a model file to start from."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from pictures import names_for, picture, quarter, save

from dossr_jax import weights
from dossr_jax.config import DoSSRConfig


def write_pairs(folder: Path, height: int = 40, width: int = 32) -> Path:
    """Nine HR images with LR partners to train on, three to validate on: nothing to degrade."""
    for i, name in enumerate([*names_for("train", 9), *names_for("validation", 3)]):
        image = picture(height, width, seed=i)
        save(folder / "HR" / name, image)
        save(folder / "LR" / name, quarter(image))
    return folder


def write_model(path: Path, config: DoSSRConfig) -> Path:
    """A file of random weights in which every layer counts; drawing them compiles nothing."""
    rng = np.random.default_rng(0)
    model = weights.abstract_model(config, dtype=jnp.float32, param_dtype=jnp.float32)
    shapes = {name: param.shape for name, param in weights.names_and_params(model)}

    def draw(name: str) -> np.ndarray:
        shape = shapes[name]
        if name.endswith("scale"):
            return 1 + 0.1 * rng.normal(size=shape)
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1], initial=1)) * 0.7

    weights.fill(model, draw, set(shapes), "random")
    weights.save_model(path, model)
    return path
