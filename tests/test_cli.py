import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tfcorr
import tfcorr.cli.super_resolve as command
import tfcorr.pretrained as pretrained
from tfcorr.cli import COMMANDS, build_parser, main
from tfcorr.cli.batch import plan_jobs
from tfcorr.errors import TfcorrError, UsageError
from tfcorr.refsr.predictor import SuperResolver


@pytest.fixture(scope="session")
def loaded(tiny_model_folder):
    """One model for all calls in this process: each would trace its own."""
    return SuperResolver.from_pretrained(tiny_model_folder, memory=10**9)


@pytest.fixture
def run(loaded, monkeypatch, capsys):
    """`run(arguments...)` -> (exit status, standard output, standard error) of `tfcorr super-resolve`."""
    monkeypatch.setattr(command, "_load", lambda _: loaded)

    def call(*arguments):
        try:
            status = main(["super-resolve", *map(str, arguments)])
        except SystemExit as exit:
            status = exit.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return call


@pytest.fixture
def photo(tmp_path):
    """`photo(name, size=(width, height), mode)` -> path of a new image file."""

    def make(name, size=(9, 7), mode="RGB", seed=0, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        if mode == "I;16":
            Image.fromarray(random.integers(0, 65536, size[::-1]).astype(np.uint16)).save(path, **options)
        else:
            bands = len(Image.new(mode, (1, 1)).getbands())
            pixels = random.integers(0, 256, (size[1], size[0], bands)).astype(np.uint8)
            Image.fromarray(pixels if bands > 1 else pixels[..., 0], mode).save(path, **options)
        return path

    return make


def size(path):
    with Image.open(path) as image:
        return image.size


# The frame ---------------------------------------------------------------------------------


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **environment},
        cwd=Path(tfcorr.__file__).parents[1],
        check=False,
    )


def test_help_is_quick_and_imports_no_tensorflow():
    code = (
        "import sys, time; start = time.process_time()\n"
        "from tfcorr.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        "heavy = {'tensorflow', 'keras', 'cv2', 'PIL', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert time.process_time() - start < 0.5\n"
    )
    finished = python("-c", code)
    assert finished.returncode == 0, finished.stderr
    for name in (*COMMANDS, "examples:"):
        assert name in finished.stdout


def test_import_is_lazy_and_the_version_is_one():
    finished = python(
        "-c", "import sys, tfcorr; assert 'keras' not in sys.modules; print(tfcorr.__version__)"
    )
    assert finished.stdout.strip() == tfcorr.__version__
    finished = python("-m", "tfcorr", "--version")
    assert finished.stdout.strip() == f"tfcorr {tfcorr.__version__}"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tfcorr.nonsense  # noqa: B018
    assert "SuperResolver" in dir(tfcorr)


def test_start_imports_no_package_that_is_not_needed():
    """Keras would import these where they are installed; nothing is left of hiding them."""
    code = (
        "import sys\n"
        "from tfcorr.cli.messages import start_tensorflow\n"
        "start_tensorflow()\n"
        "names = ['matplotlib', 'pandas', 'huggingface_hub', 'pyarrow']\n"
        "print([name for name in names if name in sys.modules])\n"
        "import keras, tensorflow\n"
        "print(keras.Sequential([keras.layers.Dense(2)])(tensorflow.ones((1, 3))).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "(1, 2)"]


def test_every_command_has_help(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as exit:
            build_parser().parse_args([name, "--help"])
        assert exit.value.code == 0
        assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["upscale"],
        ["super-resolve"],
        ["super-resolve", "a.png"],
        ["super-resolve", "a.png", "--output", "b.png", "--scale", "9"],
        ["super-resolve", "a.png", "--output", "b.png", "--scale", "nan"],
        ["super-resolve", "a.png", "--output", "b.png", "--size", "12"],
        ["super-resolve", "a.png", "--output", "b.png", "--size", "0x5"],
        ["super-resolve", "a.png", "--output", "b.png", "--size", "4x5", "--scale", "2"],
        ["super-resolve", "a.png", "--output", "b.png", "--memory", "much"],
        ["super-resolve", "a.png", "--output", "b.png", "--threads", "0"],
        ["super-resolve", "a.png", "--output", "b.png", "--precision", "float16"],
    ],
)
def test_wrong_calls_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GB", 2 * 10**9), ("1.5g", 15 * 10**8), ("800 MB", 8 * 10**8), ("1GiB", 2**30), ("5", 5)],
)
def test_amounts_of_memory(text, count):
    args = build_parser().parse_args(["super-resolve", "a", "--output", "b", "--memory", text])
    assert args.memory == count


