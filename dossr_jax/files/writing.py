"""Photos to files, whole or not at all."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from dossr_jax.errors import UserError
from dossr_jax.files import color
from dossr_jax.files.atomic import write_file
from dossr_jax.files.formats import SUFFIXES, WRITABLE, Format
from dossr_jax.files.metadata import with_comment, with_directories
from dossr_jax.files.photo import Photo

_MOST_IN_SEGMENT = 65_000  # bytes, of a JPEG


def format_for(path: str | os.PathLike[str]) -> str:
    """Pillow's name of the format that a suffix stands for.

    Raises:
      UserError: a suffix that cannot be written.
    """
    name = SUFFIXES.get(Path(path).suffix.lower(), "")
    if name not in WRITABLE:
        kinds = " ".join(suffix for suffix, known in SUFFIXES.items() if known in WRITABLE)
        raise UserError(f"{path}: cannot write this kind of file; use one of {kinds}")
    return name


def write_photo(
    path: str | os.PathLike[str], photo: Photo, *, quality: int | None = None
) -> list[str]:
    """Write a photo, its suffix choosing the format; folders are made.

    Args:
      quality: of a lossy format, 1 to 100. By default, a JPEG of a JPEG has its quantisation and
        subsampling, and other files the format's default.

    Returns:
      What the format cannot hold, a short sentence each.

    Raises:
      UserError: an unknown suffix, an image too large for the format, or what the disk refuses.
    """
    path, name = Path(path), format_for(path)
    most = WRITABLE[name].max_side
    if max(photo.height, photo.width) > most:
        raise UserError(f"{path}: {name} holds at most {most} pixels per side; write PNG instead")
    photo, notes = fit(photo, name)
    try:
        encoded = encode(photo, name, quality=quality)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: cannot encode as {name} ({error}); write PNG instead") from error
    write_file(path, encoded)
    return notes


# What a format cannot hold


def fit(photo: Photo, name: str) -> tuple[Photo, list[str]]:
    """The part of a photo that a format holds, and what is lost for it, a short sentence each."""
    kind = WRITABLE[name]
    notes: list[str] = []
    for step in (_fit_numbers, _fit_mode, _fit_profile, _fit_depth, _fit_metadata):
        photo = step(photo, name, kind, notes)
    return photo, notes


def _fit_numbers(photo: Photo, name: str, kind: Format, notes: list[str]) -> Photo:
    levels = photo.levels
    if levels is None or name == "TIFF" or (name == "PNG" and levels.dtype == "uint16"):
        return photo
    notes.append(f"{name} holds no numbers of {levels}: scaled to {kind.bits} bits")
    return dataclasses.replace(photo, levels=None)


def _fit_mode(photo: Photo, name: str, kind: Format, notes: list[str]) -> Photo:
    if photo.mode in kind.modes:
        return photo
    if photo.mode.startswith("L") and "L" not in kind.modes:
        notes.append(f"{name} holds no grey: written as colour")
        colors = color.to_srgb(photo.colors, photo.profile)
        pixels = np.concatenate([colors, photo.pixels[..., 1:]], axis=-1)
        return dataclasses.replace(photo, pixels=pixels, profile=None)
    notes.append(f"{name} holds no transparency: laid on white")
    return dataclasses.replace(
        photo, pixels=color.lay_on_white(photo.colors, photo.pixels[..., -1])
    )


def _fit_profile(photo: Photo, name: str, kind: Format, notes: list[str]) -> Photo:
    if photo.profile is None or "profile" in kind.holds:
        return photo
    notes.append(f"{name} holds no colour profile: converted to sRGB")
    colors = color.to_srgb(photo.colors, photo.profile)[..., : photo.colors.shape[2]]
    pixels = np.concatenate([colors, photo.pixels[..., colors.shape[2] :]], axis=-1)
    return dataclasses.replace(photo, pixels=pixels, profile=None)


def _fit_depth(photo: Photo, name: str, kind: Format, notes: list[str]) -> Photo:
    if photo.bits <= kind.bits:
        return photo
    notes.append(f"{name} is written with {kind.bits} bits: reduced from {photo.bits}")
    return dataclasses.replace(photo, pixels=color.requantize(photo.pixels, kind.bits))


def _fit_metadata(photo: Photo, name: str, kind: Format, notes: list[str]) -> Photo:
    metadata = photo.metadata
    if metadata.text and "text" not in kind.holds and "exif" in kind.holds:
        lines = "\n".join(f"{key}: {value}" for key, value in metadata.text)
        metadata = dataclasses.replace(metadata, exif=with_comment(metadata.exif, lines), text=())
    most = _MOST_IN_SEGMENT if name == "JPEG" else 2**31
    for field in ("exif", "xmp", "iptc", "text"):
        value = getattr(metadata, field)
        if value and (field not in kind.holds or len(value) > most):
            notes.append(f"{name} does not hold its {field.upper()}: left out")
            empty: Any = () if field == "text" else b""
            metadata = dataclasses.replace(metadata, **{field: empty})
    return dataclasses.replace(photo, metadata=metadata)


# Encoding


def encode(photo: Photo, name: str, *, quality: int | None = None) -> bytes:
    """The bytes of a file, of a photo that the format can hold; errors as the codecs raise them."""
    photo = dataclasses.replace(photo, pixels=np.ascontiguousarray(photo.pixels))  # codecs need it
    if name == "TIFF":
        return _encode_tiff(photo)
    if name == "PNG":
        return _encode_png(photo)
    kind, metadata = WRITABLE[name], photo.metadata
    options: dict[str, Any] = dict(kind.options)
    if kind.quality is not None:
        options["quality"] = kind.quality if quality is None else quality
    if name == "JPEG":
        options |= _jpeg_options(photo)
        if quality is None and photo.encoding.tables:
            options |= {"qtables": photo.encoding.tables, "quality": -1}  # -1: as they are
            options["subsampling"] = photo.encoding.subsampling
    if name == "JXL" and options["quality"] == 100:
        options["lossless"] = True
    if photo.profile is not None:
        options["icc_profile"] = photo.profile
    if metadata.exif:
        options["exif"] = metadata.exif if name == "JXL" else b"Exif\0\0" + metadata.exif
    if metadata.xmp:
        options["xmp"] = metadata.xmp
    if metadata.dpi and "dpi" in kind.holds:
        options["dpi"] = metadata.dpi
    return _save(photo.pixels, name, options)


def _save(pixels: np.ndarray, name: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(buffer, format=name, **options)
    return buffer.getvalue()


def _jpeg_options(photo: Photo) -> dict[str, Any]:
    metadata = photo.metadata
    options: dict[str, Any] = {"subsampling": 0, "progressive": photo.encoding.progressive}
    if metadata.text:
        texts = [v if k == "Comment" else f"{k}: {v}" for k, v in metadata.text]
        options["comment"] = "\n".join(texts).encode()[:_MOST_IN_SEGMENT]
    if metadata.iptc:
        # An image resource block of Photoshop, which the IPTC data live in.
        block = b"8BIM\x04\x04\0\0" + len(metadata.iptc).to_bytes(4, "big") + metadata.iptc
        block = b"Photoshop 3.0\0" + block + b"\0" * (len(block) % 2)
        options["extra"] = b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block
    return options


def _encode_png(photo: Photo) -> bytes:
    pixels, metadata = photo.pixels, photo.metadata
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.text:
        info.add_itxt(key[:79] or "Comment", value)
    if metadata.xmp:
        info.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
    if metadata.iptc:
        profile = f"\niptc\n{len(metadata.iptc):8d}\n{metadata.iptc.hex()}\n"
        info.add_text("Raw profile type iptc", profile, zip=True)
    options: dict[str, Any] = {"pnginfo": info, "icc_profile": photo.profile}
    if metadata.exif:
        options["exif"] = metadata.exif
    if metadata.dpi:
        options["dpi"] = metadata.dpi
    if photo.bits == 8:
        return _save(pixels, "PNG", options)
    if photo.levels is not None:
        pixels = photo.levels.to_numbers(pixels)
    encoded = imagecodecs.png_encode(np.squeeze(pixels, -1) if pixels.shape[2] == 1 else pixels)
    # Pillow writes no 16-bit colours, but everything else: its chunks go before the pixels.
    carrier = _save(np.zeros((1, 1, 1), np.uint8), "PNG", options)
    extra = b"".join(chunk for kind, chunk in _chunks(carrier) if kind not in _PNG_OWN)
    parts = [chunk for _, chunk in _chunks(bytes(encoded))]
    return b"".join([bytes(encoded[:8]), parts[0], extra, *parts[1:]])


_PNG_OWN = (b"IHDR", b"IDAT", b"IEND")


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and whole bytes of every chunk."""
    place = 8
    while place < len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        yield png[place + 4 : place + 8], png[place:end]
        place = end


