"""A measuring process: `python -m tfcorr.bench.worker RESULT.json < job.json`.

Started by `tfcorr.bench.children`.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

# What a job's kind names: the module whose `run` takes the job.
KINDS = {
    "export": "tfcorr.bench.export_work",
    "matching": "tfcorr.bench.matching_work",
    "ops": "tfcorr.bench.ops_work",
    "pipeline": "tfcorr.bench.pipeline_work",
    "train": "tfcorr.bench.train_work",
}


def main() -> None:
    """Reads a job from standard input and writes its result to the file that the command names."""
    job = json.load(sys.stdin)
    result = import_module(KINDS[job["kind"]]).run(job)
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