def test_errors_without_and_with_traceback(monkeypatch, capsys):
    def fails(args):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(command, "run", fails)
    arguments = ["super-resolve", "a.png", "--output", "b.png"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error == "tfcorr: RuntimeError: first second (TFCORR_DEBUG=1 shows where)\n"
    monkeypatch.setenv("TFCORR_DEBUG", "1")
    assert main(arguments) == 1
    assert "Traceback" in capsys.readouterr().err

    def stops(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", stops)
    assert main(arguments) == 130
    assert capsys.readouterr().err == "tfcorr: interrupted\n"


# Which output belongs to which input ----------------------------------------------------


def plan(tmp_path, inputs, output):
    jobs = plan_jobs([str(tmp_path / name) for name in inputs], str(tmp_path / output))
    return [(str(j.source.relative_to(tmp_path)), str(j.target.relative_to(tmp_path))) for j in jobs]


def test_planned_outputs(tmp_path, photo):
    for name in ("in/b.png", "in/a.JPG", "in/deep/er/c.gif", "in/.hidden/d.png", "in/out/old.png", "e.webp"):
        photo(name, format="PNG")
    (tmp_path / "in/notes.txt").write_text("no image")
    assert plan(tmp_path, ["e.webp"], "new.tif") == [("e.webp", "new.tif")]
    assert plan(tmp_path, ["e.webp"], "in") == [("e.webp", "in/e.webp")]
    assert (
        plan_jobs([str(tmp_path / "e.webp")], str(tmp_path / "new") + "/")[0].target
        == tmp_path / "new/e.webp"
    )
    assert plan(tmp_path, ["in", "e.webp", "e.webp"], "in/out") == [
        ("in/a.JPG", "in/out/a.JPG"),
        ("in/b.png", "in/out/b.png"),
        ("in/deep/er/c.gif", "in/out/deep/er/c.png"),
        ("e.webp", "in/out/e.webp"),
    ]
    # A file that is not there is planned; it fails by itself later.
    assert plan(tmp_path, ["e.webp", "missing.bmp"], "out")[1] == ("missing.bmp", "out/missing.png")


def test_outputs_that_cannot_be(tmp_path, photo):
    for name in ("in/a.png", "in/a.gif", "two/a.png", "empty/x.txt"):
        photo(name, format="PNG")
    with pytest.raises(UsageError, match=r"a\.gif and .*a\.png would both be written to .*out/a\.png"):
        plan(tmp_path, ["in"], "out")
    with pytest.raises(UsageError, match="would both be written"):
        plan(tmp_path, ["in/a.png", "two"], "out")
    with pytest.raises(UsageError, match=r"is the input .*in/a\.png"):
        plan(tmp_path, ["in/a.png"], "in/a.png")
    with pytest.raises(UsageError, match="is the input"):
        plan(tmp_path, ["two"], "two")
    with pytest.raises(UsageError, match="is a file, but several images need a folder"):
        plan(tmp_path, ["two"], "in/a.png")
    with pytest.raises(UsageError, match=r"cannot tell a format from the ending '\.gif'"):
        plan(tmp_path, ["in/a.png"], "b.gif")
    with pytest.raises(TfcorrError, match=r"empty: no image file in this folder"):
        plan(tmp_path, ["empty"], "out")


# Upscaling ---------------------------------------------------------------------------------


def test_one_image_with_references_and_figure(run, photo, tmp_path):
    small, first, second = (
        photo("s.png"),
        photo("r.jpg", (30, 40), seed=1),
        photo("g.png", (20, 33), "L", seed=2),
    )
    out, figure = tmp_path / "new/large.png", tmp_path / "why.png"
    arguments = [small, "--reference", first, "--reference", second, "--output", out, "--figure", figure]
    status, text, errors = run(*arguments)
    assert (status, errors) == (0, "")
    assert text.startswith(f"{out}: 36x28 from {small} (9x7), references r.jpg, g.png used for ")
    assert "% of the pixels" in text
    assert size(out) == (36, 28)
    assert size(figure)[0] > 1000
    assert [path.name for path in out.parent.iterdir()] == ["large.png"]

    # Resumed: nothing to do, so nothing is loaded.
    before = out.stat().st_mtime_ns
    status, text, _ = run(*arguments)
    assert (status, text) == (0, f"{out}: exists, skipped (--overwrite replaces it)\n")
    assert out.stat().st_mtime_ns == before
    status, text, errors = run(*arguments, "--overwrite", "--quiet")
    assert (status, text, errors) == (0, "", "")
    assert out.stat().st_mtime_ns > before


def test_sizes(run, photo, tmp_path):
    small = photo("s.png", (9, 7), "RGBA")
    status, text, _ = run(small, "--output", tmp_path / "a.png", "--scale", "2.5")
    assert status == 0
    assert "22x18 from" in text and "resized from 4x (36x28)" in text and "no reference" in text
    assert size(tmp_path / "a.png") == (22, 18)
    status, text, _ = run(small, "--output", tmp_path / "b.png", "--size", "50x60")
    assert status == 0 and "50x60" in text and size(tmp_path / "b.png") == (50, 60)
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "RGBA"


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.png"), ("LA", "b.png"), ("RGBA", "c.webp"), ("I;16", "d.png"), ("I;16", "e.tif")],
)
def test_the_kind_of_image_stays(run, photo, tmp_path, mode, name):
    source = photo(name, (8, 6), mode)
    out = tmp_path / "out" / name
    assert run(source, "--output", out)[0] == 0
    with Image.open(out) as image, Image.open(source) as original:
        assert image.mode == original.mode
        assert image.size == (32, 24)
        if mode.endswith("A"):  # transparency is enlarged by itself
            alpha = original.getchannel("A").resize((32, 24), Image.Resampling.BICUBIC)
            np.testing.assert_allclose(np.asarray(image.getchannel("A"), int), np.asarray(alpha), atol=1)


def test_orientation_and_metadata(run, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    source = photo("s.jpg", (9, 6), exif=exif, icc_profile=b"", quality=95)
    assert run(source, "--output", tmp_path / "kept.jpg")[0] == 0
    assert run(source, "--output", tmp_path / "bare.jpg", "--strip-metadata")[0] == 0
    with Image.open(tmp_path / "kept.jpg") as kept, Image.open(tmp_path / "bare.jpg") as bare:
        assert kept.size == bare.size == (24, 36)
        assert kept.getexif()[0x010F] == "camera"
        assert kept.getexif().get(0x0112, 1) == 1
        assert not bare.getexif()


def test_a_batch_goes_on_after_a_bad_file(run, photo, tmp_path):
    photo("in/a.png")
    photo("in/deep/c.jpg", (5, 5))
    whole = photo("in/b.png", (40, 40)).read_bytes()
    (tmp_path / "in/b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/d.png").write_bytes(b"no image at all")
    out = tmp_path / "out"
    status, text, errors = run(tmp_path / "in", tmp_path / "gone.png", "--output", out)
    assert status == 1
    assert text.splitlines()[-1] == "2 written, 0 skipped, 3 failed"
    lines = errors.splitlines()
    assert len(lines) == 3
    for line, name in zip(lines, ("in/b.png", "in/d.png", "gone.png"), strict=True):
        assert line.startswith(f"tfcorr: {tmp_path / name}: ")
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == ["a.png", "deep/c.jpg"]

    # The bad ones repaired, the command again: only they are left to do.
    for name in ("in/b.png", "in/d.png"):
        (tmp_path / name).write_bytes(whole)
    status, text, _ = run(tmp_path / "in", "--output", out)
    assert status == 0
    assert text.splitlines()[-1] == "2 written, 2 skipped, 0 failed"


def test_json(run, photo, tmp_path):
    photo("in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"")
    reference = photo("r.png", (40, 40), seed=1)
    status, text, errors = run(
        tmp_path / "in", "--reference", reference, "--output", tmp_path / "out", "--json"
    )
    assert status == 1
    document = json.loads(text)
    good, bad = document["results"]
    assert document["model"] == "tiny"
    assert (good["status"], good["size"], good["input_size"]) == ("written", [36, 28], [9, 7])
    assert good["references"] == [str(reference)]
    assert 0 <= good["used_share"] <= 1
    assert bad["status"] == "failed" and "b.png" in bad["error"]
    assert "b.png" in errors


def test_references_from_a_folder(run, photo, tmp_path):
    target = photo("pool/right.png", (96, 72), seed=3)
    photo("pool/wrong.png", (96, 72), seed=4)
    (tmp_path / "pool/broken.png").write_bytes(b"x")
    with Image.open(target) as image:
        image = image.resize((24, 18), Image.Resampling.BICUBIC).resize((96, 72), Image.Resampling.BICUBIC)
        image.save(target)
        image.resize((24, 18), Image.Resampling.BICUBIC).save(tmp_path / "pool/self.png")
    out = tmp_path / "out.png"
    status, text, errors = run(
        tmp_path / "pool/self.png", "--reference-dir", tmp_path / "pool", "--output", out, "--json"
    )
    assert status == 0
    chosen = [Path(path).name for path in json.loads(text)["results"][0]["references"]]
    assert chosen[0] == "right.png"
    assert "self.png" not in chosen  # an input is not its own reference
    assert "broken.png" in errors and "left out" in errors


def test_references_that_cannot_be_used(run, photo, tmp_path):
    small, out = photo("s.png"), tmp_path / "out.png"
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    status, _, errors = run(small, "--reference", tmp_path / "gone.jpg", "--output", out)
    assert status == 1 and errors == f"tfcorr: {tmp_path / 'gone.jpg'}: does not exist (--reference)\n"
    status, _, errors = run(small, "--reference", tmp_path / "bad.jpg", "--output", out)
    assert status == 1 and errors.startswith(f"tfcorr: {tmp_path / 'bad.jpg'}: ") and errors.count("\n") == 1
    status, _, errors = run(small, "--reference", tmp_path / "empty", "--output", out)
    assert status == 2 and "is a folder; --reference-dir" in errors
    sharp = photo("pool/sharp.png", (40, 40))
    for arguments in (["--reference", sharp], ["--reference-dir", sharp.parent]):
        status, _, errors = run(small, *arguments, "--output", sharp, "--overwrite")
        assert status == 2 and "sharp.png is a reference and would be written to" in errors
    assert size(sharp) == (40, 40)
    status, _, errors = run(small, "--reference-dir", small, "--output", out)
    assert status == 2 and "not a folder" in errors
    status, _, errors = run(small, "--reference-dir", tmp_path / "empty", "--output", out)
    assert status == 1 and "no image file" in errors
    assert not out.exists()


def test_outputs_that_cannot_be_written(run, photo, tmp_path):
    small = photo("s.png")
    (tmp_path / "file").write_text("")
    status, _, errors = run(small, "--output", tmp_path / "file/out.png")
    assert status == 1 and errors.startswith("tfcorr: ") and errors.count("\n") == 1
    status, _, errors = run(small, "--output", tmp_path / "o.png", "--figure", small)
    assert status == 2 and "is an input or an output" in errors
    status, _, errors = run(
        small, tmp_path / "t.png", "--output", tmp_path / "o", "--figure", tmp_path / "f.png"
    )
    assert status == 2 and "need a folder for their figures" in errors


def test_interrupted_writing_leaves_nothing(run, photo, tmp_path, monkeypatch):
    small, out = photo("s.png"), tmp_path / "out"

    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stops)
    status, _, errors = run(small, "--output", out / "a.png")
    assert (status, errors) == (130, "tfcorr: interrupted\n")
    assert list(out.iterdir()) == []


def test_out_of_memory_is_told(run, loaded, photo, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise MemoryError("out of memory even with the smallest tiles; smaller references may help")

    monkeypatch.setattr(loaded, "upscale", fails)
    small = photo("s.png")
    status, _, errors = run(small, "--output", tmp_path / "o.png")
    assert status == 1
    assert errors.startswith(f"tfcorr: {small}: out of memory even with the smallest tiles")


def test_a_batch_goes_on_after_an_unforeseen_error(run, loaded, photo, tmp_path, monkeypatch, capsys):
    upscale = loaded.upscale

    def fails_once(*arguments, **options):
        monkeypatch.setattr(loaded, "upscale", upscale)
        raise ZeroDivisionError("of no use")

    monkeypatch.setattr(loaded, "upscale", fails_once)
    first, second = photo("a.png"), photo("b.png")
    status, text, errors = run(first, second, "--output", tmp_path / "out")
    assert status == 1
    assert errors == f"tfcorr: {first}: ZeroDivisionError: of no use (TFCORR_DEBUG=1 shows where)\n"
    assert text.splitlines()[-1] == "1 written, 0 skipped, 1 failed"
    monkeypatch.setattr(loaded, "upscale", fails_once)
    monkeypatch.setenv("TFCORR_DEBUG", "1")
    assert main(["super-resolve", str(first), "--output", str(tmp_path / "c.png")]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_whole_command(tiny_model_folder, photo, tmp_path):
    """In a process of its own: the model is loaded, and standard error stays clean."""
    small, reference = photo("s.png"), photo("r.png", (40, 40))
    arguments = ["super-resolve", small, "--reference", reference, "--output", tmp_path / "o.png"]
    finished = python(
        "-m",
        "tfcorr",
        *map(str, arguments),
        "--model",
        str(tiny_model_folder),
        "--threads",
        "1",
        "--memory",
        "1GB",
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "r.png used for" in finished.stdout
    assert size(tmp_path / "o.png") == (36, 28)


# Models ---------------------------------------------------------------------------------


def test_models(tiny_model_folder, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "saved_models"
    monkeypatch.setattr(pretrained, "models_dirs", lambda: [folder])
    assert main(["models"]) == 0
    assert "no model is installed" in capsys.readouterr().out
    shutil.copytree(tiny_model_folder, folder / "tiny")
    assert main(["models"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "job", "size", "licence", "checksums", "quality"]
    assert row.split()[:2] == ["tiny", "super-resolution"]
    assert "Apache-2.0" in row and " ok " in row and "psnr_y 12.3" in row
    assert main(["models", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["checksums"] == {"model.weights.h5": "ok"}

    (folder / "tiny/model.weights.h5").write_bytes(b"other")
    (folder / "broken").mkdir()
    (folder / "broken/card.json").write_text("{")
    assert main(["models"]) == 1
    text = capsys.readouterr().out
    assert "model.weights.h5 mismatch" in text
    assert "unusable: " in text and "not valid JSON" in text
    arguments = ["super-resolve", str(tmp_path), "--output", str(tmp_path / "o"), "--model", "tiny"]
    (tmp_path / "a.png").write_bytes(b"")
    assert main(arguments) == 1
    assert "its SHA-256 is" in capsys.readouterr().err
