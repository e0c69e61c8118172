"""The page behind its buttons: turns, limits, and results that are those of the command line."""

import argparse
import dataclasses
import os
import threading
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import web
from helpers.pictures import picture
from PIL import Image

from dossr_jax import cli
from dossr_jax.errors import UserError
from dossr_jax.folder.run import Writing
from dossr_jax.pipeline import steps
from dossr_jax.web import limits, restoring, viewing
from dossr_jax.web.limits import Limits
from dossr_jax.web.restoring import Request
from dossr_jax.web.service import Service
from dossr_jax.web.turns import Job, Turns

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


# Turns


class Office:
    """Jobs that write down whose picture was made, once the door is open."""

    def __init__(self, **limits):
        self.door, self.log = threading.Event(), []
        self.turns = Turns(**{"waiting": 50, "seconds": 1e9, **limits})

    def add(self, owner, count=1, error=None):
        job = Job(owner, self._work(owner, error), count)
        self.turns.add(job)
        return job

    def _work(self, owner, error):
        try:
            while True:
                self.door.wait()
                if error:
                    raise error
                self.log.append(owner)
                yield
        finally:
            self.log.append(f"{owner} tidied")


@pytest.fixture
def office():
    made = []

    def make(**limits):
        made.append(Office(**limits))
        return made[-1]

    yield make
    for one in made:
        one.door.set()
        one.turns.close()


def ended(*jobs):
    until(lambda: all(job.state != "waiting" for job in jobs))
    return [job.state for job in jobs]


def test_everyone_gets_a_picture_before_anyone_gets_the_next(office):
    one = office()
    many = one.add("many", 20)
    until(lambda: many.busy)
    others = [one.add(f"user {i}") for i in range(20)]
    assert [one.turns.before(job) for job in (many, others[0], others[19])] == [0, 1, 20]
    one.door.set()
    assert ended(many, *others) == ["finished"] * 21
    made = [owner for owner in one.log if "tidied" not in owner]
    assert made[:22] == ["many", *(f"user {i}" for i in range(20)), "many"]
    assert made.count("many") == 20


def test_cancelling_ends_a_job_after_its_picture_and_one_that_waits_at_once(office):
    one = office()
    first, second = one.add("first", 9), one.add("second", 9)
    until(lambda: first.busy)
    for owner in ("first", "second", "nobody"):
        one.turns.stop(owner, "cancelled")
    one.door.set()
    assert ended(first, second) == ["stopped"] * 2
    assert (first.done, second.done, first.reason) == (1, 0, "cancelled")
    assert one.log == ["first", "first tidied"]  # the other one had not begun


def test_an_error_ends_its_job_and_no_other(office):
    one = office()
    jobs = [
        one.add("a", error=ValueError("odd")),
        one.add("b", error=UserError("no")),
        one.add("c"),
    ]
    one.door.set()
    assert ended(*jobs) == ["failed", "failed", "finished"]
    assert jobs[0].reason == "ValueError (odd); try other settings" and jobs[1].reason == "no"


def test_an_owner_has_one_job_and_the_queue_an_end(office):
    one = office(waiting=2)
    one.add("a")
    with pytest.raises(UserError, match="your last request"):
        one.add("a")
    one.add("b")
    with pytest.raises(UserError, match="2 requests are waiting; try again"):
        one.add("c")


def test_a_job_that_takes_too_long_stops_between_pictures(office):
    one = office(seconds=1e-9)
    one.door.set()
    job = one.add("a", 9)
    assert ended(job) == ["stopped"] and job.done == 1
    assert "the limit here" in job.reason


# Limits


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (web.fake, "fake.jpg", "not an image"),
        (web.bomb, "bomb.png", "million pixels"),
        (web.photo, "wide.png", "30x20 pixels become 9000x6000, more than 1 million"),
        (web.photo, "camera.dng", "raw files are not taken"),
    ],
)
def test_a_photo_is_refused_by_its_header(tmp_path, make, name, words):
    path = tmp_path / name
    if name.endswith("dng"):
        path.touch()
    else:
        make(path)
    with pytest.raises(UserError, match=words) as refused:
        Limits(pixels=1).check_photo(path, 300)
    assert name in str(refused.value) and str(tmp_path) not in str(refused.value)


