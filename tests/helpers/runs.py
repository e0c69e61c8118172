"""What a run of training needs at its smallest: images in pairs, and a model file to start from."""

from pathlib import Path

from dossr_jax import systems
from dossr_jax.config import DoSSRConfig
from helpers.models import tiny_model
from helpers.pictures import names_for, picture, quarter, save


def write_pairs(folder: Path, height: int = 40, width: int = 32) -> Path:
    """Nine HR images with LR partners to train on, one to validate on: nothing to degrade."""
    for i, name in enumerate([*names_for("train", 9), *names_for("validation", 1)]):
        image = picture(height, width, seed=i)
        save(folder / "HR" / name, image)
        save(folder / "LR" / name, quarter(image))
    return folder


def write_model(path: Path, config: DoSSRConfig, seed: int = 0) -> Path:
    """A file of random weights in which every layer counts; drawing them compiles nothing."""
    systems.save_model(path, tiny_model(seed, config))
    return path
