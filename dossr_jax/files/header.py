"""What the header of an open image says, by Pillow and where it does not know by the file."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import tifffile
from PIL import ExifTags, Image

# In an image's info: the content of the file, where Pillow reads a stand-in for it.
CONTENT = "content"


def format_of(image: Image.Image) -> str:
    """Pillow's name of the format, as in formats.WRITABLE; "" for an image without a file."""
    return {"MPO": "JPEG", "DIB": "BMP"}.get(image.format or "", image.format or "")


def frames_of(image: Image.Image) -> int:
    """How many frames or pages the file has."""
    if image.format == "MPO":  # further frames are previews, depth maps or a second eye
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # A damaged second page leaves the first one intact.
        return 1


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Malformed metadata must not cost an intact picture.
        return 1


def is_upright(image: Image.Image) -> bool:
    """Whether the decoder turns the image by itself, whatever EXIF says."""
    return image.format in ("HEIF", "JXL")


def is_deep(image: Image.Image) -> bool:
    """Whether there are more than 8 bits per channel: in its file, while that is open."""
    if image.mode.startswith(("I", "F")):
        return True
    if not has_content(image):
        return False
    if image.format == "PNG":
        return any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.format == "TIFF":
        return CONTENT in image.info or max(tag_of(image, 258, (8,))) > 8
    if image.format == "JPEG2000":
        return jpeg2000_bits(image) > 8
    return image.format == "JXL" and image.mode == "F"


def tag_of(image: Image.Image, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """The values of a tag of a TIFF."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value if isinstance(value, tuple) else (value,)


def mode_of(image: Image.Image) -> str:
    """Mode of the photo that the image becomes, see :attr:`dossr_jax.files.Photo.mode`."""
    if CONTENT in image.info:
        with tifffile.TiffFile(io.BytesIO(content_of(image))) as file:
            colors, alpha = channels_of(file.pages[0])
        return ("L" if colors == 1 else "RGB") + "A" * alpha
    # Pillow shows grey and alpha of 16 bits as RGBA.
    raw = "".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    grey = grey or raw.startswith("LA;16")
    alpha = image.has_transparency_data
    return ("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")


def has_content(image: Image.Image) -> bool:
    """Whether the file of an image can be read; Pillow closes most once their pixels are loaded."""
    file = getattr(image, "fp", None)
    return CONTENT in image.info or not (file is None or getattr(file, "closed", False))


def content_of(image: Image.Image) -> bytes:
    """The bytes of the file of an image that has one."""
    if CONTENT in image.info:
        return image.info[CONTENT]
    file: BinaryIO = getattr(image, "fp")  # noqa: B009
    file.seek(0)
    return file.read()


def jpeg2000_bits(image: Image.Image) -> int:
    """Bits per channel by the SIZ marker of a JPEG 2000 file."""
    file: BinaryIO = getattr(image, "fp")  # noqa: B009
    file.seek(0)
    data = file.read(2**16)
    at = data.find(b"\xff\x4f\xff\x51")
    return (data[at + 42] & 0x7F) + 1 if 0 <= at < len(data) - 42 else 8


def channels_of(page: Any) -> tuple[int, bool]:
    """Channels of colour of a page of a TIFF, and whether one of alpha follows."""
    colors = 3 if page.photometric == tifffile.PHOTOMETRIC.RGB else 1
    return colors, tuple(page.extrasamples)[:1] in ((1,), (2,))


def jxl_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height by the header of a JPEG XL file (ISO/IEC 18181-1, SizeHeader)."""
    data = file.read(2**16)
    at = data.find(b"\xff\x0a")
    bits = int.from_bytes(data[at + 2 : at + 18], "little")
    place = 0

    def take(count: int) -> int:
        nonlocal place
        value = bits >> place & (1 << count) - 1
        place += count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    shares = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
    if not ratio:
        return side(), height
    numerator, denominator = shares[ratio - 1]
    return height * numerator // denominator, height