def test_requests_have_photos_and_not_too_many():
    with pytest.raises(UserError, match="no photo yet"):
        Limits().check_count(0, 1)
    with pytest.raises(UserError, match="11 photos in 2 variants are more than 20"):
        Limits(pictures=20).check_count(11, 2)
    Limits(pictures=20).check_count(10, 2)


def test_limits_are_options():
    parser = argparse.ArgumentParser()
    limits.add_options(parser)
    assert limits.limits_of(parser.parse_args([])) == Limits()
    given = limits.limits_of(parser.parse_args(["--max-pixels", "2.5", "--keep", "1"]))
    assert given == dataclasses.replace(Limits(), pixels=2.5, keep=1)
    with pytest.raises(UserError, match="limit upload"):
        limits.limits_of(parser.parse_args(["--max-upload", "0"]))


# Requests


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return web.model_file(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def models(model):
    return web.models(model)


@pytest.fixture
def service(models, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    service = Service(models, Limits(pixels=1), folder)
    yield service
    service.close()


def restore(service, *photos, owner="someone", **fields):
    """The session of a request, when it has ended."""
    asked = {"scale": fields.pop("scale", 2.0), "steps": fields.pop("steps", 2)}
    request = Request(photos=photos, model="tiny", fields=asked, **fields)
    session = service.start(owner, request)
    ended(session.job)
    return session


def command_line(model, tmp_path, *inputs, options=()):
    """What infer.py writes: name -> bytes."""
    out = tmp_path / "out"
    fixed = ["-o", str(out), "--model", str(model), "--scale", "2", *web.OPTIONS, "--no-cache"]
    assert cli.main([*map(str, inputs), *fixed, *options]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "dossr.jsonl"}


@pytest.mark.parametrize(
    ("format", "writing", "options"),
    [
        ("png", Writing(), []),
        ("same", Writing(quality=80), ["--format", "same", "--quality", "80"]),
        ("tiff", Writing(strip=True, record=False), "--format tiff --strip-metadata --no-record"),
    ],
)
def test_results_have_the_names_and_bytes_of_the_command_line(
    model, service, tmp_path, format, writing, options
):
    inputs = [web.photo(tmp_path / "in" / "a.jpg"), web.grey_photo(tmp_path / "in" / "a.png")]
    session = restore(service, *inputs, format=format, writing=writing)
    options = options.split() if isinstance(options, str) else options
    expected = command_line(model, tmp_path, *inputs, options=options)
    assert session.results.failed == []
    assert {m.path.name: m.path.read_bytes() for m in session.results.made} == expected
    assert len(expected) == 2
    with zipfile.ZipFile(session.results.zip) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == expected


def test_variants_are_those_of_the_seeds(model, service, tmp_path):
    path = web.photo(tmp_path / "a.jpg")
    session = restore(service, path, seeds=(5, 6))
    options = ["--seed", "6", "--name", "{stem}_seed{seed}"]
    expected = command_line(model, tmp_path, path, options=options)
    first, second = session.results.made
    assert [m.path.name for m in (first, second)] == ["a_seed5.png", "a_seed6.png"]
    assert second.path.read_bytes() == expected["a_seed6.png"]
    assert first.path.read_bytes() != second.path.read_bytes()


def test_twenty_users_compile_nothing_that_one_has_compiled(service, tmp_path):
    compiled = []

    def count(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    first = restore(service, web.photo(tmp_path / "first.png"))
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        sessions = [
            service.start(
                f"user {i}",
                Request(
                    photos=(web.photo(tmp_path / f"{i}.png", 18 + i % 3, 31, seed=i),),
                    model="tiny",
                    fields={"scale": 1 + i / 10, "steps": 1 + i, "fidelity": i / 20},
                    seeds=(i,),
                ),
            )
            for i in range(20)
        ]
        assert ended(*(session.job for session in sessions)) == ["finished"] * 20
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert [len(session.results.made) for session in (first, *sessions)] == [1] * 21
    assert compiled == []


def test_what_cannot_be_read_is_told_and_the_rest_restored(service, tmp_path):
    good, other = web.photo(tmp_path / "1" / "a.png"), web.photo(tmp_path / "2" / "a.png", seed=1)
    cut = web.photo(tmp_path / "cut.png")
    cut.write_bytes(cut.read_bytes()[:-200])
    session = restore(service, good, web.fake(tmp_path / "fake.png"), cut, other)
    assert [made.path.name for made in session.results.made] == ["a.png", "a (2).png"]
    fake, damaged = session.results.failed
    assert fake.startswith("fake.png: not an image") and damaged.startswith("cut.png: damaged")
    with pytest.raises(UserError, match="fake.png: not an image"):
        restore(service, tmp_path / "fake.png")


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"scale": -1.0}, "scale"), ({"steps": 99}, "steps"), ({"model": "../other"}, "model")],
)
def test_settings_that_cannot_be_are_refused_and_leave_nothing(service, tmp_path, fields, words):
    path, model = web.photo(tmp_path / "a.png"), fields.pop("model", "tiny")
    asked = Request(photos=(path,), model=model, fields=fields)
    with pytest.raises(UserError, match=words):
        service.start("someone", asked)
    assert list(service.folder.iterdir()) == []


