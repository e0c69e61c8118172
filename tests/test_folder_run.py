"""A run over a folder: foreseen, stopped at any moment, repeated, and told.

Enlarging takes no model here; tests/test_cli.py runs the same command line with one.
"""

import contextlib
import dataclasses
import html.parser
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dossr_jax import cli, files
from dossr_jax.config import SamplerConfig
from dossr_jax.errors import UserError
from dossr_jax.files import color
from dossr_jax.folder import manifest, model, planning, report, run
from dossr_jax.pipeline import Restored, RestoredPhoto, make_settings

LISTED = "dossr.jsonl"


class NoModel:
    def settings(self, **fields):
        return make_settings(SamplerConfig(), **fields)

    def stream(self, images, settings):
        return iter(())

    def kind(self, height, width):
        return None


def enlarge(upscaler, photos, settings, **options):
    """Stands for restore_photos: pixels are repeated, and moved by the seed."""
    for name, photo in photos:
        scale = int(settings.scale)
        pixels = photo.pixels.repeat(scale, 0).repeat(scale, 1) + np.uint8(settings.seed)
        large = dataclasses.replace(photo, pixels=pixels)
        _, working = color.to_working(large)
        stages = Restored(large.colors, large.colors, large.colors, seconds=0.5)
        yield name, RestoredPhoto(large, stages, working)


@pytest.fixture(autouse=True)
def without_model(monkeypatch):
    monkeypatch.setattr(cli.options, "load", lambda args: NoModel())
    monkeypatch.setattr(run, "restore_photos", enlarge)


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    for i, name in enumerate(("a.png", "b.jpg", "sub/c.png")):
        save(folder / name, seed=i)
    return folder


def save(path, size=(6, 8), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)
    return path


def restore(*inputs, output, options=()):
    """(exit status, lines of stdout, lines of stderr that are errors)."""
    told, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(errors):
        status = cli.main([*map(str, inputs), "-o", str(output), "--scale", "2", *options])
    assert "Traceback" not in errors.getvalue()
    lines = errors.getvalue().replace("\r", "\n").splitlines()
    return status, told.getvalue().splitlines(), [ln for ln in lines if ln.startswith("error: ")]


