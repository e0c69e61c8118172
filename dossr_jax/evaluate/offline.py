"""pyiqa without the network: what it would download is named as a file that is missing."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from dossr_jax.errors import UserError


def hub_folder() -> Path:
    """The folder of torch.hub: $TORCH_HOME/hub, by default ~/.cache/torch/hub."""
    from torch import hub

    return Path(hub.get_dir())


def check_cached(name: str, repository: str, file: str) -> None:
    """Raise UserError where a file is not in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repository, file), str):
        raise UserError(_not_cached(name, repository, file))


def _not_cached(name: str, repository: str, *files: str) -> str:
    from huggingface_hub import constants

    wanted = " ".join((repository, *files))
    return (
        f"{name}: {' '.join(files) or 'a file'} of {repository} is missing in "
        f"{constants.HF_HUB_CACHE}; put it there by 'hf download {wanted}'"
    )


@contextlib.contextmanager
def offline(name: str, purpose: str) -> Iterator[None]:
    """Inside, no connection can be made and no host looked up; what goes wrong is a UserError.

    Args:
      name: of the metric. purpose: what is done inside, as in "pyiqa cannot" do it.
    """

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("a file that is missing, or is not the published one, would be downloaded")

    kept, os.environ["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE"), "1"
    # What is imported already does not look there again, and would try several times.
    constants: Any = sys.modules.get("huggingface_hub.constants")
    was_offline = constants is not None and constants.HF_HUB_OFFLINE
    if constants is not None:
        constants.HF_HUB_OFFLINE = True
    connect, socket.socket.connect = socket.socket.connect, refuse
    look_up, socket.getaddrinfo = socket.getaddrinfo, refuse
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"{name}: pyiqa needs the module {error.name}; "
            "pip install 'dossr-jax[iqa]' installs all that it names"
        ) from error
    except Exception as error:  # pyiqa and the libraries below it raise almost anything.
        raise UserError(_missing(name, error) or _failure(name, purpose, error)) from error
    finally:
        socket.socket.connect, socket.getaddrinfo = connect, look_up
        if constants is not None:
            constants.HF_HUB_OFFLINE = was_offline
        if kept is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = kept


def _failure(name: str, purpose: str, error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return (
        f"{name}: pyiqa cannot {purpose} with the weights in {hub_folder()} and the Hugging Face "
        f"cache ({reason}); docs/evaluation.md names the files that it needs"
    )


def _missing(name: str, error: BaseException) -> str | None:
    """Which file the call that failed was to fetch, and to where; None where it was none."""
    for frame in _frames(error):
        values = frame.f_locals
        match frame.f_code.co_name:
            case "download_url_to_file":  # torch.hub's
                return _put(name, Path(values["dst"]), values["url"])
            case "_download" if {"url", "root"} <= values.keys():  # CLIP's
                path = Path(values["root"], Path(values["url"]).name)
                # One that is there is not the published one, which its digest tells.
                return None if path.exists() else _put(name, path, values["url"])
            case "hf_hub_download" | "snapshot_download":
                return _not_cached(name, values["repo_id"])
            case "from_pretrained" if isinstance(error, OSError):  # of transformers
                repository = values.get("pretrained_model_name_or_path")
                if isinstance(repository, str):
                    return _not_cached(name, repository)
    return None


def _put(name: str, path: Path, source: str) -> str:
    return f"{name}: {path} is missing; put it there from {source}"


def _frames(error: BaseException | None) -> Iterator[FrameType]:
    """Frames of an error and of those that led to it."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            yield trace.tb_frame
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
