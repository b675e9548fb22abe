"""tfcorr bench ops on tiny maps: that it measures what it says, not how fast anything is."""

import dataclasses
import itertools
import json
import time

import numpy as np
import pytest

from tfcorr import cli
from tfcorr.bench import measure, ops, ops_work, peers, workloads
from tfcorr.bench.workloads import DeformCase, MatchCase
from tfcorr.ops import deform_conv2d, implementations, match_patches

needs_custom = pytest.mark.skipif(
    implementations()["match_patches"]["implementation"] != "custom", reason="no compiled op"
)
TINY = MatchCase(7, 8, 4)


def test_rounds_are_interleaved():
    order = []
    calls = {name: lambda name=name: order.append(name) or time.sleep(0.11) for name in "abc"}
    times = measure.interleaved_times(calls, repeats=2)
    assert order == [*"abc", *"abc", *"bca"]  # warm-up, then two rounds
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys("abc", 2)


def test_of_short_calls_the_second_in_a_row_is_timed():
    order = []

    def call(name, seconds):
        order.append(name)
        # The first of two in a row is slow, as threads are that slept.
        time.sleep(seconds if order[-2:-1] == [name] else seconds + 0.04)

    calls = {"a": lambda: call("a", 0.02), "b": lambda: call("b", 0.11)}
    times = measure.interleaved_times(calls, repeats=2)
    assert order == [*"ab", *"aab", *"baa"]
    assert max(times["a"]) < 0.055


def test_times_are_seconds():
    times = measure.interleaved_times({"sleep": lambda: time.sleep(0.05)}, repeats=2)
    assert all(0.05 <= seconds < 1 for seconds in times["sleep"])


def test_peak_memory_counts_what_is_freed_again():
    def call():
        np.ones(8_000_000)  # 64 MB, gone before the call returns

    before = measure.peak_memory()
    assert 60e6 < measure.peak_memory_growth(call) < 80e6
    assert measure.peak_memory() > min(before, 100e6)


@pytest.mark.parametrize("case", [TINY, DeformCase(5, 6, 8, "far", part="both", dtype="bfloat16")])
def test_cases_survive_the_way_to_another_process(case):
    assert workloads.from_record(json.loads(json.dumps(workloads.to_record(case)))) == case


def test_output_bytes():
    data = DeformCase(5, 6, 8).data()
    gradients = sum(array.nbytes for array in data.values())
    assert DeformCase(5, 6, 8).output_bytes == data["x"].nbytes
    assert DeformCase(5, 6, 8, part="backward").output_bytes == gradients
    assert DeformCase(5, 6, 8, part="both").output_bytes == data["x"].nbytes + gradients
    half = DeformCase(5, 6, 8, part="backward", dtype="bfloat16")
    assert 2 * half.output_bytes == gradients + data["offset"].nbytes
    assert TINY.output_bytes == 2 * 4 * 5 * 6


def test_far_offsets_point_into_the_map():
    data = DeformCase(40, 30, 8, "far").data()
    offset = data["offset"].reshape(40, 30, -1, 2)
    position = np.stack(np.indices((40, 30)), -1)[:, :, None] + offset
    assert np.mean((position > -4) & (position < [44, 34])) > 0.99
    assert np.abs(offset).mean() > 8


@pytest.mark.parametrize("implementation", ["reference", pytest.param("custom", marks=needs_custom)])
def test_backward_alone_does_not_compute_forward(implementation):
    case = DeformCase(6, 7, 8, part="backward")
    data = case.data()
    both = workloads.prepare(dataclasses.replace(case, part="both"), implementation, data)()
    alone = workloads.prepare(case, implementation, data)()
    for one, other in zip(alone, both[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    if implementation == "custom":
        graph = workloads._graph(case.op, implementation, 8, "backward", "float32")
        run = graph.get_concrete_function()
        reached = {op.type for op in _reached(run.outputs)}
        assert "Tfcorr>DeformConv2DGrad" in reached and "Tfcorr>DeformConv2D" not in reached


def _reached(outputs):
    """The operations that some outputs depend on."""
    todo, seen = [output.op for output in outputs], set()
    while todo:
        op = todo.pop()
        if op not in seen:
            seen.add(op)
            todo += [tensor.op for tensor in op.inputs]
    return seen


def test_bfloat16_is_close():
    case = DeformCase(6, 7, 8)
    data = case.data()
    exact = workloads.prepare(case, "reference", data)()[0]
    rounded = workloads.prepare(dataclasses.replace(case, dtype="bfloat16"), "reference", data)()[0]
    assert rounded.dtype.name == "bfloat16"
    error = np.abs(rounded.astype(np.float32) - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 2e-2


def test_growing_sizes_double():
    by_op = {}
    for case in ops.GROWING_CASES:
        by_op.setdefault(case.op, []).append(case.pixels)
    for pixels in by_op.values():
        assert [b / a for a, b in itertools.pairwise(pixels)] == [2.0] * (len(pixels) - 1)


def test_onnxruntime_computes_the_same():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    case = DeformCase(9, 7, 16, "far")
    data = case.data()
    expected = deform_conv2d(**data, deform_groups=workloads.DEFORM_GROUPS, implementation="reference")
    (found,) = peers.prepare(case, data, threads=1)()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_torch_computes_the_same(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(peers, "_FILTERS", 7)
    data = TINY.data()
    expected = match_patches(**data, implementation="reference")
    index, score = peers.prepare(TINY, data, threads=1)()
    np.testing.assert_array_equal(index, expected.index)
    np.testing.assert_allclose(score, expected.score, atol=1e-6)


def test_missing_peer_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(peers.PeerUnavailableError, match=r"torch is not installed .*extra `bench`"):
        peers.prepare(TINY, TINY.data(), threads=1)


def test_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(ops, "QUICK_CASES", (TINY,))
    target = tmp_path / "figures.json"
    arguments = ["--quick", "--no-memory", "--repeats", "2", "--threads", "1", "--json", str(target)]
    assert cli.main(["bench", "ops", *arguments]) == 0
    table = capsys.readouterr().out
    result = json.loads(target.read_text())
    assert result["settings"] == {"repeats": 2, "threads": 1, "quick": True, "growing": False}
    assert result["gemm_gflops"] > 0
    assert "reference" in {row["implementation"] for row in result["rows"]}
    for row in result["rows"]:
        assert row["label"] in table
        assert len(row["times_s"]) == 2 and 0 < row["fastest_s"] <= row["median_s"]
        assert row["difference"] == 0 and row["gemm_share"] > 0
        if row["implementation"] == "custom":
            assert row["ratio"] == 1
    assert len(result["rows"]) + len(result["notes"]) == 3
    for note in result["notes"]:
        assert f"left out: {note}" in table


@pytest.mark.parametrize("implementation", ["reference", pytest.param("custom", marks=needs_custom)])
def test_matching_never_holds_the_correlation_volume(implementation):
    case = MatchCase(72, 72, 4)  # the volume would take 72**4 floats, 107 MB
    assert ops_work.memory(case, implementation, threads=2)["extra_bytes"] < 60e6


@pytest.mark.parametrize("arguments", [["ops", "--repeats", "0"], ["ops", "--threads", "-1"], ["nothing"]])
def test_wrong_calls(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["bench", *arguments])
    assert error.value.code == 2
    assert "usage: tfcorr bench" in capsys.readouterr().err


def test_wrong_settings():
    for arguments in ({"repeats": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            ops.run(**arguments)
