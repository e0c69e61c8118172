"""The server of the page, over HTTP: many users at once, and what it does not give away."""

import concurrent.futures
import json
import os
import signal
import stat
import urllib.error
import urllib.parse
import urllib.request

import pytest
from gradio_client import Client, handle_file
from helpers import web

from dossr_jax import cli

pytestmark = pytest.mark.slow

USERS = 20
API = "gradio_api"
UPLOAD = 200_000  # bytes that a file may have here


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the server puts its temporary folder."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return web.model_file(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def running(model, place):
    limits = ["--max-upload", str(UPLOAD / 1e6), "--max-pixels", "1"]
    with web.server(model, *limits, temporary=place) as found:
        yield found


@pytest.fixture(scope="module")
def address(running):
    return running[0]


def asked(photos, **changes):
    """What a client sends."""
    values = {"model": "tiny", "scale": 2, "steps": 2, "fidelity": 0, "seed": 0, "variants": 1}
    values |= {"solver": "sde", "color_fix": "wavelet", "format": "png", "quality": 0}
    values |= {"strip": False, "record": True, "stages": False, **changes}
    return [[handle_file(str(photo)) for photo in photos], *values.values()]


def client(address, folder):
    return Client(address, verbose=False, download_files=str(folder), analytics_enabled=False)


def results(answer):
    """(text of the status, files that were downloaded) of what a client got."""
    files = answer[4]["value"] if isinstance(answer[4], dict) else answer[4]
    return answer[0], files


def get(url, method="GET", **options):
    """(status, body) of a plain request."""
    request = urllib.request.Request(url, method=method, **options)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_twenty_users_at_once_get_their_own_results_from_one_program(address, model, tmp_path):
    photos = [web.photo(tmp_path / f"photo{i}.png", seed=i) for i in range(USERS)]
    out = tmp_path / "out"
    fixed = ["-o", str(out), "--model", str(model), "--scale", "2", *web.OPTIONS, "--no-cache"]
    fixed += ["--batch-size", "1"]  # users come one by one; larger batches may round otherwise
    assert cli.main([*map(str, photos), *fixed]) == 0

    def use(i):
        user = client(address, tmp_path / f"user{i}")
        return results(user.predict(*asked([photos[i]]), api_name="/restore"))

    with concurrent.futures.ThreadPoolExecutor(USERS) as pool:
        answers = list(pool.map(use, range(USERS)))
    for i, (said, (file,)) in enumerate(answers):
        assert "1 restored" in said
        with open(file, "rb") as result:
            assert result.read() == (out / f"photo{i}.png").read_bytes(), f"user {i}"


def test_only_what_is_needed_is_there(address, place):
    (folder,) = place.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    secret = place / "secret.txt"
    secret.write_text("secret")
    inside = folder / "files"
    for path in (
        "/etc/passwd",
        str(secret),
        f"{inside}/../../secret.txt",
        f"{inside}/%2e%2e/%2e%2e/secret.txt",
        str(inside),
    ):
        assert get(f"{address}{API}/file={path}")[0] in (403, 404), path
    for path in (
        f"{API}/file=http://127.0.0.1/",
        f"{API}/proxy=http://127.0.0.1/",
        f"{API}/deep_link",
        f"{API}/component_server",
        f"{API}/process_recording",
        f"{API}/vibe-code",
        "monitoring",
        "docs",
    ):
        assert get(address + path)[0] == 404, path
    secret.unlink()


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:9/a.png"])
def test_only_uploads_are_read(address, tmp_path, path):
    values = asked([])
    values[0] = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
    body = json.dumps({"data": values}).encode()
    kind = {"content-type": "application/json"}
    status, answer = get(f"{address}{API}/call/restore", "POST", data=body, headers=kind)
    assert status == 200
    event = json.loads(answer)["event_id"]
    _, told = get(f"{address}{API}/call/restore/{event}")
    assert told.startswith(b"event: error") and b"root:" not in told


def test_a_file_that_is_too_large_is_not_taken(address, place):
    boundary = "limit"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head.encode() + bytes(UPLOAD + 1) + f"\r\n--{boundary}--\r\n".encode()
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    status, told = get(f"{address}{API}/upload", "POST", data=body, headers=kind)
    assert status == 413 and b"maximum allowed size" in told
    assert not [path for path in place.rglob("*") if path.is_file() and path.name == "a.png"]


def test_names_of_uploads_lead_nowhere(address, place, tmp_path):
    photo = web.photo(tmp_path / "a.png")
    boundary = "name"
    head = (
        f"--{boundary}\r\nContent-Disposition: form-data; "
        'name="files"; filename="../../../out.png"\r\n\r\n'
    )
    body = head.encode() + photo.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    status, told = get(f"{address}{API}/upload", "POST", data=body, headers=kind)
    (folder,) = place.iterdir()
    assert status == 200
    assert os.path.realpath(json.loads(told)[0]).startswith(f"{folder}/files/")


def test_refusals_are_sentences(address, tmp_path):
    user = client(address, tmp_path / "user")
    for photos, changes, words in [
        ([], {}, "no photo yet"),
        ([web.fake(tmp_path / "fake.jpg")], {}, "fake.jpg: not an image"),
        ([web.bomb(tmp_path / "bomb.png")], {}, "bomb.png: more than"),
        ([web.photo(tmp_path / "a.png")], {"scale": 1000}, "more than 1 million"),
        ([web.photo(tmp_path / "a.png")], {"steps": 9.5}, "steps"),
        ([web.photo(tmp_path / "a.png")], {"variants": 99}, "maximum value 8"),
    ]:
        with pytest.raises(Exception, match=words):
            user.predict(*asked(photos, **changes), api_name="/restore")


def test_browsers_are_told_to_load_nothing_from_elsewhere(address):
    with urllib.request.urlopen(address, timeout=30) as answer:
        policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';") and "http" not in policy


def test_the_folder_goes_with_the_server(model, tmp_path):
    with web.server(model, temporary=tmp_path) as (address, process):
        assert get(address)[0] == 200
        assert list(tmp_path.iterdir())
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 128 + signal.SIGTERM
    assert said.endswith("stopped; uploads and results are removed\n")
    assert list(tmp_path.iterdir()) == []
