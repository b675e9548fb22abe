"""More than one device: the same weights as one, from the same batches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import logged_pictures

from tfcorr.config import LearningRate, Training
from tfcorr.errors import TfcorrError
from tfcorr.training.callbacks import is_maximum
from tfcorr.training.checkpoint import LAST, read_state
from tfcorr.training.distribution import is_chief, make_strategy

WORKER = Path(__file__).parent / "worker.py"
ROOT = Path(__file__).parents[2]


def start(distribute, devices, folder, *rest, cluster=None):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CONFIG", None)
    if cluster:
        workers, index = cluster
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment["TF_CONFIG"] = json.dumps(task)
    command = [sys.executable, str(WORKER), distribute, str(devices), str(folder), *rest]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(*processes):
    try:
        outputs = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output.decode()[-3000:]


def weights(folder, task=0):
    with np.load(folder / f"weights-{task}.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    finish(start("none", 0, folder))
    return weights(folder)


def assert_same(found, expected, kind):
    names = [name for name in expected if name.startswith(f"{kind}/")]
    assert len(names) > 10
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_parts_of_a_cpu_train_like_one(tmp_path, single):
    finish(start("mirrored", 2, tmp_path))
    found = weights(tmp_path)
    assert int(found["replicas"]) == 2 and int(single["replicas"]) == 1
    assert_same(found, single, "plain")
    assert [step for step, _ in logged_pictures(tmp_path / "plain")["matches"]] == [2, 4]
    # The mixtures of the gradient penalty differ from replica to replica: finite, and trained.
    adversarial = [found[name] for name in found if name.startswith("adversarial/0")]
    assert all(np.isfinite(a).all() for a in adversarial)
    assert found["adversarial/metrics"][1] == 4


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_workers(folder, *rest):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    return [start("workers", 0, folder, *rest, cluster=(addresses, index)) for index in range(2)]


@pytest.mark.slow
def test_two_workers_train_like_one_process_and_resume(tmp_path, single):
    # Stopped after the first step, and started again.
    finish(*start_workers(tmp_path, "interrupted"))
    assert read_state(tmp_path / "plain" / LAST)["step"] == 1
    finish(*start_workers(tmp_path))
    first, second = weights(tmp_path, 0), weights(tmp_path, 1)
    assert int(first["replicas"]) == 2
    assert_same(first, single, "plain")
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    # The chief alone writes.
    lines = [json.loads(line) for line in (tmp_path / "plain" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["group"] == "train"] == [1, 2, 3, 4]
    assert [step for step, _ in logged_pictures(tmp_path / "plain")["matches"]] == [1, 2, 4]


def settings(**changes):
    return Training(**{"steps": 1, "batch": 4, "learning_rate": LearningRate(0.1), **changes})


def test_what_cannot_be_divided_is_refused():
    strategy = make_strategy(settings())
    assert strategy.num_replicas_in_sync == 1 and is_chief(strategy)
    with pytest.raises(TfcorrError, match=r"train\.devices is 64, this machine has"):
        make_strategy(settings(distribute="mirrored", devices=64))


def test_names_of_maxima():
    assert is_maximum("offset_max") and is_maximum("offset_max/large")
    assert not is_maximum("offset_mean/max") and not is_maximum("loss")
