"""The web page: what it computes, what it refuses, and all of it in a browser without any network."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfcorr.errors import TfcorrError
from tfcorr.serving.demo import pictures
from tfcorr.serving.demo.semantic import Matching
from tfcorr.serving.demo.super_resolution import MAX_REFERENCES, Upscaling

MAX_PIXELS = 2000


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """A picture with structure of several sizes, uint8 (height, width, 3)."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + random.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def resolver(tiny_model_folder):
    from tfcorr import SuperResolver

    return SuperResolver.from_pretrained(tiny_model_folder)


@pytest.fixture
def upscaling(resolver, tmp_path):
    (tmp_path / "results").mkdir()
    return Upscaling(resolver, max_pixels=MAX_PIXELS, folder=tmp_path / "results")


@pytest.fixture
def files(tmp_path):
    """A small image, its sharp original rolled by a few pixels, and a picture of something else."""
    sharp = picture(96, 120, 1)
    images = {
        "small.png": np.asarray(Image.fromarray(sharp).resize((30, 24), Image.Resampling.BICUBIC)),
        "sharp.png": np.roll(sharp, (8, 12), (0, 1)),
        "other.png": picture(64, 80, 2),
    }
    for name, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / name)
    return {name: tmp_path / name for name in images}


def test_result_is_that_of_the_resolver(upscaling, resolver, files):
    references = [files["other.png"], files["sharp.png"]]
    steps = []
    found = upscaling.run(files["small.png"], references, lambda *step: steps.append(step))
    wanted = resolver.upscale(
        np.asarray(Image.open(files["small.png"])),
        [np.asarray(Image.open(f)) for f in references],
        details=True,
    )
    np.testing.assert_array_equal(np.asarray(Image.open(found.file)), wanted.image)
    np.testing.assert_array_equal(found.correspondence, wanted.correspondence)
    assert found.file.name == "small_x4.png"
    assert Image.open(found.enlarged_file).size == (120, 96)
    assert "**120 × 96** pixels from 30 × 24" in found.summary
    assert "2 references" in found.summary
    assert steps[-1][0] == steps[-1][1]
    found.forget()
    assert not found.folder.exists()


def test_click_finds_the_matched_place(upscaling, files):
    found = upscaling.run(files["small.png"], [files["other.png"], files["sharp.png"]])
    row, column = 10, 17
    number, y, x = found.correspondence[row, column]
    view, reference, sentence = found.look_up((row + 0.4) / 24, (column + 0.6) / 30)
    assert sentence == (
        f"Pixel (17, 10) of the small image matches ({x}, {y}) of {['other.png', 'sharp.png'][number]}, "
        f"confidence {found.confidence[row, column]:.2f}."
    )
    for drawn, before, place in (
        (view, found.view, ((row + 0.4) / 24, (column + 0.6) / 30)),
        (reference, found.reference_views[number], np.add((y, x), 0.5) / found.reference_sizes[number]),
    ):
        changed = np.argwhere((drawn != before).any(axis=2))
        middle = (changed.min(axis=0) + changed.max(axis=0)) / 2 / before.shape[:2]
        np.testing.assert_allclose(middle, place, atol=0.03)
    for corner in ((0.0, 0.0), (1.0, 1.0)):
        found.look_up(*corner)


def test_without_a_reference(upscaling, files):
    found = upscaling.run(files["small.png"], [])
    assert "no reference was given" in found.summary
    assert "of the image itself" in found.look_up(0.5, 0.5)[2]


