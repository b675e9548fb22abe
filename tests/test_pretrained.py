import json
import shutil

import h5py
import numpy as np
import pytest

import tfcorr.pretrained as pretrained
from tfcorr.pretrained import (
    ModelError,
    available_models,
    file_states,
    find_model,
    load_super_resolution,
    quality_summary,
    read_card,
    sha256_of,
    verify,
)


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    """A copy of the model folder that a test may damage."""
    return shutil.copytree(tiny_model_folder, tmp_path / "saved_models" / "tiny")


@pytest.fixture
def installed(folder, monkeypatch):
    """The copy's parent stands in for the folder of the models that ship."""
    monkeypatch.setattr(pretrained, "models_dirs", lambda: [folder.parent])
    return folder


def edit(folder, **changes):
    card = json.loads((folder / "card.json").read_text())
    card.update(changes)
    (folder / "card.json").write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


def test_a_good_folder_loads(folder):
    model, card = load_super_resolution(folder)
    assert card.name == "tiny"
    assert card.confidence_threshold == 0.9
    assert card.size == (folder / "model.weights.h5").stat().st_size
    assert file_states(card) == {"model.weights.h5": "ok"}
    assert model.architecture["restorer"]["features"] == 8
    with pytest.raises(ValueError, match="float64"):
        load_super_resolution(folder, precision="float64")


def test_changed_weights_are_refused_by_name(folder):
    weights = folder / "model.weights.h5"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(
        ModelError, match=r"model\.weights\.h5: its SHA-256 is [0-9a-f]{64}, but the model's card"
    ):
        load_super_resolution(folder)
    assert file_states(read_card(folder)) == {"model.weights.h5": "mismatch"}


def test_missing_weights_are_named(folder):
    (folder / "model.weights.h5").unlink()
    with pytest.raises(ModelError, match=r"model\.weights\.h5: missing"):
        verify(read_card(folder))
    assert file_states(read_card(folder)) == {"model.weights.h5": "missing"}


