"""The photos that Debian packages keep inside resource files."""

import io

from helpers.pictures import picture
from PIL import Image

from dossr_jax.data.photos import embedded_webp


def webp(seed):
    file = io.BytesIO()
    Image.fromarray(picture(16, 20, seed)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def test_whole_webp_files_inside_others_are_found():
    first, second = webp(0), webp(1)
    wave = b"RIFF" + (8).to_bytes(4, "little") + b"WAVEdata"
    data = b"qres" + first + b"\0\nRIF" + wave + second + b"end" + first[:-2]
    assert list(embedded_webp(data)) == [first, second]
