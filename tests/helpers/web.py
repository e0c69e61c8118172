"""What tests of the page share: a tiny model, odd files, and a server in a process of its own."""

import contextlib
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from PIL import Image

from dossr_jax import systems
from dossr_jax.web.__main__ import make_parser
from dossr_jax.web.models import Models
from helpers.models import tiny_model
from helpers.pictures import picture

OPTIONS = ("--steps", "2", "--tile", "128")


def model_file(folder: Path) -> Path:
    """A model that restores in no time."""
    path = folder / "tiny.safetensors"
    systems.save_model(path, tiny_model())
    return path


def models(file: Path) -> Models:
    """The page's models: this one."""
    return Models(make_parser().parse_args(["--model", str(file), *OPTIONS, "--no-cache"]))


def photo(path: Path, height: int = 20, width: int = 30, seed: int = 0) -> Path:
    """A JPEG with EXIF, or what the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[271] = "Maker"
    Image.fromarray(picture(height, width, seed)).save(path, exif=exif)
    return path


def grey_photo(path: Path) -> Path:
    """A PNG without colour."""
    Image.fromarray(picture(24, 24)[..., 0]).save(path)
    return path


def fake(path: Path) -> Path:
    """No image, whatever its name says."""
    path.write_text("<svg onload=alert(1)>")
    return path


def bomb(path: Path) -> Path:
    """A PNG of some bytes that claims 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


@contextlib.contextmanager
def server(model: Path, *options: str, temporary: Path):
    """(address, process) of the command line with the tiny model; ended by SIGTERM."""
    command = [sys.executable, "-m", "dossr_jax.web", "--port", "0", "--model", str(model)]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, *OPTIONS, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("open http"):
                break
        else:
            raise AssertionError("the server did not start: " + "".join(said))
        yield line.split()[1], process
    finally:
        process.terminate()
        process.communicate(timeout=30)
