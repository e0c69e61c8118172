"""Gradio's server for the page: nothing from elsewhere, nothing to elsewhere, private files."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dossr_jax.errors import UserError
from dossr_jax.temporary import temporary
from dossr_jax.web.limits import Limits
from dossr_jax.web.models import Models
from dossr_jax.web.service import Service

# What the page and Gradio's client ask for; Gradio also has proxies, monitoring, editors, ...
_NEEDED = re.compile(
    r"/(assets/.+|static/.+|svelte/.+|config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json"
    r"|gradio_api/(startup-events|theme\.css|app_id/?|info/?|login_check/?|token/?|user/?"
    r"|upload|upload_progress|queue/(join|data)|heartbeat/\w+|cancel|reset/?"
    r"|run/\w+/?|call/[\w/]+|file=/.+))?"
)
_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
    ]
)


class Guard:
    """ASGI middleware: only the addresses that are needed, a full disk, and browsers' policy."""

    def __init__(self, app: Any, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"]
        if not _NEEDED.fullmatch(path):
            return await _answer(send, 404, "not here")
        if path == "/gradio_api/upload" and scope["method"] == "POST":
            length = dict(scope["headers"]).get(b"content-length", b"0")
            coming = int(length) if length.isdigit() else 0
            if self._service.bytes() + coming > self._service.limits.disk * 1e6:
                return await _answer(send, 507, "no room for uploads; try again in some minutes")

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = {
                    "content-security-policy": _POLICY,
                    "referrer-policy": "no-referrer",
                    "x-content-type-options": "nosniff",
                }
                added = [(name.encode(), value.encode()) for name, value in headers.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, guarded)


async def _answer(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


@contextlib.contextmanager
def serving(models: Models, limits: Limits, host: str, port: int) -> Iterator[tuple[str, Service]]:
    """Serve the page until the context is left; its address, and the service behind it.

    `port` 0 is any free one.

    Raises:
      UserError: the address cannot be had, or the first model cannot be loaded.
    """
    models.load(models.names[0])
    with temporary(Path(tempfile.gettempdir()) / "page", folder=True) as place:
        place.chmod(0o700)
        folder = (place / "files").resolve()
        folder.mkdir()
        # Gradio reads these when its components are made, and some when it is imported.
        os.environ.update(
            GRADIO_TEMP_DIR=str(folder),
            GRADIO_EXAMPLES_CACHE=str(folder / "examples"),
            GRADIO_ANALYTICS_ENABLED="False",
            HF_HUB_OFFLINE="1",
        )
        for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_SHARE", "GRADIO_NUM_WORKERS"):
            os.environ.pop(name, None)
        from gradio.themes import Default
        from starlette.middleware import Middleware

        from dossr_jax.web.page import CSS, make_page
        from dossr_jax.web.viewing import SCRIPT

        service = Service(models, limits, folder)
        page = make_page(service)
        page.queue(default_concurrency_limit=None, max_size=None)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=_free_port(host, port),
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                inbrowser=False,
                show_error=False,
                max_file_size=round(limits.upload * 1e6),
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                run_history=False,
                footer_links=[],
                app_kwargs={"middleware": [Middleware(Guard, service=service)]},
                theme=Default(font=["system-ui"], font_mono=["ui-monospace"]),
                css=CSS,
                head=f"<script>{SCRIPT}</script>",
            )
            yield address, service
        finally:
            page.close(verbose=False)
            service.close()


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
      UserError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{host} port {port}: {reason}; give others with --host or --port"
            ) from (error)
        return sock.getsockname()[1]