def test_weights_have_to_be_in_the_checksums(folder):
    edit(folder, checksums={})
    with pytest.raises(ModelError, match=r"does not name model\.weights\.h5"):
        load_super_resolution(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"name": "tiny"', "not valid JSON: .* line 1 column"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "not a model card|not valid JSON"),
        ("{}", "field 'checksums' is missing"),
        ('{"name": "a", "name": "b"}', "has the key 'name' twice"),
        ('{"checksums": {"a": "b", "a": "c"}}', "has the key 'a' twice"),
        ('{"name": ' + "9" * 5000 + "}", "cannot be read: Exceeds the limit"),
        ('{"name":' * 50_000, "nested too deeply"),
    ],
)
def test_cards_that_are_no_cards(folder, text, message):
    (folder / "card.json").write_text(text)
    with pytest.raises(ModelError, match=message) as error:
        read_card(folder)
    assert str(folder / "card.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_card_that_is_no_text(folder):
    (folder / "card.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ModelError, match="not a text file in UTF-8"):
        read_card(folder)
    (folder / "card.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(ModelError, match="2097152 bytes long"):
        read_card(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "'name' is 3, expected a text"),
        ({"job": None}, "field 'job' is missing"),
        ({"architecture": "light"}, "'architecture' is \"light\", expected an object"),
        ({"confidence_threshold": 1.5}, "'confidence_threshold' is 1.5"),
        ({"confidence_threshold": True}, "'confidence_threshold' is true"),
        ({"registration": 1}, "'registration' is 1, expected true or false"),
        ({"confidence_threshold": float("nan")}, "'confidence_threshold' is nan"),
        ({"default": 1}, "'default' is 1, expected true or false"),
        ({"checksums": {"../weights.h5": "0" * 64}}, "names '../weights.h5', expected the name of a file"),
        ({"checksums": {"model.weights.h5": "abc"}}, "no SHA-256"),
        *[
            ({"checksums": {name: "0" * 64}}, "expected the name of a file in this folder")
            for name in ("", "..", "/etc/passwd", "a/b", "..\\b", "a\0b", "a\nb", "\x1b[2J")
        ],
        ({"confidence_threshold": 10**400}, "'confidence_threshold' is 1000"),
        ({"name": "two\nlines"}, "'name' has control characters"),
        ({"licence": "\x1b]0;title\x07"}, "'licence' has control characters"),
        ({"job": "\ud800"}, "'job' has control characters"),
        ({"architecture": {"dtype": {"class_name": "Lambda", "module": "os"}}}, "has the key 'class_name'"),
        ({"architecture": {"backbone": {"weights": "imagenet"}}}, "has the key 'weights'"),
        ({"architecture": {"a b": 1}}, "has the key 'a b'"),
        ({"architecture": {"backbone": {"name": "keras_cv:hf://someone/model"}}}, "names 'keras_cv:hf"),
        ({"architecture": {"backbone": {"name": "../../model"}}}, "names '../../model'"),
        ({"architecture": {"restorer": {"features": 1 << 40}}}, "has a number beyond 1,048,576"),
        ({"architecture": {"restorer": {"features": 10**400}}}, "has a number beyond 1,048,576"),
        ({"architecture": {"restorer": {"features": float("nan")}}}, "or one that is none"),
        ({"architecture": {"blocks": [[1] * 50] * 50}}, "has more than 2000 parts"),
    ],
)
def test_fields_of_the_wrong_kind(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(ModelError, match=message):
        read_card(folder)


def test_weights_that_are_none_are_refused_though_the_checksum_agrees(folder):
    """Whoever exchanges the weights exchanges the card as well: then the file itself has to hold."""
    weights = folder / "model.weights.h5"
    outside = folder.parent / "outside.h5"
    shutil.copy(weights, outside)
    for fill, words in (
        (lambda file: file.__setitem__("layers", h5py.ExternalLink("../outside.h5", "/layers")), "a link"),
        (lambda file: file.create_dataset("a", (1 << 40,), "f4", chunks=(1024,)), "more bytes than the file"),
    ):
        with h5py.File(weights, "w") as file:
            fill(file)
        edit(folder, checksums={"model.weights.h5": sha256_of(weights)})
        with pytest.raises(ModelError, match=rf"model\.weights\.h5: no weights of .*{words}") as error:
            load_super_resolution(folder)
        assert "\n" not in str(error.value)
    weights.write_bytes(b"cos\nsystem\n(S'touch witness'\ntR.")
    edit(folder, checksums={"model.weights.h5": sha256_of(weights)})
    with pytest.raises(ModelError, match="not an HDF5 file"):
        load_super_resolution(folder)


def test_architecture_that_cannot_be_built(folder):
    edit(folder, architecture={"restorer": "huge"})
    with pytest.raises(ModelError, match="'architecture' cannot be built: unknown restorer 'huge'"):
        load_super_resolution(folder)
    edit(folder, architecture={"restorer": "compact"})
    with pytest.raises(ModelError, match=r"model\.weights\.h5: no weights of the architecture"):
        load_super_resolution(folder)


def test_finding(installed, tmp_path, monkeypatch):
    assert find_model("tiny").folder == installed
    assert find_model(installed).folder == installed
    assert find_model(str(installed)).folder == installed
    assert find_model().folder == installed
    with pytest.raises(ModelError, match="no model is called 'huge'; there is: tiny"):
        find_model("huge")
    with pytest.raises(ModelError, match="a model for super-resolution, expected one for matching"):
        find_model("tiny", job="matching")
    with pytest.raises(ModelError, match="not a model folder"):
        find_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"card\.json is missing"):
        find_model(tmp_path / "empty")

    second = shutil.copytree(installed, installed.parent / "second")
    with pytest.raises(ModelError, match="name the model for super-resolution: second, tiny"):
        find_model()
    edit(second, default=True)
    assert find_model().folder == second
    cards, problems = available_models()
    assert [card.folder.name for card in cards] == ["second", "tiny"]
    assert problems == []
    (second / "card.json").write_text("{")
    cards, problems = available_models()
    assert [card.folder.name for card in cards] == ["tiny"]
    assert "second" in problems[0]

    monkeypatch.setattr(pretrained, "models_dirs", lambda: [tmp_path / "empty"])
    with pytest.raises(ModelError, match="no model for super-resolution is installed"):
        find_model()


def test_quality_on_one_line():
    metrics = {"validation": {"psnr_y": 30.9123, "ok": True, "ssim_y": 0.87}, "note": "x", "a": 1, "b": 2}
    assert quality_summary(metrics) == "validation psnr_y 30.91, validation ssim_y 0.87, a 1"
    assert quality_summary({}) == ""


@pytest.mark.parametrize("card", available_models()[0], ids=lambda card: card.name)
def test_models_that_ship_are_whole(card):
    verify(card)
    if card.job in (pretrained.CORRESPONDENCE, pretrained.SINGLE_IMAGE):
        return  # Parts and yardsticks, which nothing serves by themselves.
    # The ready-made export is one of these very weights.
    export = card.folder / "saved_model"
    exported = json.loads((export / "assets.extra" / "export.json").read_text())
    assert (export / "saved_model.pb").is_file()
    assert exported["checksums"] == card.checksums
    assert (exported["variant"], exported["licence"]) == ("portable", card.licence)


@pytest.mark.slow
def test_ready_made_exports_compute_what_the_predictors_do():
    from tfcorr import SemanticMatcher, SuperResolver
    from tfcorr.serving.export import trial_image
    from tfcorr.serving.runtimes import load

    names = {card.name: card.folder / "saved_model" for card in available_models()[0]}
    one, other = trial_image(40, 56, seed=0), trial_image(160, 200, seed=1)
    for name in ("c2-guided", "c2-compact"):
        upscaled = SuperResolver.from_pretrained(name).upscale(one, other)
        found = load(names[name])(lr=one, reference=other)["image"]
        np.testing.assert_allclose(found, upscaled, atol=1e-3)
    # 8 bits, and one picture moved: a matcher of what has no match turns the least rounding into pixels.
    levels = np.rint(255 * other).astype(np.uint8)
    source, target = levels[20:], levels[:, 16:]
    flow = SemanticMatcher.from_pretrained("pmd-birds").match(source, target)
    found = load(names["pmd-birds"])(source=source / np.float32(255), target=target / np.float32(255))["flow"]
    assert np.median(np.abs(found - flow)) < 0.01
    assert np.abs(found - flow).max() < 1