def tree(folder):
    """Everything in a folder: name -> content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def times(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.png")}


def redone(folder, before):
    """Results that were written since."""
    return {name for name, when in times(folder).items() if before.get(name) != when}


def records(folder):
    return [json.loads(line) for line in (folder / LISTED).read_text().splitlines()]


# Repeated


def test_the_manifest_says_what_every_result_was_made_from(album, tmp_path):
    out = tmp_path / "out"
    assert restore(album, output=out, options=["--seed", "3"])[0] == 0
    assert [record["output"] for record in records(out)] == ["a.png", "b.png", "sub/c.png"]
    record = records(out)[1]
    assert record["input"] == "../album/b.jpg" and record["status"] == "restored"
    assert record["content"] == dataclasses.asdict(manifest.content_of(album / "b.jpg"))
    assert (record["width"], record["height"], record["seconds"]) == (16, 12, 0.5)
    parameters = record["parameters"]
    assert parameters["model"] == "dossr-mini" and len(parameters["model_hash"]) == 64
    assert parameters["settings"]["seed"] == 3 and parameters["settings"]["steps"] == 5


def test_a_second_run_restores_nothing_and_changes_nothing(album, tmp_path):
    out = tmp_path / "out"
    restore(album, output=out)
    before, written = tree(out), times(out)
    for options in ([], ["--overwrite"], ["--tile", "256", "--batch-size", "2"]):
        status, told, _ = restore(album, output=out, options=options)
        assert status == 0 and "3 unchanged" in told[-1]
        assert tree(out) == before and redone(out, written) == set()


def test_what_is_new_changed_or_missing_is_restored(album, tmp_path):
    out = tmp_path / "out"
    restore(album, output=out)
    before = times(out)
    save(album / "new.png", seed=7)
    save(album / "a.png", seed=8)
    (out / "sub" / "c.png").unlink()
    restore(album, output=out)
    assert redone(out, before) == {"new.png", "a.png", "sub/c.png"}
    restore(album, output=tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_touched_or_moved_input_with_its_content_is_not_restored_again(album, tmp_path):
    out = tmp_path / "out"
    restore(album, output=out)
    before = times(out)
    os.utime(album / "a.png", ns=(1, 1))
    album = album.rename(tmp_path / "moved")
    restore(album, output=out)
    assert redone(out, before) == set()
    assert records(out)[0]["content"]["mtime_ns"] == 1
    assert records(out)[0]["input"] == "../moved/a.png"


@pytest.mark.parametrize("options", [["--seed", "1"], ["--steps", "4"], ["--strip-metadata"]])
def test_other_settings_restore_all_again(album, tmp_path, options):
    out = tmp_path / "out"
    restore(album, output=out)
    before = times(out)
    restore(album, output=out, options=options)
    assert redone(out, before) == set(before)


def test_another_model_restores_all_again(album, tmp_path, monkeypatch):
    out = tmp_path / "out"
    restore(album, output=out)
    before = times(out)
    monkeypatch.setattr(cli, "hash_of_model", lambda name: "other")
    restore(album, output=out)
    assert redone(out, before) == set(before)


def test_files_that_are_not_this_commands_are_kept_unless_overwriting_is_asked_for(album, tmp_path):
    out = tmp_path / "out"
    restore(album / "sub", album / "b.jpg", output=out)
    save(out / "a.png", seed=9)  # nobody knows it
    save(out / "b.png", size=(12, 16), seed=9)  # a result that was changed
    save(tmp_path / "other" / "c.png", seed=9)  # another input for a name that is taken
    before = tree(out)
    del before[LISTED]
    inputs = (album / "a.png", album / "b.jpg", tmp_path / "other")
    status, told, _ = restore(*inputs, output=out)
    assert status == 0 and {**tree(out), **before} == tree(out)
    reasons = [line for line in told if "kept, " in line]
    for line, words in zip(reasons, ["no earlier run", "changed since", "c.png"], strict=True):
        assert words in line and "--overwrite" in line
    status, told, _ = restore(*inputs, output=out, options=["--overwrite"])
    assert "3 restored" in told[-1] and not tree(out).items() & before.items()


def test_a_result_gives_way_when_its_input_gets_another_name(album, tmp_path):
    out = tmp_path / "out"
    restore(album, output=out)
    save(album / "b.png", seed=5)
    restore(album, output=out)
    restore(album, output=tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh") and "b_jpg.png" in tree(out)


def test_runs_in_the_input_folder_restore_its_photos_alone(album):
    options = ["--suffix", "_x2", "--save-stages"]
    status, told, _ = restore(album, output=album, options=options)
    assert status == 0 and "3 restored" in told[-1]
    before = tree(album)
    assert {"a_x2.png", "a_x2_decoded.png", "sub/c_x2_pre_restored.png"} < set(before)
    status, told, _ = restore(album, output=album, options=options)
    assert status == 0 and "3 unchanged" in told[-1] and tree(album) == before


def test_one_run_at_a_time_writes_into_a_folder(album, tmp_path):
    with manifest.Manifest(tmp_path / "out").writing([]):
        status, _, errors = restore(album, output=tmp_path / "out")
        assert status == 2 and len(errors) == 1 and "another run" in errors[0]
        assert set(tree(tmp_path / "out")) == {LISTED}


# Stopped


class Killed(BaseException):
    pass


def kill_at(moment, monkeypatch):
    """End a run at its n-th write: before it, after it, or in the middle of a line."""
    count = 0
    replace, write = os.replace, manifest.Manifest._write

    def events(before, half, after):
        nonlocal count
        count += 3
        if count == moment + 3:
            raise Killed
        if count == moment + 2:
            half()
            raise Killed
        after()
        if count == moment + 1:
            raise Killed

    def replaced(source, target):
        events(None, lambda: None, lambda: replace(source, target))

    def written(self, line):
        events(None, lambda: write(self, line[: len(line) // 2]), lambda: write(self, line))

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(manifest.Manifest, "_write", written)


def test_a_run_stopped_at_any_moment_ends_as_if_it_was_not(album, tmp_path, monkeypatch):
    (album / "b.jpg").write_bytes((album / "b.jpg").read_bytes()[:60])
    restore(album, output=tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    assert set(whole) == {"a.png", "sub/c.png", LISTED}
    stopped = 0
    while True:
        out = tmp_path / "stopped"
        shutil.rmtree(out, ignore_errors=True)
        with monkeypatch.context() as patch:
            kill_at(stopped, patch)
            try:
                restore(album, output=out)
                break
            except Killed:
                stopped += 1
        assert restore(album, output=out)[0] == 2
        assert tree(out) == whole, stopped
    assert stopped == 3 * (2 * 3 + 1 + 1)  # results with lines before and after, a failure, the end


def test_a_stopped_run_in_the_input_folder_makes_no_inputs(album, tmp_path, monkeypatch):
    options = ["--suffix", "_x2", "--save-stages"]
    shutil.copytree(album, tmp_path / "whole")
    restore(tmp_path / "whole", output=tmp_path / "whole", options=options)
    names = set(tree(tmp_path / "whole"))
    for moment in range(3 * 5):
        again = tmp_path / f"album{moment}"
        shutil.copytree(album, again)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(moment, patch)
            restore(again, output=again, options=options)
        restore(again, output=again, options=options)
        assert set(tree(again)) == names


def test_a_killed_process_leaves_nothing_that_stays(tmp_path):
    album, out = tmp_path / "album", tmp_path / "out"
    for i in range(30):
        save(album / f"{i:02}.png", size=(60, 80), seed=i)
    out.mkdir()
    (out / ".0123456789abcdef.tmp").write_bytes(b"of an earlier run")
    command = [sys.executable, __file__, str(album), "-o", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / LISTED).exists() or (out / LISTED).read_bytes().count(b"\n") < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(times(out))
    assert 8 < done < 30
    status, told, _ = restore(album, output=out, options=["--scale", "4"])
    assert status == 0 and int(told[-1].split()[0]) in (30 - done, 31 - done)
    restore(album, output=tmp_path / "whole", options=["--scale", "4"])
    assert tree(out) == tree(tmp_path / "whole")


def test_lines_that_are_not_ours_are_passed_over(album, tmp_path):
    out = tmp_path / "out"
    restore(album, output=out)
    before = tree(out)
    lines = b'[]\n{}\n{"output": 1}\n\xff\xfe\nwords\n{"content": {}, "stages": 1}\n{"torn'
    (out / LISTED).write_bytes(lines + b"\n" + before[LISTED] + lines)
    assert restore(album, output=out)[0] == 0
    assert tree(out) == before


def test_parts_that_other_processes_left_are_taken_over(album, tmp_path):
    """What a run records later counts, and a part is nobody's input."""
    restore(album, output=album, options=["--suffix", "_x2"])
    whole = tree(album)
    first, *others = whole[LISTED].splitlines(keepends=True)
    failed = json.dumps(json.loads(first) | {"status": "failed", "notes": ["old"]}).encode()
    (album / LISTED).write_bytes(failed[:50])
    (album / "dossr.1.jsonl").write_bytes(failed + b"\n" + b"".join(others)[:-20])
    (album / "dossr.10.jsonl").write_bytes(others[-1])
    before = times(album)
    status, told, _ = restore(album, output=album, options=["--suffix", "_x2"])
    assert status == 0 and "1 restored" in told[-1] and "2 unchanged" in told[-1]
    assert redone(album, before) == {"a_x2.png"}
    assert tree(album) == whole


