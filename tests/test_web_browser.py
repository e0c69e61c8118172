"""The page in a real browser: Chromium, headless, as a person would use it.

Set SCREENSHOTS to a folder to keep what the page looked like.
"""

import contextlib
import io
import os
import re
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import web
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from dossr_jax import cli

pytestmark = pytest.mark.slow

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 180_000  # ms; compiling on a busy machine takes some of it


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert program, "this test needs Chromium: apt-get install chromium"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return web.model_file(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def address(model, place):
    with web.server(model, "--max-pixels", "4", temporary=place) as (address, _):
        yield address


@pytest.fixture(scope="module")
def opened(browser, address):
    """Open the page in a window; at the end, nothing may have been asked of anyone else."""
    elsewhere, errors = [], []

    @contextlib.contextmanager
    def opened(size):
        context = browser.new_context(viewport=size, has_touch=size is PHONE)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("request", lambda r: None if is_local(r.url) else elsewhere.append(r.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        # The fields have the model's own values: 2 steps, by the command line.
        expect(page.locator("#steps input[type=number]")).to_have_value("2")
        yield page
        context.close()

    def is_local(url):
        return url.startswith((address, "data:", "blob:"))

    yield opened
    assert elsewhere == [] and errors == []


@pytest.fixture(scope="module")
def desktop(opened):
    with opened(DESKTOP) as page:
        yield page


def picture_of(page, name):
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def pixels_of(element):
    return np.array(Image.open(io.BytesIO(element.screenshot())).convert("RGB"))


def choose(page, *photos):
    """Put these photos, and no others, into the page."""
    clear = page.locator("#photos button[aria-label='Clear']")
    if clear.count():
        clear.click()
    page.set_input_files("#photos input[type=file]", photos)
    expect(page.locator("#photos .file")).to_have_count(len(photos))


def set_number(page, field, value):
    box = page.locator(f"{field} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def restore(page, said):
    page.click("#restore")
    expect(page.locator("#status")).to_contain_text(said)
    expect(page.locator("#restore")).to_be_enabled()


def download(page, selector):
    with page.expect_download() as found:
        page.locator(selector).click()
    return found.value


def test_photos_are_restored_compared_and_downloaded(desktop, model, tmp_path):
    page, photo = desktop, web.photo(tmp_path / "my photo.jpg", 20, 30)
    choose(page, photo)
    set_number(page, "#variants", 2)
    set_number(page, "#seed", 3)
    page.locator("#show-stages input").check()
    restore(page, "2 restored")
    expect(page.locator("#cards .thumbnail-item")).to_have_count(2)
    expect(page.locator("#stages .gallery-item")).to_have_count(6)
    for image in page.locator("#viewer img, #cards img, #stages img").all():
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    picture_of(page, "desktop")

    out = tmp_path / "out"
    fixed = ["-o", str(out), "--model", str(model), *web.OPTIONS, "--no-cache"]
    for seed in ("3", "4"):
        named = ["--seed", seed, "--name", "{stem}_seed{seed}"]
        assert cli.main([str(photo), *fixed, *named]) == 0
    expected = {path.name: path.read_bytes() for path in out.glob("*.png")}
    links = page.locator("#results a[download]")
    got = {}
    for i in range(links.count()):
        file = download(page, f"#results a[download] >> nth={i}")
        got[file.suggested_filename] = Path(file.path()).read_bytes()
    assert got == expected and len(got) == 2
    file = download(page, "#zip")
    assert file.suggested_filename == "restored.zip"
    with zipfile.ZipFile(file.path()) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == expected


def test_the_slider_and_the_zoom_move_the_divider(desktop):
    """Of the results above."""
    page = desktop
    pair, slider = page.locator("#viewer .pair"), page.locator("#viewer input[type=range]")
    assert pair.bounding_box()["width"] == 120  # 1:1
    line = page.locator("#viewer .line")
    for value in (25, 75):
        slider.fill(str(value))
        assert line.bounding_box()["x"] - pair.bounding_box()["x"] == pytest.approx(
            1.2 * value, abs=1
        )
        clip = page.locator("#viewer .before").evaluate("image => getComputedStyle(image).clipPath")
        assert clip.startswith("inset(0px calc(100% - ")
    shown = pixels_of(page.locator("#viewer .view"))
    slider.fill("0")
    after = pixels_of(page.locator("#viewer .view"))
    assert (shown[:, :85] != after[:, :85]).any()
    assert np.array_equal(shown[:, 100:], after[:, 100:])
    page.locator("#viewer input[value='4']").check()
    assert pair.bounding_box()["width"] == 480
    page.locator("#viewer input[value='fit']").check()
    assert pair.bounding_box()["width"] > 480
    first = page.locator("#viewer .after").get_attribute("src")
    page.locator("#cards .thumbnail-item").nth(1).click()
    expect(page.locator("#viewer .after")).not_to_have_attribute("src", first)
    assert "_seed4.png" in page.locator("#viewer .after").get_attribute("src")


def test_cancel_stops_after_the_picture(desktop, tmp_path):
    page = desktop
    choose(page, *[web.photo(tmp_path / f"{i}.png", seed=i) for i in range(8)])
    set_number(page, "#variants", 8)
    page.locator("#show-stages input").uncheck()
    page.click("#restore")
    expect(page.locator("#status progress")).to_be_visible()
    expect(page.locator("#results .file")).not_to_have_count(0)
    page.click("#cancel")
    expect(page.locator("#status")).to_contain_text("cancelled")
    made = int(re.match(r"(\d+) restored", page.inner_text("#status"))[1])
    assert 1 <= made < 64
    expect(page.locator("#results .file")).to_have_count(made)
    expect(page.locator("#restore")).to_be_enabled()


def test_what_is_no_photo_or_too_large_is_refused_politely(desktop, tmp_path):
    page = desktop
    set_number(page, "#variants", 1)
    choose(page, web.fake(tmp_path / "fake.jpg"))
    page.click("#restore")
    toast = page.locator(".toast-body")
    expect(toast.last).to_contain_text("fake.jpg: not an image of a kind that can be read")
    page.wait_for_timeout(500)
    picture_of(page, "refused")
    good = web.photo(tmp_path / "good.png")
    choose(page, web.bomb(tmp_path / "bomb.png"), good)
    restore(page, "1 restored, 1 not")
    expect(page.locator("#status .failed")).to_contain_text("bomb.png: more than 179 million")
    set_number(page, "#scale", 400)
    choose(page, good)
    page.click("#restore")
    expect(toast.last).to_contain_text("good.png: 30x20 pixels become 12000x8000")


def test_a_folder_is_added_and_a_phone_has_room(opened, place, tmp_path):
    folder = tmp_path / "album"
    web.photo(folder / "a.jpg"), web.photo(folder / "sub" / "b.png")
    (folder / "notes.txt").write_text("no photo")
    with opened(PHONE) as page:
        picture_of(page, "phone-empty")
        with page.expect_file_chooser() as chooser:
            page.click("#folder")
        chooser.value.set_files(folder)
        expect(page.locator("#photos .file")).to_have_count(2)
        set_number(page, "#scale", 16)
        restore(page, "2 restored")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        box = page.locator("#viewer .view").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
        # The results come before the settings.
        assert box["y"] < page.locator("#settings").bounding_box()["y"]
        picture_of(page, "phone")
        assert list(place.rglob("inputs/b.png"))
    # The page was closed.
    end = time.monotonic() + 20
    while list(place.rglob("inputs/b.png")):
        assert time.monotonic() < end, "the results are still there"
        time.sleep(0.1)
