"""Names that data join with a folder: what leads out of it is refused, whatever it is read from."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from tfcorr.cli.batch import image_files, plan_jobs
from tfcorr.config import PairSource
from tfcorr.config.semantic import ImageSet, PairSet
from tfcorr.errors import TfcorrError, UsageError
from tfcorr.paths import DataFolder, PathError, real_path
from tfcorr.refsr.layouts import find_cases
from tfcorr.refsr.photos import find_pairs
from tfcorr.semantic import datasets
from tfcorr.training.photos import DataError

OUTSIDE = {
    "up": "../secret.png",
    "up and down": "a/../../secret.png",
    "up inside": "a/../b.png",
    "up alone": "..",
    "absolute": "/etc/passwd",
    "device": "/dev/zero",
    "windows": "..\\secret.png",
    "drive": "C:/secret.png",
    "share": "\\\\server\\share.png",
    "NUL": "a.png\0.txt",
    "line break": "a\nb.png",
    "escape": "\x1b[2Ja.png",
    "empty": "",
    "blank": "  ",
    "link to a file": "link.png",
    "link to a folder": "out/secret.png",
    "link to a link": "chain.png",
}


@pytest.fixture
def root(tmp_path):
    """A folder with links out of it, and one with a link inside."""
    (tmp_path / "data" / "a").mkdir(parents=True)
    for place in ("secret.png", "data/inside.png", "data/a/b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / place)
    for name, target in {
        "link.png": "../secret.png",
        "out": "..",
        "chain.png": "out/secret.png",
        "good.png": "a/b.png",
    }.items():
        (tmp_path / "data" / name).symlink_to(target)
    return tmp_path / "data"


@pytest.mark.parametrize("name", OUTSIDE.values(), ids=OUTSIDE)
def test_names_that_lead_out(root, name):
    with pytest.raises(PathError) as caught:
        DataFolder(root) / name
    message = str(caught.value)
    assert message.isprintable() and repr(str(root)) in message and len(message) < 500
    assert isinstance(caught.value, TfcorrError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "name", ["inside.png", "a/b.png", "./a//b.png", "good.png", "not there/x.png", "..a/b..png", "~"]
)
def test_names_that_do_not(root, name):
    assert DataFolder(root) / name == root / name


def test_the_folder_itself_may_be_a_link(root, tmp_path):
    (tmp_path / "shortcut").symlink_to(root)
    assert DataFolder(tmp_path / "shortcut") / "a/b.png" == tmp_path / "shortcut/a/b.png"
    assert DataFolder("/") / "etc/passwd"
    with pytest.raises(PathError, match="through a link"):
        DataFolder(tmp_path / "shortcut") / "link.png"
    # A name that merely begins like the folder is another one.
    (tmp_path / "data2").mkdir()
    (root / "neighbour").symlink_to("../data2")
    with pytest.raises(PathError, match="through a link"):
        DataFolder(root) / "neighbour/x"


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert real_path(tmp_path / "a").parent == tmp_path.resolve()
    assert DataFolder(tmp_path) / "a" == tmp_path / "a"


# Every list that is read -------------------------------------------------------------------

# What a CSV cell can hold; NUL is no text for the csv module.
LISTED = {name: value for name, value in OUTSIDE.items() if name != "NUL"}


def csv_of(folder, **columns):
    """A CSV file of one row."""
    cells = ['"' + value.replace('"', '""') + '"' for value in columns.values()]
    (folder / "list.csv").write_text(f"{','.join(columns)}\n{','.join(cells)}\n", newline="")


@pytest.mark.parametrize("column", ["input", "reference"])
@pytest.mark.parametrize("name", LISTED.values(), ids=LISTED)
def test_lists_of_super_resolution(root, column, name):
    row = {"input": "inside.png", "reference": "a/b.png"}
    csv_of(root, **row)
    source = PairSource(csv="list.csv")
    assert find_pairs([source], str(root))[0].input == root / "inside.png"
    csv_of(root, **{**row, column: name})
    with pytest.raises(DataError, match=r"list\.csv, line 2: ") as caught:
        find_pairs([source], str(root))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", LISTED.values(), ids=LISTED)
def test_parts_of_paths_and_unrelated_photos(root, name):
    pattern = {"input_path": "a/{input}", "reference_path": "a/{reference}"}
    csv_of(root, input="b.png", reference="b.png", unrelated=name)
    source = PairSource(csv="list.csv", **pattern)
    assert find_cases(source, None, str(root))
    if name.strip():
        with pytest.raises(DataError, match=r"list\.csv: "):
            find_cases(source, None, str(root), unrelated_path="{unrelated}")
    csv_of(root, scene=name, input="b.png", reference="b.png")
    pattern = {"input_path": "{scene}/b.png", "reference_path": "{scene}/b.png"}
    if name not in ("", "  ", "link.png", "chain.png"):
        with pytest.raises(DataError):
            find_pairs([PairSource(csv="list.csv", **pattern)], str(root))


@pytest.mark.parametrize("layout", ["csv", "pf_pascal", "pf_willow"])
@pytest.mark.parametrize("name", LISTED.values(), ids=LISTED)
def test_lists_of_semantic_matching(root, layout, name):
    row = {
        "csv": {"source": "inside.png", "target": "a/b.png"},
        "pf_pascal": {"source_image": "inside.png", "target_image": "a/b.png", "class": "1"},
        "pf_willow": {
            "imageA": "inside.png",
            "imageB": "a/b.png",
            **{f"{axis}{side}{n}": "1" for axis in "XY" for side in "AB" for n in range(1, 11)},
        },
    }[layout]
    pairs = PairSet(layout, "", "list.csv")
    for column in list(row)[:2]:
        csv_of(root, **row)
        assert datasets.find_pairs(pairs, str(root))[0].source == root / "inside.png"
        csv_of(root, **{**row, column: name})
        with pytest.raises(DataError, match=r"list\.csv, line 2: "):
            datasets.find_pairs(pairs, str(root))


@pytest.mark.parametrize("name", LISTED.values(), ids=LISTED)
def test_lists_of_images(root, name):
    csv_of(root, image="inside.png")
    assert datasets.find_image_set(ImageSet(list="list.csv"), str(root)) == [root / "inside.png"]
    csv_of(root, image=name)
    with pytest.raises(DataError, match=r"list\.csv, line 2: "):
        datasets.find_image_set(ImageSet(list="list.csv"), str(root))


@pytest.mark.parametrize("key", ["category", "src_imname", "trg_imname"])
@pytest.mark.parametrize("name", ["..", "../..", "a\\b", "a\0b"])
def test_annotations_of_spair(root, key, name):
    (root / "PairAnnotation" / "trn").mkdir(parents=True)
    row = {
        "category": "cat",
        "src_imname": "1.jpg",
        "src_kps": [[1, 1]],
        "src_bndbox": [0, 0, 5, 5],
        "trg_imname": "2.jpg",
        "trg_kps": [[2, 2]],
        "trg_bndbox": [0, 0, 5, 5],
    }
    path = root / "PairAnnotation" / "trn" / "1.json"
    path.write_text(json.dumps(row))
    assert datasets.find_pairs(PairSet("spair"), str(root))[0].source == root / "JPEGImages/cat/1.jpg"
    path.write_text(json.dumps({**row, key: name}))
    with pytest.raises(DataError, match=r"1\.json: not an annotation"):
        datasets.find_pairs(PairSet("spair"), str(root))
    for text in ("[" * 100_000, '{"a": ' * 100_000, '{"category": 1, "category": 2}', "9" * 10_000):
        path.write_text(text)
        with pytest.raises(DataError, match=r"1\.json: "):
            datasets.find_pairs(PairSet("spair"), str(root))


# Batches ----------------------------------------------------------------------------------


def test_outputs_of_a_batch_stay_in_their_folder(root, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=r"results/a/b\.png would lie elsewhere, through a link"):
        plan_jobs([str(root)], str(tmp_path / "results"))
    (tmp_path / "results" / "a").unlink()
    places = [job.target for job in plan_jobs([str(root)], str(tmp_path / "results"))]
    assert tmp_path / "results/a/b.png" in places
    assert all(place.is_relative_to(tmp_path / "results") and ".." not in place.parts for place in places)
    # A link that stands in an output's place.
    (tmp_path / "results" / "inside.png").symlink_to(tmp_path / "new.png")
    with pytest.raises(UsageError, match=r"inside\.png would lie elsewhere"):
        plan_jobs([str(root)], str(tmp_path / "results"))


def test_inputs_named_with_dots_go_into_the_folder_all_the_same(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root / "a")
    for given in ("../inside.png", str(root / "a" / ".." / "inside.png")):
        (job,) = plan_jobs([given], f"{tmp_path / 'results'}/")
        assert job.target == tmp_path / "results/inside.png"


def test_folders_with_links_in_circles(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "self").symlink_to(".")
    os.mkfifo(folder / "pipe.png")
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(folder / "good.png")
    # Links to folders are not followed, so that nothing is found twice.
    assert [path.name for path in image_files(folder)] == ["circle.png", "good.png", "pipe.png"]
    assert len(plan_jobs([str(folder)], str(tmp_path / "out"))) == 3
