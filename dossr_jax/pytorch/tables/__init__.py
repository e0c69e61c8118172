"""Tables from PyTorch keys to ours, generated from a configuration.

Our modules are walked once; what differs between the LDM naming (the release, SD 2.1's single file)
and the diffusers naming is a mapping of block paths and the names of the layers inside a block.
docs/porting.md shows the same side by side.
"""

from dossr_jax.pytorch.tables.efficientnet import efficientnet_table
from dossr_jax.pytorch.tables.release import (
    CONTROL_PREFIX,
    RRDB_PREFIX,
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    release_table,
    rrdb_table,
)
from dossr_jax.pytorch.tables.rows import Row, with_prefix
from dossr_jax.pytorch.tables.text import text_table
from dossr_jax.pytorch.tables.unet import control_table, unet_table
from dossr_jax.pytorch.tables.vae import vae_encoder_table, vae_table

__all__ = [
    "CONTROL_PREFIX",
    "RRDB_PREFIX",
    "TEXT_PREFIX",
    "UNET_PREFIX",
    "VAE_PREFIX",
    "Row",
    "control_table",
    "efficientnet_table",
    "release_table",
    "rrdb_table",
    "text_table",
    "unet_table",
    "vae_encoder_table",
    "vae_table",
    "with_prefix",
]