def test_transparency_and_grey(upscaling, tmp_path):
    pixels = np.dstack(
        [picture(20, 24, 3)[..., 0], np.linspace(0, 255, 480).reshape(20, 24).astype(np.uint8)]
    )
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    found = Image.open(upscaling.run(tmp_path / "grey.png", []).file)
    assert (found.mode, found.size) == ("LA", (96, 80))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"no image", "the small image, wrong.png: "),
        (b"", "the small image, wrong.png: "),
        (None, "the small image, wrong.png: .*million"),
    ],
)
def test_refusals_name_the_file_only(upscaling, tmp_path, content, words):
    path = tmp_path / "wrong.png"
    if content is None:
        Image.fromarray(picture(50, 50, 4)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(TfcorrError, match=words) as caught:
        upscaling.run(path, [])
    assert str(tmp_path) not in str(caught.value)
    assert not list(upscaling.folder.iterdir())


def test_limits_of_references(upscaling, files):
    with pytest.raises(TfcorrError, match="9 references were given, at most 8"):
        upscaling.run(files["small.png"], [files["sharp.png"]] * (MAX_REFERENCES + 1))
    with pytest.raises(TfcorrError, match="Drop a small image first"):
        upscaling.run(None, [])


def test_references_share_their_limit(upscaling, files, monkeypatch):
    monkeypatch.setattr("tfcorr.serving.demo.super_resolution.MAX_REFERENCE_PIXELS", 96 * 120 + 10)
    with pytest.raises(TfcorrError, match=r"a reference, other\.png"):
        upscaling.run(files["small.png"], [files["sharp.png"], files["other.png"]])


def test_confidence_map_rises_in_lightness():
    colours = pictures.confidence_map(np.linspace(0, 1, 11)[None])[0].astype(float)
    assert (np.diff(colours @ [0.299, 0.587, 0.114]) > 0).all()
    assert colours[0, 2] > colours[0, 1] and colours[-1, 0] > colours[-1, 2]  # blue first, yellow last


def test_preview_of_small_and_large():
    small = pictures.preview(picture(9, 12, 7))
    assert small.shape == (540, 720, 3) and (small[:60, :60] == small[0, 0]).all()
    assert pictures.preview(np.zeros((1500, 100, 1), np.uint16)).shape == (720, 48, 3)


class ShiftingMatcher:
    """Stands for a semantic matcher: everything lies three pixels to the right and one further down."""

    def match(self, source, target, *, details):
        from tfcorr.semantic.predictor import MatchResult

        assert details and source.dtype == target.dtype == np.uint8
        height, width = source.shape[:2]
        flow = np.broadcast_to(np.float32([3, 1]), (height, width, 2))
        return MatchResult(flow, np.full((height, width), 0.5, np.float32), source)


def test_semantic_matching(files):
    found = Matching(ShiftingMatcher(), max_pixels=20_000).run(files["sharp.png"], files["sharp.png"])
    assert found.look_up(0.5, 0.5)[2] == "(60, 48) of the source lies at (63, 49) of the target."
    assert found.look_up(0.5, 1.0)[2].endswith("outside of it.")
    with pytest.raises(TfcorrError, match="Drop both pictures"):
        Matching(ShiftingMatcher(), max_pixels=100).run(files["sharp.png"], None)
    # Reduced for the matching, a quarter as long; the places are those of the files.
    found = Matching(ShiftingMatcher(), max_pixels=720).run(files["sharp.png"], files["small.png"])
    assert (found.flow.shape, found.target_size) == ((24, 30, 2), (24, 30))
    assert found.look_up(0.5, 0.5)[2] == "(62, 50) of the source lies at (18, 13) of the target."


def test_pictures_that_are_too_large(files, monkeypatch):
    monkeypatch.setattr("tfcorr.serving.demo.semantic.MAX_UPLOAD_PIXELS", 1000)
    with pytest.raises(TfcorrError, match=r"the target, other\.png"):
        Matching(ShiftingMatcher(), max_pixels=1000).run(files["small.png"], files["other.png"])


def test_port_that_is_taken():
    pytest.importorskip("uvicorn")
    from tfcorr.serving.demo.server import bound

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TfcorrError, match=f"port {port} at 127.0.0.1 cannot be used"):
            bound("127.0.0.1", port)
    with pytest.raises(TfcorrError, match="cannot be used"):
        bound("203.0.113.1", 0)


