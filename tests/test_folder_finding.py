"""Finding photos: nothing in a folder is left out without a reason."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from dossr_jax.errors import UserError
from dossr_jax.folder import manifest
from dossr_jax.folder.finding import Problems, find
from dossr_jax.folder.preview import left_out_lines

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8))


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    for name in ("b.PNG", "a.jpg", "sub/deep/c.webp"):
        save(folder / name)
    return folder


def save(path, format=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    PHOTO.save(path, format=format)
    return path


def search(*paths, output):
    """(inputs by their places, reason -> names left out); there are no problems."""
    problems = Problems()
    found = find(paths, output, problems)
    assert problems == []
    inputs = [item.relative.as_posix() for item in found.inputs]
    return inputs, {reason: [p.name for p in paths] for reason, paths in found.left_out.items()}


def problems_of(*paths, output):
    problems = Problems()
    find(paths, output, problems)
    for problem in problems:
        assert isinstance(problem, UserError) and ";" in str(problem) and "\n" not in str(problem)
    return [str(problem) for problem in problems]


def test_every_file_of_a_folder_is_an_input_or_left_out_for_a_reason(album, tmp_path):
    save(album / ".e.png")
    save(album / ".hidden" / "d.png")
    for name in ("Thumbs.db", "desktop.ini", "sub/.DS_Store", "._a.jpg", "notes.txt", "clip.mp4"):
        (album / name).write_bytes(b"x")
    os.symlink("nowhere", album / "gone.png")
    os.symlink("a.jpg", album / "z.jpg")
    os.mkfifo(album / "pipe.png")
    inputs, left_out = search(album, output=tmp_path / "out")
    assert inputs == ["a.jpg", "b.PNG", "sub/deep/c.webp"]
    assert left_out == {
        "hidden": [".hidden", ".e.png"],
        "system file": ["._a.jpg", "Thumbs.db", "desktop.ini", ".DS_Store"],
        ".txt is no kind that can be read": ["notes.txt"],
        ".mp4 is no kind that can be read": ["clip.mp4"],
        "broken link": ["gone.png"],
        "another name of a file that is restored": ["z.jpg"],
        "not a regular file, or no access": ["pipe.png"],
    }


def test_files_without_a_telling_suffix_are_tried_by_content(album, tmp_path):
    for name in ("scan", "scan.001", "Mr. Smith"):
        save(album / name, format="PNG")
    (album / "README").write_text("words")
    (album / "notes.002").write_text("words")
    inputs, left_out = search(album, output=tmp_path / "out")
    assert {"scan", "scan.001", "Mr. Smith"} < set(inputs) and len(inputs) == 6
    assert left_out == {"no suffix, and no image by its content": ["README", "notes.002"]}


def test_linked_folders_are_told_and_not_entered_unless_they_are_named(album, tmp_path):
    save(tmp_path / "elsewhere" / "far.png")
    os.symlink(tmp_path / "elsewhere", album / "linked")
    os.symlink(album, album / "sub" / "circle")
    inputs, left_out = search(album, output=tmp_path / "out")
    assert len(inputs) == 3
    assert left_out == {"linked folder": ["linked", "circle"]}
    assert search(album / "linked", output=tmp_path / "out")[0] == ["far.png"]


def test_named_files_are_taken_as_they_are_and_once(album, tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("x")
    named = (album / "a.jpg", album / "." / "a.jpg", other, album)
    inputs, left_out = search(*named, output=tmp_path / "out")
    assert inputs == ["a.jpg", "notes.txt", "b.PNG", "sub/deep/c.webp"] and left_out == {}


def test_an_output_folder_inside_the_input_is_left_out(album):
    save(album / "out" / "a.png")
    inputs, left_out = search(album, output=album / "out")
    assert len(inputs) == 3 and left_out == {"the output folder": ["out"]}


def record(folder, output, status="restored", stages=()):
    line = manifest.Record(output, "../x.png", status, None, {}, stages)
    with open(folder / manifest.NAME, "ab") as file:
        file.write(manifest._line(line))


def test_results_of_earlier_runs_are_nobodys_input(album):
    """In the input folder itself, in folders of it, and those of a run that was killed."""
    save(album / "a_x4.png")
    record(album, "a_x4.png", stages=("sub/a_decoded.png",))
    save(album / "sub" / "a_decoded.png")
    save(album / "b_x4.png")
    record(album, "b_x4.png", status="started")
    save(album / "older" / "a.png")
    record(album / "older", "a.png")
    inputs, left_out = search(album, output=album)
    assert inputs == ["a.jpg", "b.PNG", "sub/deep/c.webp"]
    results = ["a_x4.png", "b_x4.png", "dossr.jsonl", "a.png", "dossr.jsonl", "a_decoded.png"]
    assert sorted(left_out.pop("from an earlier run")) == sorted(results) and left_out == {}


def test_all_paths_without_photos_are_told_at_once(album, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("x")
    paths = [album / "none.png", tmp_path / "empty", tmp_path / "texts", os.devnull, "x" * 300]
    missing, empty, texts, device, long = problems_of(album, *paths, output=tmp_path / "out")
    assert "none.png" in missing and "no such file" in missing
    assert str(tmp_path / "empty") in empty and "no images" in empty
    assert "1 .txt is no kind that can be read" in texts
    assert "neither" in device and "too long" in long


def test_a_folder_that_cannot_be_listed_stops_no_other(album, tmp_path, monkeypatch):
    (album / "locked").mkdir()
    real = os.scandir

    def refuse(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find([album], tmp_path / "out", problems := Problems())
    assert (len(found.inputs), problems) == (3, [])
    (line,) = found.unreadable
    assert "locked: Permission denied" in str(line)


def test_many_files_of_one_reason_share_a_line(tmp_path):
    few, many = [tmp_path / f"{i}.txt" for i in range(5)], [tmp_path / f"{i}.xmp" for i in range(6)]
    lines = list(left_out_lines({"text": few, "sidecar": many}))
    assert len(lines) == 6 and lines[0] == f"left out: {few[0]} (text)"
    assert lines[-1] == "left out: 6 files and folders such as 0.xmp, 1.xmp, 2.xmp (sidecar)"
