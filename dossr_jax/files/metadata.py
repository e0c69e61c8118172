"""EXIF, XMP, IPTC and text: taken from files, mended for another size, put into files."""

from __future__ import annotations

import re
import struct
from typing import Any

from PIL import Image, TiffImagePlugin, TiffTags

from dossr_jax.files.photo import Metadata

_ORIENTATION, _COMMENT = 0x0112, 0x9C9C
# Tags that say how a TIFF stores its pixels, or hold what is kept apart.
_STRUCTURE = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 266, 269, 273, 274, 277, 278, 279, 280, 281, 284, 292}
    | {293, 297, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 337, 338, 339, 340}
    | {341, 342, 347, 512, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675}
)


def take_metadata(image: Image.Image) -> tuple[Metadata, list[str]]:
    """What an open file says besides its pixels, as it stands, and notes of what was left out."""
    info, notes = image.info, []
    exif = _as_bytes(info.get("exif")).removeprefix(b"Exif\0\0")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        exif = _tiff_tags(image)
    if exif and not _is_exif(exif):
        exif = b""
        notes.append("its EXIF data are damaged and were left out")
    metadata = Metadata(
        exif=exif,
        xmp=_as_bytes(info.get("xmp") or info.get("XML:com.adobe.xmp")),
        iptc=_iptc(image),
        dpi=_dpi(info),
        text=_text(image),
    )
    return metadata, notes


def mended(metadata: Metadata, width: int, height: int) -> Metadata:
    """For upright pixels of another size: orientation 1, the new size, no thumbnail."""
    exif = bytearray(metadata.exif)
    try:
        _mend_exif(exif, width, height)
    except (struct.error, IndexError, ValueError):
        exif = bytearray()
    return Metadata(
        bytes(exif),
        _mend_xmp(metadata.xmp, width, height),
        metadata.iptc,
        metadata.dpi,
        metadata.text,
    )


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else b""


def _is_exif(data: bytes) -> bool:
    try:
        order, start = _first(data)
        _entries(data, start, order)
    except (struct.error, IndexError, ValueError):
        return False
    return True


def _tiff_tags(image: TiffImagePlugin.TiffImageFile) -> bytes:
    """The tags of a TIFF that are not about how it stores its pixels."""
    kept = Image.Exif()
    found = image.getexif()
    for tag, value in found.items():
        if tag not in _STRUCTURE:
            kept[tag] = value
    for pointer in (0x8769, 0x8825):  # EXIF and GPS
        if values := found.get_ifd(pointer):
            kept[pointer] = dict(values)
    if not len(kept):
        return b""
    try:
        return kept.tobytes().removeprefix(b"Exif\0\0")
    except Exception:  # Pillow writes no tag of a type that it does not know.
        return b""


def _iptc(image: Image.Image) -> bytes:
    """The IPTC records (IIM) of a JPEG, TIFF or PNG."""
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return _as_bytes(image.tag_v2.get(33723))
        resources = image.info.get("photoshop")
        if isinstance(resources, dict):
            return _as_bytes(resources.get(0x0404))
        raw = image.info.get("Raw profile type iptc")
        if isinstance(raw, str):
            data = bytes.fromhex("".join(raw.split("\n", 3)[-1].split()))
            found = data.find(b"\x1c\x02")
            return data[found:] if found >= 0 else b""
    except Exception:  # Malformed metadata must not cost an intact picture.
        pass
    return b""


def _dpi(info: dict[Any, Any]) -> tuple[float, float] | None:
    try:
        horizontal, vertical = (float(value) for value in info.get("dpi", ()))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    sensible = 0 < horizontal < 1e6 and 0 < vertical < 1e6
    return (horizontal, vertical) if sensible else None


def _text(image: Image.Image) -> tuple[tuple[str, str], ...]:
    found = dict(getattr(image, "text", None) or {})
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        comment = comment.decode("latin-1")
    if comment and isinstance(comment, str):
        found.setdefault("Comment", comment)
    return tuple(
        (str(key), str(value))
        for key, value in found.items()
        if key != "XML:com.adobe.xmp" and not key.startswith("Raw profile type")
    )


