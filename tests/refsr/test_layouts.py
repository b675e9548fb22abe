"""Published layouts of test sets, on small made-up folders."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tfcorr.config import PairSource, PhotoRule, PublishedSet
from tfcorr.refsr.layouts import check_references, find_cases, list_digest
from tfcorr.refsr.photos import DataError, excluded


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def cases_of(layout, folder, **arguments):
    limit = arguments.pop("limit", None)
    return find_cases(
        None, PublishedSet(layout=layout, folder=folder.name, **arguments), str(folder.parent), limit=limit
    )


def names(case, name):
    return [f"{path.parent.name}/{path.name}" for path in case.references[name]]


def test_cufed5(tmp_path):
    folder = tmp_path / "CUFED5"
    touch(*(folder / f"{number}_{level}.png" for number in ("000", "013") for level in range(6)))
    (folder / "013_4.png").unlink()
    first, second = cases_of("cufed5", folder)
    assert (first.scene, first.input.name) == ("000", "000_0.png")
    # As published, the first reference; each level, and all five together.
    assert names(first, "true") == names(first, "level1") == ["CUFED5/000_1.png"]
    assert names(first, "level5") == ["CUFED5/000_5.png"]
    assert names(first, "all") == [f"CUFED5/000_{level}.png" for level in range(1, 6)]
    assert names(first, "none") == []
    # A missing file stays in the list, to be named when it is read.
    assert not second.references["level4"][0].exists() and len(second.references["all"]) == 5
    assert names(second, "unrelated") == ["CUFED5/000_1.png"]
    with pytest.raises(DataError, match=r"no images of this layout there, expected NNN_0\.png"):
        cases_of("cufed5", tmp_path)


def test_sun80(tmp_path):
    folder = tmp_path / "Sun80"
    for image in ("a.jpg", "b.jpg", "c.jpg"):
        touch(folder / "Sun_Hays_SR_groundtruth" / image)
        matches = folder / "Sun_Hays_SR_scenematches" / image
        touch(*(matches / f"{number:02d}.jpg" for number in range(20)))
    cases = cases_of("sun80", folder)
    assert [len(case.references["all"]) for case in cases] == [20, 20, 20]
    assert all(case.references["true"][0] in case.references["all"] for case in cases)
    assert [names(case, "true") for case in cases_of("sun80", folder, choice="first")] == [
        ["a.jpg/00.jpg"],
        ["b.jpg/00.jpg"],
        ["c.jpg/00.jpg"],
    ]
    # The same from the same seed; what is drawn for c does not depend on a's folder.
    assert cases == cases_of("sun80", folder)
    assert [c.references for c in cases] != [c.references for c in cases_of("sun80", folder, seed=3)]
    shutil.rmtree(folder / "Sun_Hays_SR_scenematches" / "a.jpg")
    touch(folder / "Sun_Hays_SR_scenematches" / "a.jpg" / "x.jpg")
    assert cases_of("sun80", folder)[2].references["true"] == cases[2].references["true"]
    shutil.rmtree(folder / "Sun_Hays_SR_scenematches" / "b.jpg")
    with pytest.raises(DataError, match=r"b\.jpg: no images there, expected the scene matches of b\.jpg"):
        cases_of("sun80", folder)


def test_manga109(tmp_path):
    folder = tmp_path / "Manga109"
    touch(*(folder / f"{number}.png" for number in range(9)))
    cases = cases_of("manga109", folder)
    for case in cases:
        (reference,) = case.references["true"]
        assert reference != case.input and reference.parent == folder
    assert len({case.references["true"] for case in cases}) > 3
    assert cases == cases_of("manga109", folder)
    assert cases != cases_of("manga109", folder, seed=1)
    assert cases[:4] == cases_of("manga109", folder, limit=4)
    # A table belongs to one list.
    assert list_digest(cases) == list_digest(cases_of("manga109", folder))
    assert list_digest(cases) != list_digest(cases_of("manga109", folder, seed=1))


def test_wr_sr(tmp_path):
    folder = tmp_path / "WR-SR"
    touch(folder / "input" / "000.png", folder / "ref" / "000_ref.png")
    touch(folder / "input" / "001.png", folder / "ref" / "001_ref.jpg")
    assert [names(case, "true") for case in cases_of("wr_sr", folder)] == [
        ["ref/000_ref.png"],
        ["ref/001_ref.jpg"],
    ]


def test_images_without_references(tmp_path):
    folder = tmp_path / "Urban100"
    touch(*(folder / f"img_{n:03d}_SRF_4_{kind}.png" for n in (1, 2) for kind in ("HR", "LR")))
    cases = cases_of("images", folder)
    assert [case.input.name for case in cases] == ["img_001_SRF_4_HR.png", "img_002_SRF_4_HR.png"]
    assert names(cases[0], "none") == []
    assert names(cases[0], "unrelated") == ["Urban100/img_002_SRF_4_HR.png"]
    with pytest.raises(DataError, match=r"'true' is not there for img_001_SRF_4_HR\.png"):
        check_references(cases, ["none", "true"])
    plain = tmp_path / "set5"
    touch(plain / "baby.png")
    (case,) = cases_of("images", plain)
    assert "unrelated" not in case.references


def test_lists(tmp_path):
    touch(*(tmp_path / scene / f"{n}.png" for scene in ("church", "harbour") for n in range(3)))
    (tmp_path / "list.csv").write_text(
        "scene,input,reference\nchurch,0.png,1.png\nchurch,0.png,2.png\nharbour,0.png,2.png\n"
    )
    source = PairSource(csv="list.csv", input_path="{scene}/{input}", reference_path="{scene}/{reference}")
    cases = find_cases(source, None, str(tmp_path), unrelated_path="{unrelated}")
    # Without a column of unrelated photos, the reference of another scene's image.
    assert [names(case, "unrelated") for case in cases] == [
        ["harbour/2.png"],
        ["harbour/2.png"],
        ["church/1.png"],
    ]
    assert find_cases(source, None, str(tmp_path), limit=1) == cases[:1]
    some = find_cases(replace(source, where={"scene": ("harbour",)}), None, str(tmp_path))
    assert [case.scene for case in some] == ["harbour"]
    with pytest.raises(DataError, match="register is for training"):
        find_cases(replace(source, register=True), None, str(tmp_path))
    for pairs, test_set in ((None, None), (source, PublishedSet(layout="images", folder="church"))):
        with pytest.raises(DataError, match="expected either pairs or test_set"):
            find_cases(pairs, test_set, str(tmp_path))


def test_the_list_that_ships():
    source = PairSource(
        csv="refsr/lists/albums_test.csv",
        input_path="albums/{scene}/{input}",
        reference_path="albums/{scene}/{reference}",
    )
    cases = find_cases(source, None, "/data", unrelated_path="albums/{unrelated}")
    assert len(cases) == 78
    held_out = [PhotoRule("et"), PhotoRule("nle_tower"), PhotoRule("lund", ("026", "027", "028"))]
    for case in cases:
        (reference,), (other,) = case.references["true"], case.references["unrelated"]
        assert case.input != reference
        for photo in (case.input, reference, other):
            assert excluded(photo.parent.name, photo, held_out)
        assert other.parent.name != case.scene
    levels = [case.columns["level"] for case in cases]
    assert [levels.count(f"L{number}") for number in range(1, 5)] == [26, 16, 16, 20]
    # A published table belongs to one list: scenes and names of files count, levels do not.
    assert list_digest(cases, ["true", "unrelated", "none"]) == "d6d30d4d183a"
