"""What a file or folder of weights is: decided here, for everything that reads one.

Content comes first. A name counts only where the content is damaged, or has no mark of its own.
"""

from __future__ import annotations

import enum
import zipfile
from pathlib import Path

from dossr_jax.errors import UserError

CONFIG_FILE = "dossr_jax.json"
INDEX_SUFFIX = ".safetensors.index.json"
# The limit of the format's own library.
MAX_HEADER = 100_000_000
# A model in Hugging Face's layout, which libraries share: its configuration and its weights.
HUB_FILES = ("config.json", "model.safetensors")
CROSSCHECK_FILES = ("weights.safetensors", "config.yaml")

# Enough for the mark of a tar archive, which is the last of all.
_HEAD_BYTES = 512
_GIT_LFS = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml")
_ZIP = b"PK"
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
_TAR, _TAR_OFFSET = b"ustar", 257
# Pickles of protocols 2 to 5, which PyTorch wrote before its files became zip archives.
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))


class Kind(enum.Enum):
    """The forms in which weights come; the values are for messages."""

    SAFETENSORS = "a .safetensors file"
    SHARDS = "shards with their index"
    TORCH = "a PyTorch checkpoint"
    NCNN = "an ncnn model"
    ORBAX = "an Orbax checkpoint of dossr_jax"
    DIFFUSERS = "a diffusers folder"
    HUB = "a folder with config.json and model.safetensors"
    CROSSCHECK = "a folder for crosscheck"
    PARTS = "a folder of checkpoint files"


_BY_SUFFIX = {
    ".safetensors": Kind.SAFETENSORS,
    ".ckpt": Kind.TORCH,
    ".pth": Kind.TORCH,
    ".pt": Kind.TORCH,
    ".pkl": Kind.TORCH,
    ".param": Kind.NCNN,
    ".bin": Kind.NCNN,
}


def kind_of(path: str | Path) -> Kind:
    """Tell what a file or folder of weights is; whether it is whole its reader finds out.

    Raises:
      UserError: it is missing, something that :func:`check_content` refuses, or no weights.
    """
    path = Path(path)
    if path.is_dir():
        return _kind_of_folder(path)
    head = check_content(path)
    if path.name.endswith(INDEX_SUFFIX):
        return Kind.SHARDS
    if _is_safetensors(head):
        return Kind.SAFETENSORS
    if head.startswith((_ZIP, *_PICKLES)):
        return Kind.TORCH
    if (kind := _BY_SUFFIX.get(path.suffix.lower())) is None:
        raise UserError(
            f"{path}: not a checkpoint by its content or its name; its suffix should be one of "
            f"{', '.join(_BY_SUFFIX)}"
        )
    return kind


def is_own_folder(path: Path) -> bool:
    """Tell whether a folder is an Orbax checkpoint of ours."""
    return (path / CONFIG_FILE).is_file()


def is_hub_folder(path: Path) -> bool:
    """Tell whether a folder has the layout of Hugging Face, whichever library it is for."""
    return all((path / name).is_file() for name in HUB_FILES)


def checkpoints_in(folder: Path) -> list[Path]:
    """The files in a folder whose names are those of checkpoints, in the order of their names."""
    return sorted(
        file
        for file in folder.iterdir()
        if _BY_SUFFIX.get(file.suffix.lower()) in (Kind.SAFETENSORS, Kind.TORCH)
    )


def check_content(path: Path) -> bytes:
    """Refuse a file that stands for weights or wraps them; return its first bytes.

    Raises:
      UserError: a file that is missing, unreadable or empty, a Git LFS pointer, a web page, an
        archive, a TorchScript program.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    if not _is_safetensors(head) and (problem := _problem(path, head)):
        raise UserError(f"{path}: {problem}")
    return head


def _kind_of_folder(path: Path) -> Kind:
    if is_own_folder(path):
        return Kind.ORBAX
    if (path / "unet").is_dir():
        return Kind.DIFFUSERS
    if all((path / name).is_file() for name in CROSSCHECK_FILES):
        return Kind.CROSSCHECK
    if is_hub_folder(path):
        return Kind.HUB
    if any(path.glob(f"*{INDEX_SUFFIX}")):
        return Kind.SHARDS
    if checkpoints_in(path):
        return Kind.PARTS
    raise UserError(
        f"{path}: neither a diffusers folder (unet/, vae/), nor one with "
        f"{' and '.join(CROSSCHECK_FILES)} or {' and '.join(HUB_FILES)}, nor an Orbax checkpoint "
        f"of dossr_jax, nor shards with their index (*{INDEX_SUFFIX}), nor checkpoint files; check "
        "the path"
    )


def _is_safetensors(head: bytes) -> bool:
    """The length of a header and its opening brace; text and archives have neither."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER


def _problem(path: Path, head: bytes) -> str | None:
    if not head:
        return "an empty file; copy or download it again"
    if head.startswith(_GIT_LFS):
        return "a Git LFS pointer, not the file itself; fetch it with git lfs pull"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_WEB_PAGE):
        return "a web page, not the file itself; download the file that the page links to"
    archive = next((name for mark, name in _COMPRESSED.items() if head.startswith(mark)), None)
    if head.startswith(_TAR, _TAR_OFFSET):
        archive = "tar"
    if head.startswith(_ZIP) and (names := _names_in_zip(path)):
        inside = {Path(name).name for name in names}
        if "constants.pkl" in inside:
            return "a TorchScript program, not weights; save the model's state_dict"
        if "data.pkl" not in inside:
            archive = "zip"
    if archive:
        return f"an archive ({archive}), not weights; unpack it and give the file that is inside"
    return None


def _names_in_zip(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as file:
            return file.namelist()
    except Exception:  # a damaged file: its reader reports it
        return []
