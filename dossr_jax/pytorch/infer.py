"""Configurations from a checkpoint's key names and shapes, or from the YAML file beside it.

Shapes do not tell the width of an attention head (64 in SD 2.1) and the number of norm groups (32
everywhere).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import yaml

from dossr_jax.config import (
    ConfigError,
    DoSSRConfig,
    ProcessConfig,
    RRDBConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from dossr_jax.diffusion.schedule import make_eta
from dossr_jax.errors import UserError
from dossr_jax.pytorch.state import State

DEFAULT_HEAD_DIM = 64
_IMAGE_CHANNELS = 3


@contextlib.contextmanager
def config_errors(source: str, remedy: str) -> Iterator[None]:
    """Turn an impossible configuration into an error about the file it came from."""
    try:
        yield
    except (ConfigError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{source}: {error}; {remedy}") from error


class Settings:
    """A mapping in a configuration file, or of a live module, that knows its place for messages."""

    def __init__(self, path: Path | str, tree: Any, place: str = ""):
        self.path, self.place = path, place
        if not isinstance(tree, Mapping):
            raise UserError(f"{path}: {place or 'its top'} is no mapping; check the file")
        self.tree = tree

    def at(self, *names: str) -> Settings:
        """Return the mapping at a path of names; UserError where there is none."""
        node = self
        for name in names:
            node = Settings(self.path, node.value(name), f"{node.place}.{name}".lstrip("."))
        return node

    def value(self, name: str) -> Any:
        """Return a field; UserError where it is missing."""
        if name not in self.tree:
            self.fail(name, "it is missing")
        return self.tree[name]

    def get(self, name: str, default: Any) -> Any:
        """Return a field, or `default` where it is missing."""
        return self.tree.get(name, default)

    def fail(self, name: str, reason: str) -> NoReturn:
        """Raise UserError about a field."""
        field = f"{self.place}.{name}".lstrip(".")
        value = f" is {self.tree[name]!r}" if name in self.tree else ""
        raise UserError(f"{self.path}: {field}{value}: {reason}")


def read_settings(path: Path) -> Settings:
    """Read a .json or a YAML file.

    Raises:
      UserError: no such file, or no mapping in it.
    """
    parse, kind = (json.loads, "JSON") if path.suffix == ".json" else (yaml.safe_load, "YAML")
    try:
        tree = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a {kind} file ({reason}); check the path") from error
    return Settings(path, tree)


def count(state: State, pattern: str) -> int:
    """Count how many of pattern % 0, pattern % 1, ... start a name, without a gap."""
    return next(i for i in itertools.count() if not state.has(pattern % i))


def infer_unet(state: State, head_dim: int | None) -> UNetConfig:
    """Infer the configuration of an LDM UNet from its keys (without prefix).

    Raises:
      UserError: the keys are not those of an SD 2.x UNet.
    """
    model_channels, in_channels = state.shape("input_blocks.0.0.weight")[:2]
    mults, attends, blocks = [], [], []
    new_level = True
    for i in range(1, count(state, "input_blocks.%d.")):
        if f"input_blocks.{i}.0.op.weight" in state.tensors:
            new_level = True
            continue
        width = state.shape(f"input_blocks.{i}.0.out_layers.3.weight")[0]
        if new_level:
            mults.append(width // model_channels)
            attends.append(f"input_blocks.{i}.1.norm.weight" in state.tensors)
            blocks.append(0)
            new_level = False
        blocks[-1] += 1
    block = "middle_block.1.transformer_blocks"
    projection = state.shape("middle_block.1.proj_in.weight")
    if len(projection) != 2:
        raise UserError(
            f"{state.source}: an SD 1.x UNet (its transformers have 1x1 convolutions "
            "in front); DoSSR needs SD 2.x weights"
        )
    with config_errors(state.source, "give the width of an attention head with --head-dim"):
        return UNetConfig(
            in_channels=in_channels,
            out_channels=state.shape("out.2.weight")[0],
            model_channels=model_channels,
            channel_mult=tuple(mults),
            num_res_blocks=max(blocks, default=0),
            attention_levels=tuple(attends),
            head_dim=head_dim or DEFAULT_HEAD_DIM,
            context_dim=state.shape(f"{block}.0.attn2.to_k.weight")[1],
            transformer_depth=count(state, f"{block}.%d."),
        )


def infer_vae(state: State) -> VAEConfig:
    """Infer the configuration of an LDM autoencoder from its keys (without prefix).

    Raises:
      UserError: the keys are not those of an SD autoencoder.
    """
    base, in_channels = state.shape("encoder.conv_in.weight")[:2]
    levels = range(count(state, "encoder.down.%d."))
    widths = [state.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in levels]
    patch = _square_side(in_channels, state.source, "encoder.conv_in.weight")
    with config_errors(state.source, "this autoencoder is not supported"):
        return VAEConfig(
            z_channels=state.shape("decoder.conv_in.weight")[1],
            base_channels=base,
            channel_mult=tuple(width // base for width in widths),
            num_res_blocks=count(state, "encoder.down.0.block.%d."),
            patch_size=patch,
            mid_attention=state.has("encoder.mid.attn_1."),
        )


def infer_rrdb(state: State) -> RRDBConfig:
    """Infer the configuration of an RRDBNet from its (newer) keys, without prefix.

    Raises:
      UserError: the keys are not those of an RRDBNet.
    """
    features, in_channels = state.shape("conv_first.weight")[:2]
    fold = _square_side(in_channels, state.source, "conv_first.weight")
    if fold not in (1, 2, 4):
        raise UserError(
            f"{state.source}: conv_first takes {in_channels} channels; an RRDBNet of "
            "scale 4, 2 or 1 takes 3, 12 or 48"
        )
    return RRDBConfig(
        out_channels=state.shape("conv_last.weight")[0],
        num_features=features,
        num_blocks=count(state, "body.%d."),
        growth=state.shape("body.0.rdb1.conv1.weight")[0],
        scale=4 // fold,
    )


def infer_text(state: State) -> TextConfig:
    """Infer the configuration of an open_clip text tower from its keys (without prefix).

    Without its projection it is one that was cut down to what runs: no block is skipped.
    """
    vocab_size, width = state.shape("token_embedding.weight")
    with_projection = "text_projection" in state.tensors
    return TextConfig(
        vocab_size=vocab_size,
        context_length=state.shape("positional_embedding")[0],
        width=width,
        layers=count(state, "transformer.resblocks.%d."),
        heads=max(1, width // 64),
        skip_layers=TextConfig().skip_layers if with_projection else 0,
        projection_dim=state.shape("text_projection")[1] if with_projection else 0,
    )


def infer_process(buffers: State, default: ProcessConfig) -> ProcessConfig:
    """Read the process off a checkpoint's schedule buffers; `default` where they are absent.

    How close a buffer must come to what it should be follows from the dtype it is stored in.

    Raises:
      UserError: a shifting sequence that is none of the known ones.
    """
    values: dict[str, Any] = {}
    if "betas" in buffers.tensors:
        betas = buffers.tensors["betas"].load()
        kind = ml_dtypes.finfo(betas.dtype)
        digits = min(kind.precision, 6)
        values["timesteps"] = len(betas)
        for name, beta in (("beta_start", float(betas[0])), ("beta_end", float(betas[-1]))):
            # A configured value that the stored one rounds from is the exact one.
            exact = getattr(default, name)
            same = np.isclose(beta, exact, rtol=float(kind.eps), atol=0)
            values[name] = exact if same else float(f"{beta:.{digits}g}")
    if "lambdas" in buffers.tensors:
        stored = buffers.tensors["lambdas"].load()
        eta = stored.astype(np.float64)
        within = max(1e-5, float(ml_dtypes.finfo(stored.dtype).eps))
        known = {name: make_eta(name, len(eta))[0] for name in ("trunc_12", "trunc_13", "trunc_23")}
        fits = [name for name, known_eta in known.items() if np.abs(known_eta - eta).max() < within]
        if not fits:
            raise UserError(
                f"{buffers.source}: its shifting sequence (lambdas) is none of "
                f"{', '.join(known)}; it was trained with another one"
            )
        values["eta"] = fits[0]
    return dataclasses.replace(default, **values)


def _square_side(channels: int, source: str, name: str) -> int:
    side = round((channels / _IMAGE_CHANNELS) ** 0.5)
    if _IMAGE_CHANNELS * side**2 != channels:
        raise UserError(
            f"{source}: {name} takes {channels} channels; images have "
            f"{_IMAGE_CHANNELS}, folded in squares"
        )
    return side


def config_from_release_yaml(path: str | Path) -> DoSSRConfig:
    """Read a YAML file in the form of the release's model configs.

    `attention_resolutions` are downsampling factors; whether the hint encoder is shared and
    whether there is a text tower only the weights say, so those two fields keep their defaults.

    Raises:
      UserError: no such file, no YAML, or a network that this project does not have.
    """
    path = Path(path)
    node = read_settings(path).at("params")
    unet = node.at("unet_config", "params")
    vae = node.at("first_stage_config", "params", "ddconfig")
    rrdb = node.at("preprocess_config", "params")
    with config_errors(str(path), "correct the file"):
        return DoSSRConfig(
            unet=_yaml_unet(unet),
            vae=_yaml_vae(vae, node.get("scale_factor", VAEConfig().scale_factor)),
            rrdb=RRDBConfig(
                in_channels=rrdb.get("num_in_ch", 3),
                out_channels=rrdb.get("num_out_ch", 3),
                num_features=rrdb.get("num_feat", 64),
                num_blocks=rrdb.get("num_block", 23),
                growth=rrdb.get("num_grow_ch", 32),
                scale=rrdb.get("scale", 4),
            ),
            process=ProcessConfig(
                timesteps=node.get("timesteps", 1000),
                beta_start=node.get("linear_start", ProcessConfig().beta_start),
                beta_end=node.get("linear_end", ProcessConfig().beta_end),
            ),
        )


def _yaml_unet(node: Settings) -> UNetConfig:
    mults = tuple(node.value("channel_mult"))
    model_channels = node.value("model_channels")
    levels = tuple(2**i in node.value("attention_resolutions") for i in range(len(mults)))
    head_dim = node.get("num_head_channels", -1)
    if head_dim < 1:
        heads = node.value("num_heads")
        dims = {m * model_channels // heads for m, on in zip(mults, levels, strict=True) if on}
        if len(dims) != 1:
            node.fail("num_heads", "heads of one width are needed: give num_head_channels")
        head_dim = dims.pop()
    for name in ("use_spatial_transformer", "use_linear_in_transformer"):
        if node.get(name, True) is not True:
            node.fail(name, "only True is supported, as in SD 2.x")
    return UNetConfig(
        in_channels=node.value("in_channels"),
        out_channels=node.value("out_channels"),
        model_channels=model_channels,
        channel_mult=mults,
        num_res_blocks=node.value("num_res_blocks"),
        attention_levels=levels,
        head_dim=head_dim,
        context_dim=node.value("context_dim"),
        transformer_depth=node.get("transformer_depth", 1),
    )


def _yaml_vae(node: Settings, scale_factor: float) -> VAEConfig:
    if node.get("attn_resolutions", []):
        node.fail("attn_resolutions", "attention outside the middle is not supported")
    return VAEConfig(
        in_channels=node.get("in_channels", _IMAGE_CHANNELS),
        z_channels=node.value("z_channels"),
        base_channels=node.value("ch"),
        channel_mult=tuple(node.value("ch_mult")),
        num_res_blocks=node.value("num_res_blocks"),
        scale_factor=scale_factor,
    )
