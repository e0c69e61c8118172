"""Entries of a DoSSR folder.

A folder may hold other resolutions, step counts, orders, guidance scales and prefixes ("rect_").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from dossr_jax.crosscheck.entries import HOST, RESTORE, Entry, Form, match_forms
from dossr_jax.crosscheck.report import Kind

# The twin of the training pass is PyTorch in float64 with its registered schedule buffers left as
# they are stored, rounded to float32, where ours are float64 throughout.
_BUFFER_BAR = 1e-6
# The error of the time embedding (an angle of 1000 rad, of which float32 resolves 3e-5) hardly
# reaches what the network makes of it.
KINDS = {
    "embedding": Kind(2e-4),
    "time": Kind(2e-5),
    "network": Kind(5e-6),
    "pre": Kind(1e-5),
    "encoding": Kind(5e-5, ("pre",)),
    "decoding": Kind(1e-4, ("encoding",)),
    "fix": Kind(1e-4, ("decoding",)),
    "trajectory": Kind(3e-5, ("network",)),
    "image": Kind(4e-5, ("trajectory",)),
    "training": Kind(1e-5, ("network",), float64=_BUFFER_BAR),
}

_FIXES = "wavelet|adain|none"
_STAGE = r"(?P<prefix>\w*?)stage_"
_RUN = (
    r"(?P<prefix>\w*?)samp_o(?P<order>\d)_s(?P<steps>\d+)"
    rf"(?:_cfg(?P<cfg>\d+(?:[.p]\d+)?))?(?:_(?P<fix>{_FIXES}))?_"
)
FORMS = (
    Form("stage", rf"{_STAGE}(?P<what>pre_raw|pre)", "pre"),
    Form(
        "stage",
        rf"{_STAGE}(?P<what>cond_moments|c_latent|moments|mean|logvar|std|x0_hat)",
        "encoding",
    ),
    Form("stage", rf"{_STAGE}(?P<what>decoded)", "decoding"),
    Form("stage", rf"{_STAGE}(?P<what>wavelet|adain)", "fix"),
    Form("embedding", r"eps_temb(?P<dim>\d+)", "embedding"),
    Form("time", r"eps_temb_mlp_(?P<encoder>unet|control)", "time"),
    Form(
        "network",
        r"eps_(?P<what>eps|eps_nocontrol|eps_onlymid|eps_strength(?P<strength>\d+)"
        r"|control_norms|control_(?P<residual>\d+)|unet_skip_(?P<skip>\d+)|unet_mid)",
        "network",
    ),
    Form("network_at", r"(?P<prefix>\w*?)eps_t(?P<t>\d+)_eps", "network"),
    Form("image", rf"{_RUN}img(?:_(?P<img_fix>{_FIXES}))?", "image"),
    Form("trajectory", rf"{_RUN}(?P<what>t|x|eps|pred_x0|same_as)", "trajectory"),
    Form(
        "process",
        rf"(?P<prefix>\w*?)process_(?:o(?P<order>\d)_)?s(?P<steps>\d+)_(?P<fix>{_FIXES})_u8",
        "image",
    ),
    Form("training", r"train_(?P<what>x_noisy|pred_x0|loss|loss_per_sample)", "training"),
    Form("gradient", r"train_grad(?:_norms|/(?P<parameter>[\w.]+))", "training"),
    Form("step", r"step_(?P<what>x|c_latent)", "encoding"),
    Form("step", r"step_(?P<what>pre_lq|loss)", "training"),
    Form("schedule", r"sched(?P<steps>\d+)_(?P<what>\w+)", HOST),
    Form("eta", r"eta_(?P<eta>trunc_\d+)(?P<t1>_t1)?", HOST),
    Form("betas", r"betas_linear", HOST),
    Form("buffer", r"buffers\.(?P<what>\w+)", HOST),
)


def find_entries(names: Iterable[str]) -> list[Entry]:
    """The entries among stored names, those of the restore program once more at the end."""
    entries = match_forms(FORMS, names)
    again = [
        dataclasses.replace(entry, name=RESTORE + entry.name, form="restored")
        for entry in entries
        if entry.kind in ("decoding", "fix")
    ]
    return entries + again
