"""Which of the stored arrays are compared, found by the form of their names.

A folder may hold other resolutions, step counts, orders, guidance scales and prefixes ("rect_").
Arrays that are no entry serve as inputs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

TWIN = "__f64"
_FIXES = "wavelet|adain|none"
HOST = "host"
# Form -> pattern of its names, and the kind of its entries, by which tolerances are pooled
# (report.KINDS).
_FORMS = {
    "stage": (
        r"(?P<prefix>\w*?)stage_"
        r"(?P<what>pre_raw|pre|cond_moments|c_latent|moments|mean|logvar|std|x0_hat|decoded"
        r"|wavelet|adain)",
        "encoding",
    ),
    "network": (
        r"eps_(?P<what>eps|eps_nocontrol|eps_onlymid|eps_strength(?P<strength>\d+)"
        r"|control_norms|control_(?P<residual>\d+)|unet_skip_(?P<skip>\d+)|unet_mid"
        r"|temb(?P<dim>\d+)|temb_mlp_(?P<mlp>unet|control))",
        "network",
    ),
    "network_at": (r"(?P<prefix>\w*?)eps_t(?P<t>\d+)_eps", "network"),
    "trajectory": (
        r"(?P<prefix>\w*?)samp_o(?P<order>\d)_s(?P<steps>\d+)"
        rf"(?:_cfg(?P<cfg>\d+(?:[.p]\d+)?))?(?:_(?P<fix>{_FIXES}))?"
        rf"_(?P<what>t|x|eps|pred_x0|img|same_as)(?:_(?P<img_fix>{_FIXES}))?",
        "trajectory",
    ),
    "process": (
        rf"(?P<prefix>\w*?)process_(?:o(?P<order>\d)_)?s(?P<steps>\d+)_(?P<fix>{_FIXES})_u8",
        "image",
    ),
    "training": (r"train_(?P<what>x_noisy|pred_x0|loss|loss_per_sample)", "training"),
    "gradient": (r"train_grad(?:_norms|/(?P<parameter>[\w.]+))", "training"),
    "step": (r"step_(?P<what>pre_lq|x|c_latent|loss)", "training"),
    "schedule": (r"sched(?P<steps>\d+)_(?P<what>\w+)", HOST),
    "eta": (r"eta_(?P<eta>trunc_\d+)(?P<t1>_t1)?", HOST),
    "betas": (r"betas_linear", HOST),
    "buffer": (r"buffers\.(?P<what>\w+)", HOST),
}
# Names whose kind is not their form's.
_KINDS = {
    ("stage", "pre_raw"): "pre",
    ("stage", "pre"): "pre",
    ("stage", "decoded"): "decoding",
    ("stage", "wavelet"): "fix",
    ("stage", "adain"): "fix",
    ("trajectory", "img"): "image",
    ("step", "x"): "encoding",
    ("step", "c_latent"): "encoding",
}
# Entries that the program of `dossr-restore` computes once more, from the LR image on.
RESTORE = "restore:"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A stored array that we can compute: its name, form, kind of tolerance, fields of the name."""

    name: str
    form: str
    kind: str
    match: re.Match[str]

    @property
    def stored(self) -> str:
        """Name of the array that it is compared with."""
        return self.name.removeprefix(RESTORE)


def find_entries(names: Iterable[str]) -> list[Entry]:
    """The entries among stored names, in their order."""
    entries = []
    for name in names:
        for form, (pattern, kind) in _FORMS.items():
            match = None if name.endswith(TWIN) else re.fullmatch(pattern, name)
            if match:
                entries.append(Entry(name, form, _kind(form, match, kind), match))
                break
    again = [
        dataclasses.replace(entry, name=RESTORE + entry.name, form="restored")
        for entry in entries
        if entry.form == "stage" and entry.match["what"] in ("decoded", "wavelet", "adain")
    ]
    return entries + again


def _kind(form: str, match: re.Match[str], usual: str) -> str:
    what = match.groupdict().get("what") or ""
    if form == "network" and what.startswith("temb"):
        return "time" if "mlp" in what else "embedding"
    return _KINDS.get((form, what), usual)