def _first(data: bytes | bytearray) -> tuple[str, int]:
    """Byte order of a TIFF structure, and where its first directory is."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or struct.unpack_from(order + "H", data, 2)[0] != 42:
        raise ValueError("no TIFF structure")
    return order, struct.unpack_from(order + "I", data, 4)[0]


def _entries(data: bytes | bytearray, start: int, order: str) -> dict[int, int]:
    """Tag -> position of its entry, of the directory at `start`."""
    if start < 8:
        raise ValueError("a directory inside the header")
    (count,) = struct.unpack_from(order + "H", data, start)
    places = [start + 2 + 12 * i for i in range(count)]
    found = {struct.unpack_from(order + "H", data, place)[0]: place for place in places}
    struct.unpack_from(order + "I", data, start + 2 + 12 * count)  # it is there
    return found


def _mend_exif(data: bytearray, width: int, height: int) -> None:
    """In place, so that what makers store with offsets of their own stays where it is."""
    if not data:
        return
    order, start = _first(data)

    def put(entry: int | None, value: int) -> None:
        if entry is not None:
            if value < 2**16:
                struct.pack_into(order + "HIHH", data, entry + 2, 3, 1, value, 0)
            else:
                struct.pack_into(order + "HII", data, entry + 2, 4, 1, value)

    main = _entries(data, start, order)
    put(main.get(_ORIENTATION), 1)
    put(main.get(0x0100), width)
    put(main.get(0x0101), height)
    if 0x8769 in main:
        (place,) = struct.unpack_from(order + "I", data, main[0x8769] + 8)
        details = _entries(data, place, order)
        put(details.get(0xA002), width)
        put(details.get(0xA003), height)
    _drop_thumbnail(data, start, order)


def _drop_thumbnail(data: bytearray, start: int, order: str) -> None:
    """Cut the second directory, which describes a thumbnail, from the chain."""
    (count,) = struct.unpack_from(order + "H", data, start)
    link = start + 2 + 12 * count
    (second,) = struct.unpack_from(order + "I", data, link)
    struct.pack_into(order + "I", data, link, 0)
    if not second:
        return
    entries = _entries(data, second, order)
    if 0x0201 in entries and 0x0202 in entries:
        (at,) = struct.unpack_from(order + "I", data, entries[0x0201] + 8)
        (length,) = struct.unpack_from(order + "I", data, entries[0x0202] + 8)
        if at + length >= len(data) - 1 and at > second:
            del data[at:]


def _mend_xmp(xmp: bytes, width: int, height: int) -> bytes:
    """The same packet with the size and the orientation of the result, without thumbnails."""
    values = {
        b"tiff:Orientation": 1,
        b"tiff:ImageWidth": width,
        b"tiff:ImageLength": height,
        b"exif:PixelXDimension": width,
        b"exif:PixelYDimension": height,
    }
    for name, value in values.items():
        new = str(value).encode()
        xmp = re.sub(name + rb"(\s*=\s*[\"'])\d+", name + rb"\g<1>" + new, xmp)
        xmp = re.sub(b"(<" + name + rb">\s*)\d+", rb"\g<1>" + new, xmp)
    return re.sub(rb"<(xmp|xap):Thumbnails>.*?</\1:Thumbnails>", b"", xmp, flags=re.DOTALL)


def with_comment(exif: bytes, text: str) -> bytes:
    """EXIF data with a comment (XPComment) more."""
    data = bytearray(exif or b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    place = len(data)
    data += text.encode("utf-16-le") + b"\0\0"
    return _with_entries(data, {_COMMENT: (1, len(data) - place, place)})


def with_directories(tiff: bytes, directories: dict[int, dict[int, Any]]) -> bytes:
    """A TIFF file with the directories of tags that belong to EXIF (0x8769) or GPS (0x8825)."""
    data, added = bytearray(tiff), {}
    for pointer, values in directories.items():
        directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=bytes(data[:2]))
        for tag, value in values.items():
            if isinstance(value, bytes):
                directory.tagtype[tag] = TiffTags.UNDEFINED
            directory[tag] = value
        data += b"\0" * (len(data) % 2)
        added[pointer] = (4, 1, len(data))
        data += directory.tobytes(len(data))
    return _with_entries(data, added)


def as_grey_tiff(tiff: bytes) -> bytes:
    """A TIFF whose tags say that it has one channel of 8 bits, so that Pillow reads the others.

    Raises ValueError or struct.error where it is damaged.
    """
    bits, photometric, samples, kind = 258, 262, 277, 339
    said = {bits: 8, photometric: 1, samples: 1, kind: 1}
    if tiff.startswith(b"MM"):  # a short value stands in the first half of its place
        said = {tag: value << 16 for tag, value in said.items()}
    entries = {tag: (3, 1, value) for tag, value in said.items()}
    return _with_entries(bytearray(tiff), entries, without=(284, 338))


def _with_entries(
    data: bytearray, added: dict[int, tuple[int, int, int]], without: tuple[int, ...] = ()
) -> bytes:
    """A TIFF structure with more tags: type, count, and where the value is, or the value itself.

    What is there stays where it is; a new first directory comes last.
    """
    order, start = _first(data)
    found = {
        tag: bytes(data[place : place + 12]) for tag, place in _entries(data, start, order).items()
    }
    (count,) = struct.unpack_from(order + "H", data, start)
    link = data[start + 2 + 12 * count :][:4]
    for tag in without:
        found.pop(tag, None)
    for tag, entry in added.items():
        found[tag] = struct.pack(order + "HHII", tag, *entry)
    data += b"\0" * (len(data) % 2)
    data[4:8] = struct.pack(order + "I", len(data))
    data += struct.pack(order + "H", len(found)) + b"".join(found[tag] for tag in sorted(found))
    return bytes(data + link)
