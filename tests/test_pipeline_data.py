"""The stream of training samples: one fixed sequence, whoever reads it and from wherever."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import names_for, picture, quarter, save

from dossr_jax.config import DataConfig
from dossr_jax.data.pipeline import Batches, start_of
from dossr_jax.data.sources import Record, open_source
from dossr_jax.errors import UserError

ROOT = Path(__file__).parent.parent


class Memory:
    """A source of pictures in memory, some of them broken; counts how often each is read."""

    path = Path("memory")

    def __init__(self, images, *, broken=(), paired=False, fingerprint="f"):
        self.images = images
        self.broken = set(broken)
        self.paired = paired
        self.fingerprint = fingerprint

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise UserError(f"image {index} is broken")
        image = self.images[index]
        return Record(f"image {index}", image, quarter(image) if self.paired else None)


def flats(count, side=24):
    """Pictures of one colour each, their number, so that a crop tells where it is from."""
    return [np.full((side, side, 3), i, np.uint8) for i in range(count)]


def pictures(count=11):
    return [picture(24 + 4 * (i % 3), 32, i) for i in range(count)]


def config(**changes):
    values = {"crop": 16, "batch": 8, "workers": 0, "prefetch": 2, "scale_range": (0.6, 1.0)}
    return DataConfig(**values | changes)


def take(count, source, *args, **options):
    """The first batches of a stream."""
    with Batches(source, *args, **options) as batches:
        return [next(batches) for _ in range(count)]


def samples(batches):
    """Samples of batches by id."""
    return {int(i): image for b in batches for i, image in zip(b["id"], b["hr"], strict=True)}


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[i], two[i]) for i in one)


def test_a_batch_is_what_it_says():
    for paired in (False, True):
        batch = take(1, Memory(pictures(), paired=paired), config(), seed=0)[0]
        assert batch["hr"].shape == (8, 16, 16, 3) and batch["hr"].dtype == np.uint8
        assert batch["id"].dtype == np.uint32 and list(batch["id"]) == list(range(8))
        assert ("lr" in batch) == paired and batch.keys() <= {"hr", "lr", "id"}
    assert batch["lr"].shape == (8, 4, 4, 3) and batch["lr"].dtype == np.uint8


@pytest.mark.parametrize("count", [2, 4, 8])
def test_processes_share_batches_exactly(count):
    source = Memory(pictures())
    whole = take(4, source, config(), seed=3)
    shares = [take(4, source, config(), seed=3, process=(p, count)) for p in range(count)]
    for step in range(4):
        for name in ("hr", "id"):
            joined = np.concatenate([share[step][name] for share in shares])
            np.testing.assert_array_equal(joined, whole[step][name])


@pytest.mark.parametrize("step", [0, 1, 5])
def test_starting_at_a_sample_skips_those_before(step):
    source = Memory(pictures())
    for process in ((0, 1), (1, 2)):
        later = take(2, source, config(), seed=3, start=8 * step, process=process)
        assert same(
            samples(later),
            samples(take(step + 2, source, config(), seed=3, process=process)[step:]),
        )


def test_a_state_of_four_processes_restores_on_two():
    source = Memory(pictures())
    streams = [Batches(source, config(), seed=1, process=(p, 4)) for p in range(4)]
    for stream in streams:
        for _ in range(3):
            next(stream)
    states = [json.loads(json.dumps(stream.state())) for stream in streams]
    assert states == [states[0]] * 4 and states[0]["samples"] == 24
    rest = [b for stream in streams for b in (next(stream), next(stream))]
    start = start_of(states[0], source, seed=1)
    resumed = [
        b for p in range(2) for b in take(2, source, config(), seed=1, start=start, process=(p, 2))
    ]
    assert same(samples(rest), samples(resumed))


def test_each_epoch_is_another_permutation():
    batches = take(12, Memory(flats(16)), config(), seed=0)
    order = [int(image[0, 0, 0]) for b in batches for image in b["hr"]]
    epochs = [order[16 * e : 16 * e + 16] for e in range(6)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 6
    other = take(2, Memory(flats(16)), config(), seed=1)
    assert [int(image[0, 0, 0]) for b in other for image in b["hr"]] not in epochs


def test_the_sequence_is_the_same_forever():
    """A change here would silently give resumed runs other data."""
    batches = take(2, Memory(flats(10)), config(augment=False), seed=7)
    order = [int(image[0, 0, 0]) for b in batches for image in b["hr"]]
    assert order == [7, 9, 0, 8, 4, 2, 5, 6, 3, 1, 6, 0, 4, 2, 7, 9]


def test_crops_differ_between_epochs_and_follow_the_seed():
    source = Memory(pictures(1))
    first, again, other = (take(2, source, config(), seed=s) for s in (0, 0, 1))
    assert same(samples(first), samples(again)) and not same(samples(first), samples(other))
    crops = {image.tobytes() for image in samples(first).values()}
    assert len(crops) > 12


def test_flips_turns_and_crops_keep_pairs_aligned():
    batches = take(6, Memory(pictures(), paired=True), config(), seed=0)
    for batch in batches:
        for hr, lr in zip(batch["hr"], batch["lr"], strict=True):
            np.testing.assert_array_equal(quarter(hr), lr)


def test_all_eight_views_are_seen_and_none_without_augment():
    ramp = np.add.outer(np.arange(16) * 10, np.arange(16)).astype(np.uint8)
    source = Memory([np.repeat(ramp[..., None], 3, axis=2)])
    seen = {i.tobytes() for i in samples(take(12, source, config(), seed=0)).values()}
    assert len(seen) == 8
    plain = samples(take(4, source, config(augment=False), seed=0)).values()
    assert all(np.array_equal(image, source.images[0]) for image in plain)


def test_scales_fill_their_range_and_no_more():
    """On a ramp, the slope of a crop is the inverse of its scale."""
    ramp = np.broadcast_to(2 * np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    source = Memory([np.ascontiguousarray(ramp)])
    settings = config(augment=False, scale_range=(0.5, 1.0))
    images = samples(take(12, source, settings, seed=0)).values()
    slopes = np.array([np.diff(image[8, 4:12, 0].astype(float)).mean() for image in images])
    assert slopes.min() == pytest.approx(2.0, abs=0.2) and slopes.max() == pytest.approx(4, abs=0.3)
    assert 0.6 < (2 / slopes).mean() < 0.9


def test_a_broken_image_changes_no_other_sample(caplog):
    images = pictures()
    good = samples(take(6, Memory(images), config(), seed=2))
    source = Memory(images, broken={4, 7})
    with caplog.at_level(logging.WARNING), Batches(source, config(), seed=2) as batches:
        bad = samples([next(batches) for _ in range(6)])
        skipped = batches.skipped
    assert skipped == {f"image {i}": f"image {i} is broken" for i in (4, 7)}
    assert caplog.text.count("image 4 is broken") == 1
    changed = {i for i in good if not np.array_equal(good[i], bad[i])}
    flat = Memory(flats(11))
    where = {i: image[0, 0, 0] for i, image in samples(take(6, flat, config(), seed=2)).items()}
    assert changed == {i for i, number in where.items() if number in (4, 7)}
    # What replaces it is the next image in the stream that can be read.
    gaps = Memory(flats(11), broken={4, 7})
    now = {i: image[0, 0, 0] for i, image in samples(take(5, gaps, config(), seed=2)).items()}
    for i, number in now.items():
        expected = next(where[j] for j in range(i, i + 3) if where[j] not in (4, 7))
        assert number == expected


def test_images_smaller_than_a_crop_are_skipped():
    source = Memory([*flats(6), np.zeros((15, 40, 3), np.uint8)])
    with Batches(source, config(), seed=0) as batches:
        for _ in range(3):
            next(batches)
        assert batches.skipped == {"image 6": "image 6: 40x15 is less than a crop"}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_says_that_nothing_is_left(workers):
    source = Memory(flats(5, side=15), broken={2})
    with Batches(source, config(workers=workers), seed=0) as batches:
        with pytest.raises(UserError, match=r"5 images in a row cannot be used.*data.crop \(16\)"):
            next(batches)


def test_settings_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="data.batch 8 does not divide among 3 processes"):
        Batches(Memory(flats(5)), config(), seed=0, process=(0, 3))
    with pytest.raises(UserError, match="data.crop 18 is not a multiple of 4"):
        Batches(Memory(flats(5)), config(crop=18), seed=0)


def test_a_state_of_other_data_is_refused():
    with Batches(Memory(flats(5)), config(), seed=0) as batches:
        state = batches.state()
    for source, seed, change in (
        (Memory(flats(6)), 0, "number of images was 5, is 6"),
        (Memory(flats(5), fingerprint="g"), 0, "fingerprint of the images was f, is g"),
        (Memory(flats(5)), 1, "seed was 0, is 1"),
    ):
        with pytest.raises(UserError, match=change):
            start_of(state, source, seed=seed)


def test_prefetching_changes_nothing():
    source = Memory(pictures())
    plain, ahead = (take(4, source, config(prefetch=n), seed=0) for n in (0, 4))
    assert same(samples(plain), samples(ahead))


def children(pid):
    """Processes that a process has started and that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
        except OSError:
            continue
        if int(fields["PPid"]) == pid and not fields["State"].startswith("Z"):
            found.append(int(fields["Pid"]))
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_and_end_with_close(workers):
    source = Memory(pictures(), broken={4})
    expected = take(5, source, config(), seed=2)
    before = set(children(os.getpid()))
    with Batches(source, config(workers=workers), seed=2) as batches:
        found = [next(batches) for _ in range(5)]
        started = set(children(os.getpid())) - before
        assert batches.skipped == {"image 4": "image 4 is broken"}
    assert same(samples(found), samples(expected))
    assert len(started) >= workers
    # Python's own tracker of shared resources stays; it serves the next workers.
    left = {pid for pid in started if alive(pid) and b"resource_tracker" not in command(pid)}
    assert not left


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def command(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


class Spy(Memory):
    """Cannot be read where more has been imported than reading needs."""

    def __getitem__(self, index):
        names = ("jax", "orbax", "tensorflow", "torch", "dossr_jax.pipeline")
        found = [name for name in names if sys.modules.get(name) is not None]
        main = Path(getattr(sys.modules["__main__"], "__file__", "")).name  # xdist's has none
        if found or main != "worker.py":
            raise UserError(f"{main} imported {found}")
        return super().__getitem__(index)


def test_workers_are_light():
    source = Spy(flats(3))
    assert len(take(2, source, config(workers=1), seed=0)) == 2
    with pytest.raises(UserError, match="cannot be used"):
        take(1, source, config(workers=0), seed=0)


def test_workers_outlive_the_signals_that_stop_a_job():
    """The parent saves first, and may need another batch for that."""
    before = set(children(os.getpid()))
    with Batches(Memory(pictures()), config(workers=1), seed=0) as batches:
        next(batches)
        for pid in set(children(os.getpid())) - before:
            if b"resource_tracker" not in command(pid):
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
        assert [int(next(batches)["id"][0]) for _ in range(6)] == [8, 16, 24, 32, 40, 48]


def test_a_dead_worker_is_an_error():
    before = set(children(os.getpid()))
    with Batches(Memory(pictures()), config(workers=1), seed=0) as batches:
        next(batches)
        for pid in set(children(os.getpid())) - before:
            if b"resource_tracker" not in command(pid):
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(UserError, match="a data worker died.*lower data.workers"):
            for _ in range(10):
                next(batches)


def test_closed_batches_are_not_read():
    batches = Batches(Memory(pictures()), config(), seed=0)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


SCRIPT = """
import pathlib, sys, time
from dossr_jax.config import DataConfig
from dossr_jax.data.pipeline import Batches
from dossr_jax.data.sources import open_source
if __name__ == "__main__":
    source = open_source(pathlib.Path(sys.argv[1]), split="train", hold_out=0)
    config = DataConfig(crop=16, batch=4, workers=2)
    batches = Batches(source, config, seed=0)
    next(batches)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    save(tmp_path / "photos" / "a.png", picture(32, 32))
    (tmp_path / "main.py").write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "main.py", tmp_path / "photos"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert parent.stdout.readline() == b"ready\n"
        started = children(parent.pid)
        assert len(started) >= 2
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(alive, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, started))


def test_a_folder_with_damaged_files_streams(tmp_path):
    for i, name in enumerate([*names_for("train", 6), *names_for("validation", 1)]):
        save(tmp_path / name, picture(24, 24, i))
    broken = names_for("train", 7)[-1]
    (tmp_path / broken).write_bytes(b"no image")
    source = open_source(tmp_path, split="train", hold_out=20)
    with Batches(source, config(), seed=0) as batches:
        next(batches)
        assert len(batches.skipped) == 1 and broken in next(iter(batches.skipped.values()))


def test_the_benchmark_prints_what_it_promises(tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / name, picture(256, 256))
    command = [sys.executable, ROOT / "benchmarks" / "input.py", "--data", tmp_path]
    options = ["--config", "tiny", "--batches", "5", "--prefetch", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([*command, *options], capture_output=True, text=True, env=environment)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["case"] for line in lines] == ["stream"] * 2, result.stderr
    assert lines[0]["workers"] == 0 and lines[0]["cpu_ms_per_batch"] > 0
    assert all(line["images_per_s"] > 0 for line in lines)