def test_a_part_is_written_line_by_line_and_removed_when_it_is_no_longer_needed(album, tmp_path):
    restore(album, output=tmp_path)
    known = list(manifest.read_records(tmp_path).values())
    part = manifest.Part(tmp_path / "new", 3)
    with part.writing():
        for record in known:
            part.put(record)
            assert part.records[-1] == record
            assert list(manifest.read_records(tmp_path / "new").values()) == part.records
    part.remove()
    assert tree(tmp_path / "new") == {}


# Foreseen


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(album, tmp_path):
    out = tmp_path / "out"
    (album / "bad.png").write_bytes(b"x")
    status, told, errors = restore(album, output=out, options=["--dry-run"])
    assert (status, errors) == (0, []) and not out.exists()
    a, b, bad, c, total = told
    assert a.startswith(f"{album / 'a.png'}  8x6 -> {out / 'a.png'}  16x12 PNG, time unknown")
    assert "size unknown" in bad and "4 of 4 to restore" in total
    restore(album / "a.png", output=out)
    before = tree(out)
    _, (a, b, *_), _ = restore(album, output=out, options=["--dry-run"])
    assert "unchanged" in a and "about 0 s" in b and tree(out) == before


def test_everything_that_is_wrong_is_said_before_the_work(album, tmp_path):
    wrong = ["--quality", "0", "--name", "{x}", "--steps", "51", "--report", "a.txt"]
    wrong += ["--model", "none.safetensors"]
    (tmp_path / "file").touch()
    status, told, errors = restore(
        album / "none.png", tmp_path / "void", album, output=tmp_path / "file", options=wrong
    )
    assert (status, told) == (2, [])
    words = ["steps", "quality 0", "file", "a.txt", "none.safetensors", "none.png", "void", "{x}"]
    for line, word in zip(errors, words, strict=True):
        assert word in line