def test_without_the_extra():
    program = (
        "import sys; sys.modules['gradio'] = None\n"
        "from tfcorr.cli import main\n"
        "import tfcorr.cli.demo as demo; demo.start_tensorflow = lambda: None\n"
        "sys.exit(main(['demo', '--port', '7999']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'tfcorr[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_page_without_a_matcher(upscaling):
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    from tfcorr.serving.demo.page import Page

    parts = Page(upscaling, None, "none here").blocks.config["components"]
    (told,) = (part["props"]["value"] for part in parts if part["props"].get("elem_id") == "no-matcher")
    assert "none here" in told and "tfcorr train" in told


def test_page_in_a_browser(resolver, files, tmp_path):
    """From upload to download, with no address but this machine's."""
    from serving.browser import chromium, foreign, opened, requested, until

    chromium()
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    from tfcorr.serving.demo.page import Page
    from tfcorr.serving.demo.server import bound, running

    results, downloads = tmp_path / "results", tmp_path / "downloads"
    results.mkdir()
    downloads.mkdir()
    (tmp_path / "text.png").write_text("this is no image")
    matching = Matching(ShiftingMatcher(), max_pixels=20_000)
    page = Page(Upscaling(resolver, max_pixels=MAX_PIXELS, folder=results), matching)

    with (
        bound("127.0.0.1", 0) as listener,
        running(page.application(), listener) as url,
        opened(url, downloads) as driver,
    ):

        def find(selector: str):
            return driver.find_element(By.CSS_SELECTOR, selector)

        def upload(selector: str, path: Path) -> None:
            until(lambda: find(f"{selector} input[type=file]"), f"a place for files in {selector}")
            find(f"{selector} input[type=file]").send_keys(str(path))
            until(lambda: find(f"{selector} img").get_attribute("src"), f"the picture in {selector}")
            time.sleep(0.5)  # the component tells the server

        until(lambda: find("#upscale").is_displayed(), "the page")
        # Something that is no image: a sentence, and the page goes on.
        find("#upscale").click()
        until(lambda: "Drop a small image first." in find("body").text, "the sentence")

        upload("#small", files["small.png"])
        upload("#references", files["sharp.png"])
        find("#upscale").click()
        until(lambda: "120 × 96 pixels from 30 × 24" in find("#summary").text, "the result")
        until(lambda: len(driver.find_elements(By.CSS_SELECTOR, "#slider img")) >= 2, "the slider")
        first = until(lambda: find("#found").text, "the first match")
        assert "sharp.png, confidence" in first

        until(lambda: find("#view img").size["width"] > 100, "the picture to point at")
        # A click falls into the middle of what is to be seen of an element.
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", find("#view img"))
        find("#view img").click()
        sentence = until(lambda: find("#found").text != first and find("#found").text, "the match of a click")
        wanted = resolver.upscale(
            np.asarray(Image.open(files["small.png"])),
            np.asarray(Image.open(files["sharp.png"])),
            details=True,
        )
        possible = {
            f"Pixel ({x}, {y}) of the small image matches "
            f"({wanted.correspondence[y, x, 2]}, {wanted.correspondence[y, x, 1]}) of sharp.png, "
            f"confidence {wanted.confidence[y, x]:.2f}."
            for y in (11, 12)
            for x in (14, 15)
        }
        assert sentence in possible

        find("#download").click()
        file = until(lambda: next(iter(downloads.glob("*.png")), None), "the download")
        assert file.name == "small_x4.png"
        until(lambda: file.stat().st_size == next(results.glob("*/*_x4.png")).stat().st_size, "all of it")
        np.testing.assert_array_equal(np.asarray(Image.open(file)), wanted.image)

        tabs = [tab for tab in driver.find_elements(By.CSS_SELECTOR, "[role=tab]") if tab.text]
        next(tab for tab in tabs if "Semantic" in tab.text).click()
        until(lambda: find("#match-button").is_displayed(), "the second tab")
        upload("#source", files["sharp.png"])
        upload("#target", files["sharp.png"])
        find("#match-button").click()
        middle = "(60, 48) of the source lies at (63, 49) of the target."
        until(lambda: find("#semantic-found").text == middle, "the match of the middle")
        until(lambda: find("#source-view img").size["width"] > 100, "the source to point at")
        shown = find("#source-view img")
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", shown)
        ActionChains(driver).move_to_element_with_offset(
            shown, 0, -shown.size["height"] // 4
        ).click().perform()
        until(lambda: re.match(r"\(60, 2[345]\) of the source", find("#semantic-found").text), "its place")

        urls = requested(driver)
        assert len(urls) > 20  # the page, its scripts, the pictures: the log works
        assert foreign(urls) == []
        severe = [e["message"] for e in driver.get_log("browser") if e["level"] == "SEVERE"]
        assert not [message for message in severe if "ERR_" in message], severe