def test_files_go_when_their_time_has_come_or_their_owner(service, tmp_path):
    path = web.photo(tmp_path / "a.png")
    first = restore(service, path, owner="a")
    second = restore(service, path, owner="a")
    assert not first.results.folder.exists() and second.results.folder.exists()
    service.leave("a")
    until(lambda: not second.results.folder.exists())
    old = restore(service, path, owner="b")
    upload = service.folder / "hash" / "photo.png"
    web.photo(upload)
    service.remove_old()
    assert old.results.folder.exists() and upload.exists()
    for folder in (old.results.folder, upload.parent):
        os.utime(folder, (0, 0))
    service.remove_old()
    assert list(service.folder.iterdir()) == [] and service.session("b") is None
    with pytest.raises(UserError, match="choose the photos again"):
        restore(service, upload)


# What is shown


def test_stages_are_those_of_the_result_for_any_number_of_steps(models):
    upscaler, image = models.load("tiny"), picture(20, 30)
    for count in (2, 3):
        settings = models.settings("tiny", steps=count, final_denoise=True, seed=count)
        ((_, restored),) = upscaler.stream([(0, image)], settings, stages=True)
        found = upscaler.stages(image, settings)
        assert len(found.steps) == count
        for one, other in [
            (found.pre_restored, restored.pre_restored),
            (found.decoded, restored.decoded),
            (found.result, restored.image),
            (found.steps[-1], restored.image),
        ]:
            np.testing.assert_allclose(one.astype(int), other, atol=1)
        assert np.abs(found.steps[0].astype(int) - found.steps[1]).max() > 1
    assert steps.run_stages._cache_size() == 1


def test_the_stages_that_are_shown_have_names(service, tmp_path):
    session = restore(service, web.photo(tmp_path / "a.jpg"), stages=True)
    pictures = viewing.stages(session.results.made[0])
    names = ["input", "pre-restored", "step 1 of 2", "step 2 of 2", "decoded", "result"]
    assert [name for _, name in pictures] == names
    assert {image.size for image, _ in pictures} == {(120, 80)}


def test_browsers_are_shown_what_they_can_show(service, tmp_path):
    session = restore(service, web.photo(tmp_path / 'a"<b>.tif'), format="tiff", scale=16.0)
    (made,) = session.results.made
    source, result = viewing.shown(made.source), viewing.shown(made.path)
    assert source.suffix == result.suffix == ".png" and source != made.source
    with Image.open(result) as shown, Image.open(made.path) as own:
        assert np.array_equal(np.asarray(shown), np.asarray(own))
    with Image.open(viewing.card(made)) as card:
        assert card.size == (viewing.CARD, viewing.CARD)
    page = viewing.viewer(made, "file=")
    assert "<b>" not in page and "--w: 480px" in page
    png = web.photo(tmp_path / "a.png")
    assert viewing.shown(png) == png


def test_the_middle_of_a_picture():
    image = np.arange(5 * 8 * 1).reshape(5, 8, 1)
    assert np.array_equal(restoring.middle(image, 4)[..., 0], image[0:4, 2:6, 0])
    assert restoring.middle(image, 99).shape == image.shape


def test_names_of_models_are_offered_without_their_folders(model, models, tmp_path):
    assert models.names == ("tiny",) and models.place("tiny") == str(model)
    with pytest.raises(UserError, match="choose one of tiny"):
        models.place(str(model))
    twin = Path(tmp_path / "tiny.safetensors")
    twin.write_bytes(model.read_bytes())
    args = argparse.Namespace(**{**vars(models.args), "model": [str(model), str(twin)]})
    with pytest.raises(UserError, match="another model has this name"):
        type(models)(args)
