"""The corpus of odd, damaged and hostile image files, case by case; `scripts/file_corpus.py` prints it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import file_corpus
import numpy as np
import pytest
from file_corpus.making import directory_bomb, gif_with, png_file, rows, smooth, zeros
from PIL import Image

from tfcorr.imaging import ImageError, exif, read_image, write_image

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("case", file_corpus.cases(), ids=lambda case: f"{case.group}-{case.name}")
def test_case(case, tmp_path):
    outcome = file_corpus.examine(case, tmp_path)
    assert not outcome.problem, outcome.happened


def test_every_wish_of_users_is_in_the_corpus():
    """The corpus is made by functions: one that yields nothing would go unnoticed."""
    names = " ".join(f"{case.group} {case.name}" for case in file_corpus.cases())
    words = """
        cut off,bits flipped,a PNG file,text.png,huge.png,huge.jpg,huge.webp,huge.bmp,huge.gif,huge.tif,
        animated.gif,animated.webp,animated.png,pages.tif,cmyk.jpg,transparent palette,1 bit,16 bit,float,
        NaN,turned 8,empty.png,a folder,a pipe,/dev/zero,not there,circle,20000x1,two\\nlines,
        avif,heic,svg,pdf,zTXt,iCCP,exif.jpg,entries.tif
    """
    for word in (word.strip() for word in words.split(",")):
        assert word in names, word


def test_the_measure_of_memory_sees_what_is_used(tmp_path):
    """An examination that could not fail would be none: a case without room has to be told."""
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((1500, 2000, 3), np.uint8)).save(path)

    class Cramped(file_corpus.Case):
        room = 1 << 20

    case = Cramped("", "", "", lambda folder: [path], lambda result: None)
    outcome = file_corpus.examine(case, tmp_path)
    if outcome.peak is None:
        pytest.skip("this system does not tell how much memory was used")
    assert "MB of memory" in outcome.problem and outcome.peak >= 1500 * 2000 * 3


def test_modest_directories():
    assert not exif.is_modest(directory_bomb(5000, 65_000))
    assert not exif.is_modest(b"Exif\0\0" + directory_bomb(300, 65_000))
    # One entry that names all of it is no bomb, nor are entries that lead beyond the end.
    assert exif.is_modest(directory_bomb(1, 65_000))
    assert exif.is_modest(directory_bomb(1500, 65_000)[:-40])
    for block in (b"", b"Exif\0\0", b"II*\0", b"no structure"):
        assert exif.is_modest(block)
    source = Image.Exif()
    source[0x010E] = "x" * 50_000
    source.get_ifd(0x8769).update({0x927C: bytes(10_000), 0x829A: 0.5})
    assert exif.is_modest(source.tobytes())


def test_frames_are_no_larger_than_the_limit_whatever_the_screen(tmp_path):
    path = tmp_path / "a.gif"
    for content in (gif_with((4, 4), (2000, 2000)), gif_with((4, 4), (2000, 2000), dispose=2)):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"too many pixels; at most 1\.0 million are accepted"):
            read_image(path, max_pixels=1_000_000)


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".jpg", ".png"])
def test_what_was_left_out_of_a_file_does_not_come_out_of_it(tmp_path, suffix):
    bomb = (b"eXIf", directory_bomb(40_000, 1 << 20))
    (tmp_path / "in.png").write_bytes(png_file(14, 11, rows(smooth()), bomb))
    picture = read_image(tmp_path / "in.png")
    assert picture.exif is None
    write_image(tmp_path / f"out{suffix}", picture)
    assert (tmp_path / f"out{suffix}").stat().st_size < 10_000


def test_bytes_are_limited_with_the_pixels(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_file(14, 11, rows(smooth())))
    os.truncate(path, 70 << 20)
    assert read_image(path, max_pixels=1_000_000).width == 14
    with pytest.raises(ImageError, match="is 73 MB long; at most 67 MB are read"):
        read_image(path, max_pixels=1000)


@pytest.mark.slow
def test_through_the_command_line(tiny_model_folder, tmp_path):
    """A folder of bad files and a good one: each bad one is told in one line, and the good one is done."""
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    Image.fromarray(smooth()).save(inputs / "good.png")
    Image.fromarray(smooth(1, 9)).save(inputs / "line.png")
    bad = {
        "empty.png": b"",
        "text.png": b"no image",
        "cut.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF",
        "bomb.png": png_file(60_000, 60_000, zeros(0)),
        "texts.png": png_file(14, 11, rows(smooth()), (b"zTXt", b"a\0\0" + zeros(40 << 20))),
        "entries.tif": directory_bomb(60_000, 1 << 20),
        "two\nlines.png": b"x",
        "\x1b[31mred.png": b"x",
    }
    for name, content in bad.items():
        (inputs / name).write_bytes(content)
    os.mkfifo(inputs / "pipe.png")
    (inputs / "circle.png").symlink_to("circle.png")
    command = [sys.executable, "-m", "tfcorr", "super-resolve", str(inputs), "--output", str(output)]
    done = subprocess.run(
        [*command, "--model", str(tiny_model_folder)], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(bad) + 2
    for name in (*bad, "pipe.png", "circle.png"):
        shown = name.encode("unicode_escape").decode()
        told = [line for line in lines if shown in line and line.startswith("tfcorr: ")]
        assert len(told) == 1 and told[0].count(shown) == 1, name
    assert all(line.isprintable() for line in lines)
    assert sorted(path.name for path in output.iterdir()) == ["good.png", "line.png"]
    assert read_image(output / "good.png").pixels.shape == (44, 56, 3)
    assert read_image(output / "line.png").pixels.shape == (4, 36, 3)


def test_limits_of_several_threads(tmp_path):
    """Pillow's limit belongs to the whole process: one thread's must not be taken for another's."""
    for name in ("a.png", "a.tif", "b.tif"):
        options = {"compression": "tiff_lzw"} if name == "b.tif" else {}
        Image.fromarray(smooth(60, 50)).save(tmp_path / name, **options)

    def read(number: int) -> bool:
        path = tmp_path / ("a.png", "a.tif", "b.tif")[number % 3]
        try:
            return read_image(path, max_pixels=100 if number % 2 else 3000).height == 60 and not number % 2
        except ImageError as error:
            return bool(number % 2) and "at most 0.0 million" in str(error)

    before = Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(600)))
    assert before == Image.MAX_IMAGE_PIXELS