def _encode_tiff(photo: Photo) -> bytes:
    metadata, pixels = photo.metadata, photo.pixels
    if photo.levels is not None:
        pixels = photo.levels.to_numbers(pixels)
    tags, parts = _tiff_tags(photo)
    buffer = io.BytesIO()
    grey = photo.colors.shape[2] == 1
    tifffile.imwrite(
        buffer,
        pixels[..., 0] if pixels.shape[2] == 1 else pixels,
        photometric="minisblack" if grey else "rgb",
        planarconfig=None if pixels.shape[2] == 1 else "contig",
        extrasamples=["unassalpha"] if photo.has_alpha else None,
        compression="zlib",
        predictor=pixels.dtype.kind in "iu",
        iccprofile=photo.profile,
        resolution=metadata.dpi,
        resolutionunit="inch" if metadata.dpi else None,
        software=False,
        metadata=None,
        extratags=tags,
    )
    return with_directories(buffer.getvalue(), parts)


def _tiff_tags(photo: Photo) -> tuple[list[Any], dict[int, Any]]:
    """Tags for tifffile, and the contents of the directories of EXIF and GPS."""
    metadata = photo.metadata
    tags: list[Any] = []
    parts: dict[int, Any] = {}
    found = Image.Exif()
    if metadata.exif:
        found.load(b"Exif\0\0" + metadata.exif)
    ascii_tags = {tag: value for tag, value in found.items() if isinstance(value, str)}
    if metadata.text:
        own = ascii_tags.get(270, "")
        texts = [v if k == "Comment" else f"{k}: {v}" for k, v in metadata.text]
        ascii_tags[270] = "\n".join([*([own] if own else []), *texts])
    tags += [(tag, 2, None, value.encode(), True) for tag, value in sorted(ascii_tags.items())]
    for tag, kind, data in ((700, 1, metadata.xmp), (33723, 1, metadata.iptc)):
        tags += [(tag, kind, len(data), data, True)] if data else []
    for pointer in (0x8769, 0x8825):  # EXIF and GPS
        if values := found.get_ifd(pointer):
            parts[pointer] = values
    return tags, parts
