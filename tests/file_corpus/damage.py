"""Damaged files, what is no file, and files of another kind."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from file_corpus.examine import Case
from file_corpus.expecting import anything, one_file, reads, reads_whole_or_refuses, refuses
from file_corpus.making import MEGABYTE, encoded, good_files, smooth
from tfcorr.imaging import png, read_image


def damaged() -> Iterator[Case]:
    """Every kind of file cut off, with flipped bits, and with holes."""
    limit = MEGABYTE
    for name, content in good_files().items():
        suffix = os.path.splitext(name)[1]

        def cut(folder: Path, content=content, suffix=suffix) -> list[Path]:
            lengths = np.unique(np.linspace(1, len(content) - 1, 40).astype(int))
            return _written(folder, suffix, (content[:length] for length in lengths))

        def flipped(folder: Path, content=content, suffix=suffix) -> list[Path]:
            return _written(folder, suffix, _with_flips(content, 60))

        def overwritten(folder: Path, content=content, suffix=suffix) -> list[Path]:
            return _written(folder, suffix, _with_holes(content, 20))

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            whole = read_image(path).pixels
        yield Case(
            "damaged",
            f"{name}: cut off at 40 places",
            "refused, or read whole",
            cut,
            reads_whole_or_refuses(whole),
            limit,
            limit,
        )
        yield Case(
            "damaged",
            f"{name}: 60 times with bits flipped",
            "refused, or read",
            flipped,
            anything,
            limit,
            limit,
        )
        yield Case(
            "damaged",
            f"{name}: 20 times with a hole of zeros or ones",
            "refused, or read",
            overwritten,
            anything,
            limit,
            limit,
        )


def _written(folder: Path, suffix: str, contents: Iterator[bytes]) -> list[Path]:
    paths = []
    for number, content in enumerate(contents):
        paths.append(folder / f"{number:03d}{suffix}")
        paths[-1].write_bytes(content)
    return paths


def _with_flips(content: bytes, count: int) -> Iterator[bytes]:
    """Copies with 1 to 4 flipped bits, half of them in the first 200 bytes, where the structure is."""
    random = np.random.default_rng(1)
    for number in range(count):
        changed = bytearray(content)
        end = min(200, len(content)) if number % 2 else len(content)
        for place in random.integers(4, end, random.integers(1, 5)):
            changed[place] ^= 1 << random.integers(8)
        yield bytes(changed)


def _with_holes(content: bytes, count: int) -> Iterator[bytes]:
    random = np.random.default_rng(2)
    for number in range(count):
        changed = bytearray(content)
        start = int(random.integers(4, len(content)))
        length = min(int(random.integers(1, 64)), len(content) - start)
        changed[start : start + length] = (b"\xff" if number % 2 else b"\0") * length
        yield bytes(changed)


def places() -> Iterator[Case]:
    """What is no file with content."""
    picture = encoded(smooth(), "PNG")

    def folder_itself(folder: Path) -> list[Path]:
        (folder / "folder.png").mkdir()
        return [folder / "folder.png"]

    def fifo(folder: Path) -> list[Path]:
        os.mkfifo(folder / "fifo.png")
        return [folder / "fifo.png"]

    def socket_file(folder: Path) -> list[Path]:
        # Names of sockets are short.
        with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as one:
            one.bind(f"{short}/s")
            os.link(f"{short}/s", folder / "socket.png")
        return [folder / "socket.png"]

    def loop(folder: Path) -> list[Path]:
        (folder / "a.png").symlink_to("b.png")
        (folder / "b.png").symlink_to("a.png")
        return [folder / "a.png"]

    def dangling(folder: Path) -> list[Path]:
        (folder / "a.png").symlink_to("nowhere.png")
        return [folder / "a.png"]

    def link(folder: Path) -> list[Path]:
        (folder / "real").write_bytes(picture)
        (folder / "a.png").symlink_to("real")
        return [folder / "a.png"]

    def file_as_folder(folder: Path) -> list[Path]:
        (folder / "a.png").write_bytes(picture)
        return [folder / "a.png" / "b.png"]

    def locked(folder: Path) -> list[Path]:
        (folder / "locked.png").write_bytes(picture)
        (folder / "locked.png").chmod(0)
        return [folder / "locked.png"]

    def sparse(name: str, start: bytes):
        def make(folder: Path) -> list[Path]:
            (folder / name).write_bytes(start)
            os.truncate(folder / name, 200 << 30)
            return [folder / name]

        return make

    refusal = "refused"
    yield Case("places", "a folder", refusal, folder_itself, refuses("is a folder"))
    yield Case("places", "a pipe", f"{refusal}, not waited for", fifo, refuses("not a regular file"))
    yield Case("places", "a socket", refusal, socket_file, refuses("not a regular file"))
    for device in ("/dev/zero", "/dev/null", "/dev/tty"):
        yield Case(
            "places", device, refusal, lambda _, path=device: [Path(path)], refuses("not a regular file")
        )
    yield Case(
        "places",
        "a file of /proc, whose size is 0",
        refusal,
        lambda _: [Path("/proc/self/maps")],
        refuses("empty"),
    )
    yield Case("places", "a link", "read", link, reads(smooth()))
    yield Case("places", "a link to nothing", refusal, dangling, refuses("does not exist"))
    yield Case("places", "links in a circle", refusal, loop, refuses("cannot be read"))
    yield Case("places", "a file in a file", refusal, file_as_folder, refuses("cannot be read"))
    yield Case("places", "NUL in the name", refusal, lambda f: [f"{f}/nul\0.png"], refuses("cannot be read"))
    yield Case(
        "places",
        "a name of 300 characters",
        refusal,
        lambda f: [f / ("n" * 300 + ".png")],
        refuses("cannot be read"),
    )
    if os.geteuid():
        yield Case("places", "no permission to read", refusal, locked, refuses("permission denied"))
    yield one_file("places", "empty.png", b"", refusal, refuses("is empty (0 bytes)"))
    for name, start in (("sparse.png", picture), ("sparse.tif", encoded(smooth(), "TIFF"))):
        yield Case(
            "places",
            f"{name}: 200 GB long, all but the picture zeros",
            f"{refusal} by its length",
            sparse(name, start),
            refuses("MB long"),
        )


def other_files() -> Iterator[Case]:
    for name, content, word in (
        ("text.png", b"This is no image at all, but a text of some length.\n", "not an image"),
        ("page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
        ("archive.png", b"PK\3\4" + bytes(60), "not an image"),
        ("program.png", b"\x7fELF" + bytes(60), "not an image"),
        ("noise.png", np.random.default_rng(3).bytes(5000), "not an image"),
        ("zeros.tif", bytes(5000), "not an image"),
        ("one byte.png", b"\x89", "not an image"),
        ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        ("drawing.xml.svg", b'<?xml version="1.0"?><svg/>', "SVG"),
        ("paper.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        ("a.avif", b"\0\0\0\x1cftypavif\0\0\0\0mif1avif", "AVIF"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        ("a.jxl", b"\xff\x0a\xfa\x1f\x01", "JPEG XL"),
        ("a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        ("a.psd", b"8BPS\0\1" + bytes(40), "Photoshop"),
        ("a.exr", b"\x76\x2f\x31\x01\x02\0\0\0", "OpenEXR"),
        ("BM only.bmp", b"BM", "header"),
        ("signature only.png", png.SIGNATURE, "header"),
    ):
        yield one_file("other files", name, content, f"refused: {word}", refuses(word))