def test_results_that_no_file_can_hold_are_said_first_and_the_rest_is_done(album, tmp_path):
    save(album / "wide.png", size=(1, 9000))
    options = ["--format", "webp"]
    status, told, errors = restore(album, output=tmp_path / "out", options=options)
    assert status == 2 and "1 failed: wide.png" in told[-1]
    assert len(errors) == 1 and "18000x2" in errors[0] and "16383" in errors[0]
    assert set(tree(tmp_path / "out")) == {"a.webp", "b.webp", "sub/c.webp", LISTED}
    assert restore(album, output=tmp_path / "new", options=[*options, "--dry-run"])[0] == 2


def test_results_that_the_disk_cannot_hold_are_not_begun(album, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: usage)
    status, _, errors = restore(album, output=tmp_path / "out")
    assert status == 2 and len(errors) == 1 and "free some disk space" in errors[0]
    assert not (tmp_path / "out").exists()


# Failures


def test_whatever_a_file_causes_is_its_own_error(album, tmp_path, monkeypatch):
    read, write = files.read_photo, files.write_photo

    def fail(path):
        if path.name == "a.png":
            raise RuntimeError("no one foresaw this")
        return read(path)

    def refuse(path, photo, *, quality=None):
        if path.name == "b.png":
            raise ValueError("nor this")
        return write(path, photo, quality=quality)

    monkeypatch.setattr(files, "read_photo", fail)
    monkeypatch.setattr(files, "write_photo", refuse)
    status, told, errors = restore(album, output=tmp_path / "out")
    assert status == 2 and "2 failed: a.png, b.jpg" in told[-1]
    assert len(errors) == 2 and "no one foresaw this" in errors[0] and "nor this" in errors[1]
    assert set(tree(tmp_path / "out")) == {"sub/c.png", LISTED}
    assert [record["status"] for record in records(tmp_path / "out")] == [
        "failed",
        "failed",
        "restored",
    ]


def test_names_that_the_console_lacks_are_printed_all_the_same(album, tmp_path, monkeypatch):
    save(album / "\u00e9\u4e16.png")
    shutil.copy(album / "a.png", os.fsencode(album) + b"/\xff.png")
    (album / "\u00fc.png").write_bytes(b"x")
    told, errors = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", told)
    monkeypatch.setattr(sys, "stderr", errors)
    report_too = ["--scale", "2", "--report", "html"]
    assert cli.main([str(album), "-o", str(tmp_path / "out"), *report_too]) == 2
    told.flush(), errors.flush()
    assert rb"\xe9\u4e16.png" in told.buffer.getvalue()
    assert rb"\udcff.png" in told.buffer.getvalue() and rb"\xfc.png" in errors.buffer.getvalue()
    assert (tmp_path / "out" / "\u00e9\u4e16.png").exists()


# Memory and order


