"""Image files in and out, with everything that belongs to a picture."""

from dossr_jax.files.atomic import check_folder, write_file
from dossr_jax.files.formats import SUFFIXES, WRITABLE, Format
from dossr_jax.files.metadata import mended
from dossr_jax.files.photo import Encoding, Levels, Metadata, Photo
from dossr_jax.files.reading import Probe, probe, read_photo, to_photo
from dossr_jax.files.writing import format_for, write_photo

__all__ = [
    "SUFFIXES",
    "WRITABLE",
    "Encoding",
    "Format",
    "Levels",
    "Metadata",
    "Photo",
    "Probe",
    "check_folder",
    "format_for",
    "mended",
    "probe",
    "read_photo",
    "to_photo",
    "write_file",
    "write_photo",
]
