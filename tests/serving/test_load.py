"""A server under load for a short while; `python tests/serving/load.py` does the same for ten minutes.

TFCORR_LOAD_MINUTES and TFCORR_LOAD_MODEL (the folder of an export) make this test longer and its model real.
"""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("tensorflow_serving", reason="needs the extra 'serving'")

CLIENTS = 8


def test_growth_is_that_of_the_memory_after_the_start():
    from serving.load import Report

    report = Report(memory=[(second, 100 + (500 if second > 10 else 50 * second)) for second in range(100)])
    assert report.growth(20) == 0
    assert report.growth(0) == 500 - 50 * 4.5
    assert report.by_minute() == [600]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_clients_among_bad_requests(stand_in):
    from serving.load import load

    minutes = float(os.environ.get("TFCORR_LOAD_MINUTES", "0.2"))
    model = os.environ.get("TFCORR_LOAD_MODEL")
    report = load(Path(model) if model else stand_in, clients=CLIENTS, seconds=60 * minutes)
    after = 60.0 if minutes >= 2 else 0.0
    print(json.dumps(report.summary(after), indent=2))
    assert not report.errors
    assert len(report.seconds["grpc"]) >= 2 and len(report.seconds["rest"]) >= 2
    assert report.refused >= 1
    # In the first minute buffers and pools are allocated; a run that is all of it says nothing of growth.
    if after:
        assert report.growth(after) < 50e6