def test_photos_that_can_run_together_follow_each_other(album, tmp_path, monkeypatch):
    """And what is known of their sizes is told, before any of them is read."""
    for i, size in enumerate([(70, 8), (6, 8), (8, 70)]):
        save(album / f"{i}.png", size=size)
    (album / "bad.png").write_bytes(b"x")
    monkeypatch.setattr(NoModel, "kind", lambda self, height, width: max(height, width) > 60)
    seen = {}

    def restore_photos(*arguments, sizes, stages, map_of):
        seen.update(sizes=sizes, stages=stages)
        return enlarge(*arguments)

    monkeypatch.setattr(run, "restore_photos", restore_photos)
    _, told, _ = restore(album, output=tmp_path / "out")
    names = [Path(line.split()[0]).name for line in told[:-1]]
    assert names == ["0.png", "2.png", "1.png", "a.png", "b.png", "c.png"]
    small = [(6, 8)] * 4
    assert seen == {"sizes": [(70, 8), (8, 70), *small], "stages": False}


def test_results_come_in_the_order_of_the_inputs(album, tmp_path):
    (album / "aa.png").write_bytes(b"x")
    _, told, _ = restore(album, output=tmp_path / "out")
    assert [line.split()[0] for line in told[:3]] == [
        str(tmp_path / "out" / name) for name in ("a.png", "b.png", "sub/c.png")
    ]


# What results say


def test_results_say_what_made_them(album, tmp_path):
    restore(album, output=tmp_path / "out", options=["--seed", "3"])
    text = dict(files.read_photo(tmp_path / "out" / "a.png").metadata.text)["Parameters"]
    assert text.startswith("dossr-jax ") and "dossr-mini" in text and "seed 3" in text
    restore(album, output=tmp_path / "bare", options=["--no-record"])
    assert files.read_photo(tmp_path / "bare" / "a.png").metadata.text == ()


def test_metadata_are_left_out_where_that_is_asked_for(tmp_path):
    exif = Image.Exif()
    exif[0x0110] = "Camera"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", exif=exif, comment="text", dpi=(300, 300))
    both = ["--strip-metadata", "--no-record", "--format", "jpg"]
    restore(tmp_path / "a.jpg", output=tmp_path / "kept", options=both[1:])
    assert b"Camera" in files.read_photo(tmp_path / "kept" / "a.jpg").metadata.exif
    restore(tmp_path / "a.jpg", output=tmp_path / "out", options=both)
    photo = files.read_photo(tmp_path / "out" / "a.jpg")
    assert (photo.metadata.exif, photo.metadata.text) == (b"", ())
    assert photo.metadata.dpi == (300, 300)


class Page(html.parser.HTMLParser):
    """Checks that elements are closed, and counts them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.count, self.sources = [], {}, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_page_of_results_and_failures(album, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_PICTURES", 2)
    (album / "<b>&.png").write_bytes(b"x")
    status, *_ = restore(album, output=tmp_path / "out", options=["--report", "html"])
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert status == 2 and page.count["tr"] == 5 and page.count["img"] == 4
    assert all(source.startswith("data:image/webp;base64,") for source in page.sources)
    assert "3 of 4 restored; details of 2" in text and "&lt;b&gt;&amp;.png" in text
    assert "16x12" in text and len(text) < 20_000


# The model


def test_a_model_is_known_by_its_content_or_if_large_by_head_size_and_time(tmp_path, monkeypatch):
    file = tmp_path / "m.safetensors"
    file.write_bytes(b"weights")
    whole = model.hash_of_model(str(file))
    os.utime(file, ns=(1, 1))
    assert model.hash_of_model(str(file)) == whole
    monkeypatch.setattr(model, "_WHOLE", 5)
    large = model.hash_of_model(str(file))
    os.utime(file, ns=(2, 2))
    assert len({whole, large, model.hash_of_model(str(file))}) == 3
    folder = model.hash_of_model(str(tmp_path))
    (tmp_path / "more").write_bytes(b"x")
    assert model.hash_of_model(str(tmp_path)) != folder
    assert len({model.hash_of_model(name) for name in ("dossr-mini", "realesrgan")}) == 2
    with pytest.raises(UserError, match="none: no such model"):
        model.hash_of_model("none")


def main():
    """A process to kill: the command line without a model, and slow."""

    def slowly(*arguments, **options):
        for result in enlarge(*arguments, **options):
            time.sleep(0.05)
            yield result

    cli.options.load = lambda args: NoModel()
    run.restore_photos = slowly
    return cli.main()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.exit(main())
