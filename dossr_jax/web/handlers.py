"""What the buttons of the page do."""

from __future__ import annotations

import asyncio
import html
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from dossr_jax import files
from dossr_jax.errors import UserError
from dossr_jax.folder.naming import SAME
from dossr_jax.folder.run import Writing
from dossr_jax.web import viewing
from dossr_jax.web.restoring import Request, Results
from dossr_jax.web.service import Service, Session

FORMATS = (SAME, *sorted(kind.suffix[1:] for kind in files.WRITABLE.values()))
MOST_SEEDS = 8
_FILES = "gradio_api/file="
_LOOK = 0.25  # seconds between two looks at a request


class Handlers:
    """What happens on the page; the session's hash, which the browser draws, is the owner."""

    def __init__(self, service: Service):
        self._service = service

    def connect(
        self,
        photos: Any,
        folder: Any,
        fields: list[Any],
        start: Any,
        cancel: Any,
        outputs: list[Any],
        page: gr.Blocks,
    ) -> None:
        """Connect the events of components."""
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        model, cards = fields[0], outputs[2]
        steps, fidelity, seed, count, solver, color_fix = sampler = fields[2:8]
        shown = [fields[1], *sampler, fields[-1]]
        folder.upload(_add, [photos, folder], photos, queue=False, **private)
        for load in (page.load, model.change):
            load(self.describe, model, shown, **private)
        start.click(
            self.restore, [photos, *fields], outputs, api_name="restore", show_progress="hidden"
        )
        cancel.click(self.cancel, None, cancel, queue=False, **private)
        cards.select(self.select, None, [outputs[1], outputs[3]], queue=False, **private)
        page.unload(self.leave)

    async def describe(self, model: str) -> list[Any]:
        """Scale and the sampler's fields with the model's own values, those alone that it reads."""
        try:
            settings = await asyncio.to_thread(self._service.models.settings, model)
            system = self._service.models.load(model).system
        except UserError as error:
            raise gr.Error(str(error)) from error
        values: dict[str, Any] = {
            name: getattr(settings.sampler, name)
            for name in ("steps", "fidelity", "solver", "color_fix")
        }
        values["seed"] = settings.seed if isinstance(settings.seed, int) else 0
        order = ("steps", "fidelity", "seed", "count", "solver", "color_fix")
        updates: list[Any] = [gr.update(value=settings.scale)]
        for name in order:
            visible = ("seed" if name == "count" else name) in system.settings
            update: dict[str, Any] = {"visible": visible}
            if name in values:
                update["value"] = values[name]
            updates.append(gr.update(**update))
        return [*updates, gr.update(visible=system.samples)]

    async def restore(
        self,
        photos: list[str] | None,
        model: str,
        scale: float,
        steps: int,
        fidelity: float,
        seed: int,
        variants: int,
        solver: str,
        color_fix: str,
        format: str,
        quality: int,
        strip: bool,
        record: bool,
        stages: bool,
        request: gr.Request,
    ) -> AsyncIterator[list[Any]]:
        """Restore photos and show what there is of them, until all is done."""
        service, owner = self._service, _owner(request)
        asked = None
        try:
            sampled = await asyncio.to_thread(lambda: service.models.load(model).system.samples)
            if format not in FORMATS or not 0 <= (quality or 0) <= 100:
                raise UserError(f"format {format}, quality {quality}: choose them from the lists")
            first, count = int(seed or 0), int(variants or 1) if sampled else 1
            if not 1 <= count <= MOST_SEEDS:
                raise UserError(f"variants {count}: 1 to {MOST_SEEDS}")
            asked = Request(
                photos=tuple(map(Path, photos or ())),
                model=model,
                fields={
                    "scale": scale,
                    "steps": steps,
                    "fidelity": fidelity,
                    "solver": solver,
                    "color_fix": color_fix,
                },
                seeds=tuple((first + i) % 2**32 for i in range(count)),
                format=format,
                writing=Writing(int(quality) or None, bool(strip), bool(record)),
                stages=bool(stages),
            )
            session = await asyncio.to_thread(service.start, owner, asked)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        seen, told, chosen = -1, "", False
        try:
            while True:
                ended = session.job.state != "waiting"
                update: list[Any] = [gr.skip()] * 8
                text = self._status(session)
                if text != told:
                    update[0] = told = text
                if len(session.results.made) != seen or ended:
                    seen = len(session.results.made)
                    first = bool(seen) and not chosen  # later, what the user has chosen stays
                    update[1:6] = await asyncio.to_thread(self._shown, session.results, seen, first)
                    chosen |= first
                    update[6:8] = [gr.update(interactive=ended), gr.update(interactive=not ended)]
                yield update
                if ended:
                    return
                await asyncio.sleep(_LOOK)
        finally:  # Whoever waits for the results is gone, if there is more to do.
            if session.job.state == "waiting":
                service.stop(owner)

    def _status(self, session: Session) -> str:
        job, results = session.job, session.results
        failed = "".join(
            f'<div class="failed">{html.escape(line)}</div>' for line in results.failed
        )
        done = f"{job.done} of {job.count}"
        if job.state == "waiting":
            before = self._service.before(session)
            text = f"restoring picture {job.done + 1} of {job.count}"
            if job.asked_to_stop:
                text += "; stops after this picture"
            elif before:
                text = f"{done} done; {before} pictures of others are before your next one"
            elif job.busy:
                text += f", {time.monotonic() - job.since:.0f} s"
            else:
                text = f"{done} done; waiting"
            bar = f'<progress value="{job.done}" max="{job.count}"></progress>'
            return f"<div>{text}</div>{bar}{failed}"
        text = f"{len(results.made)} restored"
        if results.failed:
            text += f", {len(results.failed)} not"
        if job.state != "finished":
            text += f"; {job.state}: {job.reason}" if job.reason != "cancelled" else "; cancelled"
        return f"<div>{html.escape(text)}</div>{failed}"

    def _shown(self, results: Results, count: int, first: bool) -> list[Any]:
        """Updates of viewer, cards, stages, files and ZIP, for the first `count` results."""
        made = results.made[:count]
        if not made:
            hidden = gr.update(value=None, visible=False)
            return ["", hidden, hidden, hidden, hidden]
        cards = [(str(viewing.card(one)), one.path.name) for one in made]
        paths = [str(one.path) for one in made]
        zipped = str(results.zip) if results.zip else None
        viewer, stages = self._chosen(results, 0) if first else (gr.skip(), gr.skip())
        return [
            viewer,
            gr.update(value=cards, visible=True),
            stages,
            gr.update(value=paths, visible=True),
            gr.update(value=zipped, visible=zipped is not None),
        ]

    def _chosen(self, results: Results, index: int) -> tuple[Any, Any]:
        one = results.made[index]
        pictures = viewing.stages(one)
        return viewing.viewer(one, _FILES), gr.update(value=pictures, visible=bool(pictures))

    async def select(self, event: gr.SelectData, request: gr.Request) -> tuple[Any, Any]:
        """Show one of the results."""
        session = self._service.session(_owner(request))
        if session is None or not 0 <= event.index < len(session.results.made):
            raise gr.Error("these results have been removed; restore the photos again")
        return await asyncio.to_thread(self._chosen, session.results, event.index)

    def cancel(self, request: gr.Request) -> Any:
        """Stop after the picture that is being made."""
        self._service.stop(_owner(request))
        return gr.update(interactive=False)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self._service.leave(_owner(request))


def _add(photos: list[str] | None, more: list[str] | None) -> list[str]:
    """Photos of a folder beside those that are there; others of its files are left out."""
    wanted = (path for path in more or () if Path(path).suffix.lower() in files.SUFFIXES)
    return [*(photos or ()), *wanted]


def _owner(request: gr.Request) -> str:
    return request.session_hash or os.urandom(8).hex()
