"""tfcorr bench pipeline on tiny networks: that the peers compute the same, and what it measures."""

import itertools
import json

import numpy as np
import pytest

from tfcorr import cli
from tfcorr.bench import pipeline, pipeline_work, reports
from tfcorr.bench.networks import make_images, make_model, pipeline_flops
from tfcorr.bench.pipeline import CUSTOM, KEPT, PORTABLE, TWIN, doubling_sizes
from tfcorr.ops import implementations, library
from tfcorr.refsr.model import C2Matching

needs_custom = pytest.mark.skipif(
    implementations()["match_patches"]["implementation"] != "custom", reason="no compiled op"
)


def strong(architecture, seed=3):
    """A small model that uses its reference strongly."""
    model = C2Matching.from_architecture(architecture)
    rng = np.random.default_rng(seed)
    for weight in model.restorer.weights:
        fan_in = float(np.prod(weight.shape[:-1]))
        weight.assign(rng.normal(0, max(fan_in, 1.0) ** -0.5, weight.shape))
    return model


@pytest.mark.parametrize("source", ["matcher", "vgg19"])
@pytest.mark.parametrize("context", ["unaligned", "matched"])
def test_the_twin_computes_the_same(source, context):
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from tfcorr.bench.twin import TorchTwin

    sizes = {
        "features": 8,
        "content_blocks": 1,
        "blocks": [1, 2, 1],
        "offset_widths": [8, 12, 8],
        "aggregated_widths": [12, 8, 16],
        "deform_groups": 2,
        "context": context,
    }
    model = strong({"restorer": sizes, "reference_features": source})
    low_res, reference = make_images(9, 12)
    inputs = {
        name: np.float32(image[None]) / np.float32(255)
        for name, image in (("lr", low_res), ("reference", reference))
    }
    with library.using("reference"):
        expected = np.asarray(model(inputs))[0]
    other = model({**inputs, "reference": inputs["reference"][:, ::-1]})
    assert np.abs(np.asarray(other)[0] - expected).max() > 0.1  # the reference counts
    found = TorchTwin(model, threads=1)(low_res, reference)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_a_gate_has_no_twin():
    pytest.importorskip("torch")
    from tfcorr.bench.peers import PeerUnavailableError
    from tfcorr.bench.twin import TorchTwin

    with pytest.raises(PeerUnavailableError, match="no gate"):
        TorchTwin(C2Matching.from_architecture({"restorer": "compact", "gate": True}), threads=1)


def test_operations_are_those_of_the_layers():
    """Counted again from the shapes of all kernels and how often each is applied."""
    model = C2Matching.from_architecture({"restorer": "compact", "reference_features": "vgg19"})
    height, width = 6, 10
    cells = {"small": 1, "medium": 4, "large": 16, "conv1": 16, "conv2": 4, "conv3": 1}
    cells |= {"tail_small": 1, "tail_medium": 4, "tail_large1": 16, "tail_large2": 16, "content": 1}
    total = 2 * (height * width) ** 2 * 256
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            names = [part for part in weight.path.split("/") if part.startswith("tail")]
            names += [part.split("_")[0] for part in weight.path.split("/")]
            times = next((cells[name] for name in names if name in cells), 1)
            total += 2 * int(np.prod(weight.shape)) * times * height * width
    assert pipeline_flops(model, height, width) == total


def test_sizes_double():
    sizes = doubling_sizes(80, 125, 4)
    assert sizes[-1] == (80, 125) and len(sizes) == 5
    pixels = [h * w for h, w in sizes]
    for smaller, larger in itertools.pairwise(pixels):
        assert larger / smaller == pytest.approx(2, rel=0.05)


def test_random_weights_are_the_same_in_every_process():
    one, other = (make_model("compact").get_weights() for _ in range(2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@needs_custom
def test_a_kept_reference_is_not_extracted_again(monkeypatch, tiny_model_folder):
    from tfcorr.bench import measure
    from tfcorr.refsr.predictor import SuperResolver

    # Short calls are timed the second of two: how many there are would be up to the machine's speed.
    monkeypatch.setattr(measure, "_SHORT_SECONDS", 0)
    prepared = []
    prepare = SuperResolver._prepare
    monkeypatch.setattr(
        SuperResolver, "_prepare", lambda self, images: prepared.append(1) or prepare(self, images)
    )
    job = {"model": str(tiny_model_folder), "size": [8, 9], "threads": 1, "repeats": 2}
    measured = pipeline_work._times({**job, "contestants": [(CUSTOM, "float32"), (KEPT, "float32")]})
    # Each is called three times, warm-up included.
    assert len(prepared) == 3 + 1
    assert [one["implementation"] for one in measured["contestants"]] == [CUSTOM, KEPT]


@pytest.mark.slow
def test_command(tiny_model_folder, tmp_path, capsys):
    target, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    options = ["--model", str(tiny_model_folder), "--size", "12x10", "--threads", "1", "--repeats", "2"]
    options += ["--doublings", "1", "--no-memory", "--json", str(target), "--plot", str(plot)]
    assert cli.main(["bench", "pipeline", *options]) == 0
    printed = capsys.readouterr()
    result = json.loads(target.read_text())
    assert {tuple(row["size"]) for row in result["rows"]} == {(8, 8), (10, 12)}
    assert PORTABLE in {row["implementation"] for row in result["rows"]}
    for row in result["rows"]:
        assert row["label"] in printed.out
        assert len(row["times_s"]) == 2 and 0 < row["fastest_s"] <= row["median_s"]
        assert row["difference"] < 1e-4
        if row["implementation"] in (CUSTOM, TWIN):
            assert row["floor_share"] > 0 and row["gflops"] > 0
    assert plot.is_file() or "matplotlib is not installed" in printed.err


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"n": 1, "s": 0.5}, {"n": 2, "s": 1.0}, {"n": 3, "s": None}]
    target = tmp_path / "cost.svg"
    note = reports.plot_costs(target, rows, lambda row: row["s"] and ("one", row["n"], row["s"]), "n", "s")
    assert note is None
    assert "<svg" in target.read_text()


def test_wrong_calls(capsys):
    assert cli.main(["bench", "pipeline", "--only", "custom,mine"]) == 2
    assert "--only mine: expected some of kept, custom" in capsys.readouterr().err
    with pytest.raises(ValueError, match="smaller side must be at least 8, got 7"):
        pipeline.run(size=(7, 20))
