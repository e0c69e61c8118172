"""The page: its fields, and where results are shown."""

from __future__ import annotations

from typing import Any

import gradio as gr

from dossr_jax.config.sampler import MAX_STEPS
from dossr_jax.web import viewing
from dossr_jax.web.handlers import FORMATS, MOST_SEEDS, Handlers
from dossr_jax.web.service import Service

_SOLVERS = ("sde", "ode", "asinh", "chain")
_COLORS = ("wavelet", "residual", "adain", "none")

_INTRODUCTION = """\
# Restore photos
Drop photos, choose how much larger they are to be, and press **Restore**. Files and results are
removed after {keep:g} minutes, and results when you close the page. At most {upload:g} MB per
file, {pixels:g} million pixels per result and {pictures} pictures at a time."""

CSS = (
    viewing.STYLE
    + """
.status progress { appearance: none; width: 100%; height: .6em; border: 0; background: #8883; }
.status progress::-webkit-progress-bar { background: #8883; }
.status progress::-webkit-progress-value { background: #e8590c; }
.status progress::-moz-progress-bar { background: #e8590c; }
.status .failed { color: #b00020; }
footer, #results .label-clear-button { display: none !important; }
@media (max-width: 700px) {  /* the results come before the settings */
  #left { display: contents; }
  #photos-part { order: 1; } #right { order: 2; } #settings { order: 3; }
}"""
)


def make_page(service: Service) -> gr.Blocks:
    """The page of a service, whose first model is loaded."""
    models, limits = service.models, service.limits
    with gr.Blocks(title="dossr_jax", analytics_enabled=False) as page:
        gr.Markdown(_INTRODUCTION.format(**vars(limits)))
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=300, elem_id="left"):
                with gr.Column(elem_id="photos-part"):
                    photos = gr.File(
                        label="Photos", file_count="multiple", height=160, elem_id="photos"
                    )
                    folder = gr.UploadButton(
                        "Add a folder", file_count="directory", size="sm", elem_id="folder"
                    )
                    with gr.Row():
                        start = gr.Button(
                            "Restore", variant="primary", elem_id="restore", min_width=90
                        )
                        cancel = gr.Button(
                            "Cancel", interactive=False, elem_id="cancel", min_width=90
                        )
                    status = gr.HTML("", elem_id="status", elem_classes="status")
                with gr.Column(elem_id="settings"):
                    model = gr.Dropdown(
                        list(models.names), value=models.names[0], label="Model", elem_id="model"
                    )
                    scale = gr.Number(
                        models.settings(models.names[0]).scale,
                        label="Scale",
                        info="enlargement, any positive number",
                        minimum=0.01,
                        step=0.5,
                        elem_id="scale",
                    )
                    fields = [model, scale, *_sampler_fields(), *_result_fields()]
            with gr.Column(scale=5, min_width=320, elem_id="right"):
                viewer = gr.HTML("", elem_id="viewer", padding=False)
                cards = gr.Gallery(
                    label="Middles of the results: choose one to compare",
                    allow_preview=False,
                    columns=4,
                    object_fit="contain",
                    height="auto",
                    visible=False,
                    elem_id="cards",
                    buttons=[],
                )
                stages = gr.Gallery(
                    label="Stages of a detail in the middle",
                    format="png",
                    columns=4,
                    object_fit="contain",
                    height="auto",
                    visible=False,
                    elem_id="stages",
                    buttons=["fullscreen"],
                )
                results = gr.File(
                    label="Download",
                    file_count="multiple",
                    height=260,
                    interactive=False,
                    visible=False,
                    elem_id="results",
                )
                pack = gr.DownloadButton("Download all as ZIP", visible=False, elem_id="zip")
        Handlers(service).connect(
            photos,
            folder,
            fields,
            start,
            cancel,
            [status, viewer, cards, stages, results, pack, start, cancel],
            page,
        )
    for block in page.blocks.values():
        _refuse_addresses(block)
    return page


def _sampler_fields() -> list[Any]:
    steps = gr.Slider(1, MAX_STEPS, 5, step=1, label="Steps", elem_id="steps")
    fidelity = gr.Slider(
        0,
        1,
        0,
        step=0.05,
        label="Fidelity",
        info="0: free detail, 1: close to the photo",
        elem_id="fidelity",
    )
    seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed", elem_id="seed")
    count = gr.Slider(
        1,
        MOST_SEEDS,
        1,
        step=1,
        label="Variants",
        info="results with this seed and the following ones, side by side",
        elem_id="variants",
    )
    with gr.Accordion("Sampler", open=False):
        solver = gr.Dropdown(list(_SOLVERS), value="sde", label="Solver", elem_id="solver")
        color_fix = gr.Dropdown(list(_COLORS), value="wavelet", label="Colour fix")
    return [steps, fidelity, seed, count, solver, color_fix]


def _result_fields() -> list[Any]:
    with gr.Accordion("Files", open=False):
        format_ = gr.Dropdown(list(FORMATS), value="png", label="Format", elem_id="format")
        quality = gr.Slider(0, 100, 0, step=1, label="Quality", info="0: the format's default")
        strip = gr.Checkbox(False, label="Leave out EXIF, XMP, IPTC and texts of the photo")
        record = gr.Checkbox(True, label="Write model and settings into the metadata")
    stages = gr.Checkbox(
        False,
        label="Show the stages",
        info="input, pre-restored, every step, decoded; takes about as long again",
        elem_id="show-stages",
    )
    return [format_, quality, strip, record, stages]


def _refuse_addresses(block: Any) -> None:
    """Let a component take uploads alone: Gradio would fetch what an address leads to."""
    move = block.async_move_resource_to_block_cache

    async def local(place: Any) -> Any:
        if "://" in str(place):
            raise gr.Error("upload the file; addresses are not fetched")
        return await move(place)

    block.async_move_resource_to_block_cache = local
