"""Contact sheets and the threshold of confidence, with a small random model."""

import numpy as np
import pytest
from PIL import Image

from tfcorr.config import PairSource
from tfcorr.refsr.evaluation import Contender, ScoreCache, evaluate
from tfcorr.refsr.figures import ContactSheets
from tfcorr.refsr.layouts import find_cases
from tfcorr.refsr.photos import DataError
from tfcorr.refsr.predictor import SuperResolver
from tfcorr.refsr.threshold import unrelated_threshold


@pytest.fixture
def cases(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for number in range(2):
            pixels = np.kron(rng.integers(0, 256, (12, 14, 3)), np.ones((4, 4, 1))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{name}{number}.png")
    (tmp_path / "list.csv").write_text("scene,input,reference\na,a0.png,a1.png\nb,b0.png,b1.png\n")
    return find_cases(PairSource(csv=str(tmp_path / "list.csv")), None, str(tmp_path))


@pytest.fixture(scope="module")
def resolver(tiny_model_folder):
    return SuperResolver.from_pretrained(tiny_model_folder, memory=10**9)


def test_contact_sheets(cases, resolver, tmp_path):
    contender = Contender("my model", resolver, ("true", "none"), ScoreCache(tmp_path / "scores.jsonl", "k"))
    plain = evaluate([contender], cases)
    # The scores are known; the sheets are drawn all the same, once.
    sheets = ContactSheets(tmp_path / "sheets")
    again = Contender("my model", resolver, ("true", "none"), ScoreCache(tmp_path / "scores.jsonl", "k"))
    drawn = evaluate([again], cases, figures=sheets)
    for kind in ("true", "none"):
        assert drawn["summary"][kind]["psnr_y"] == pytest.approx(plain["summary"][kind]["psnr_y"], abs=1e-6)
    names = sorted(path.name for path in sheets.folder.iterdir())
    assert names == [
        "a_a0_my-model_none.png",
        "a_a0_my-model_true.png",
        "b_b0_my-model_none.png",
        "b_b0_my-model_true.png",
    ]
    # Four panels in a row: input, result, truth, reference.
    assert np.asarray(Image.open(sheets.path(cases[0], contender, "true"))).shape[1] > 4 * 480
    assert not sheets.wants(cases[0], contender, "true") and sheets.wants(cases[0], contender, "unrelated")

    class Plain:
        def upscale(self, low_res, reference):
            raise AssertionError

    assert not sheets.wants(cases[0], Contender("plain", Plain()), "unrelated")


def test_unrelated_threshold(cases, resolver):
    threshold = unrelated_threshold(resolver.model, cases)
    # The same by hand, from the confidence of whole results.
    scores = []
    for case in cases:
        image = np.asarray(Image.open(case.input))
        small = np.asarray(Image.fromarray(image).resize((14, 12), Image.Resampling.BICUBIC))
        other = np.asarray(Image.open(case.references["unrelated"][0]))
        details = resolver.upscale(small, other, details=True)
        scores.append(details.confidence[1:-1, 1:-1].ravel())
    assert threshold == pytest.approx(np.quantile(np.concatenate(scores), 0.95), abs=0.01)
    assert unrelated_threshold(resolver.model, cases, share=0.5) < threshold
    for case in cases:
        case.input.unlink()
    with pytest.raises(DataError, match="none of the 2 images can be read"):
        unrelated_threshold(resolver.model, cases)
