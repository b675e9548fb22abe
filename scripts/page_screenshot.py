"""Writes docs/demo-page.png: the web page with the sample pair, in a headless Chromium.

    python scripts/page_screenshot.py [--output docs/demo-page.png]

Needs the extra `demo`, selenium, and Chromium with its driver.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

SIZE = (1320, 1430)
COLOURS = 256  # of the palette: a fifth of the size of the file, and hardly a difference to see
SCALE = 0.72


_SHOWN = """
const pictures = [...document.querySelectorAll("#slider img, #view img, #match img, #confidence img")];
return pictures.length >= 5 && pictures.every(picture => picture.naturalWidth > 0);
"""


def main() -> None:
    """Drives the page and writes the picture."""
    from selenium.webdriver.common.by import By
    from serving.browser import opened, until

    from tfcorr.serving.demo import MAX_PIXELS
    from tfcorr.serving.demo.page import Page
    from tfcorr.serving.demo.server import bound, running

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "demo-page.png")
    parser.add_argument("--model", help="default: the default model")
    args = parser.parse_args()
    sample = ROOT / "docs" / "sample"
    with tempfile.TemporaryDirectory() as folder:
        page = Page.load(args.model, None, max_pixels=MAX_PIXELS, folder=Path(folder))
        with (
            bound("127.0.0.1", 0) as listener,
            running(page.application(), listener) as url,
            opened(url, Path(folder), SIZE) as driver,
        ):

            def find(selector: str):
                return driver.find_element(By.CSS_SELECTOR, selector)

            until(lambda: find("#upscale").is_displayed(), "the page", 600)
            for place, name in (("#small", "low_res.png"), ("#references", "reference.png")):
                find(f"{place} input[type=file]").send_keys(str(sample / name))
                until(lambda place=place: find(f"{place} img").get_attribute("src"), name, 120)
            time.sleep(1)  # the components tell the server
            find("#upscale").click()
            until(lambda: find("#found").text, "the result", 1200)
            until(lambda: driver.execute_script(_SHOWN), "the pictures", 600)
            driver.execute_script("window.scrollTo(0, 0)")
            time.sleep(2)
            shot = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    shot = shot.resize((round(shot.width * SCALE), round(shot.height * SCALE)), Image.Resampling.LANCZOS)
    shot.quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE).save(args.output, optimize=True)
    print(f"{args.output}: {shot.width}x{shot.height}, {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
