"""The table of the pre-restorer, and that of a whole checkpoint of the release."""

from __future__ import annotations

from dossr_jax.config import DoSSRConfig, RRDBConfig
from dossr_jax.pytorch.tables.rows import Row, conv, with_prefix
from dossr_jax.pytorch.tables.text import text_table
from dossr_jax.pytorch.tables.unet import control_table, unet_table
from dossr_jax.pytorch.tables.vae import vae_encoder_table, vae_table

UNET_PREFIX = "model.diffusion_model."
CONTROL_PREFIX = "control_model."
VAE_PREFIX = "first_stage_model."
HINT_PREFIX = "cond_encoder."
RRDB_PREFIX = "preprocess_model."
TEXT_PREFIX = "cond_stage_model.model."


def rrdb_table(config: RRDBConfig) -> list[Row]:
    """List the rows of an RRDBNet under its newer names (body, conv_body, conv_up1, conv_hr)."""
    features, growth = config.num_features, config.growth
    rows = conv("conv_first", "conv_first", config.in_channels * config.fold**2, features)
    for n in range(config.num_blocks):
        for d in range(3):
            for i in range(5):
                c_out = growth if i < 4 else features
                rows += conv(
                    f"body.{n}.rdb{d + 1}.conv{i + 1}",
                    f"body.{n}.dense.{d}.convs.{i}",
                    features + i * growth,
                    c_out,
                )
    rows += conv("conv_body", "conv_body", features, features)
    for name in ("conv_up1", "conv_up2", "conv_hr"):
        rows += conv(name, name, features, features)
    return rows + conv("conv_last", "conv_last", features, config.out_channels)


def release_table(config: DoSSRConfig) -> list[Row]:
    """List the rows of a whole DoSSR checkpoint of the release; its hint encoder is hint_encoder.*.

    A text tower is part of it where config.text says so; buffers are not.
    """
    rows = with_prefix(unet_table(config.unet), UNET_PREFIX, "unet.")
    rows += with_prefix(control_table(config.unet), CONTROL_PREFIX, "control.")
    rows += with_prefix(vae_table(config.vae), VAE_PREFIX, "vae.")
    rows += with_prefix(vae_encoder_table(config.vae), HINT_PREFIX, "hint_encoder.")
    rows += with_prefix(rrdb_table(config.rrdb), RRDB_PREFIX, "rrdb.")
    if config.text is not None:
        rows += with_prefix(text_table(config.text), TEXT_PREFIX, "text.")
    return rows
