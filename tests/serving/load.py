"""Load on a model server: many clients for some minutes, bad requests among them; latency and memory.

    python tests/serving/load.py MODEL_FOLDER [--clients 8] [--minutes 10] [--size 32] [--report load.json]

The server is `server.py` beside this file, in a process of its own, at free ports of this machine. Every
client is a thread with a connection of its own; half of them call over gRPC, half over REST. One call in ten
has to be refused (too many pixels, bytes that are no image), and each good answer is compared with the one
that the server gave before the load began.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tfcorr.serving import Client, ServingError

PERCENTILES = (50, 90, 95, 99, 100)


@dataclass
class Report:
    """What a load found.

    Attributes:
        seconds: of good calls, by protocol.
        refused: calls that were refused as they had to be.
        errors: everything that went otherwise: message -> count.
        memory: (seconds since the start, resident bytes of the server).
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"grpc": [], "rest": []})
    refused: int = 0
    errors: Counter = field(default_factory=Counter)
    memory: list[tuple[float, int]] = field(default_factory=list)

    def growth(self, after: float) -> int:
        """Bytes by which the server grew from `after` seconds on: the median of the last tenth of the samples
        less that of the first tenth."""
        samples = [size for when, size in self.memory if when >= after]
        tenth = max(1, len(samples) // 10)
        return int(np.median(samples[-tenth:]) - np.median(samples[:tenth]))

    def by_minute(self) -> list[int]:
        """Bytes at the end of each whole minute."""
        return [
            [size for when, size in self.memory if when <= 60.0 * minute][-1]
            for minute in range(1, int(self.memory[-1][0] // 60) + 1)
        ]

    def summary(self, after: float) -> dict:
        """Counts, percentiles in milliseconds, memory in MB."""
        everything = [*self.seconds["grpc"], *self.seconds["rest"]]
        named = {**self.seconds, "all": everything}
        return {
            "calls": len(everything),
            "refused": self.refused,
            "errors": dict(self.errors),
            "milliseconds": {
                name: {f"p{p}": round(1000 * float(np.percentile(values, p)), 1) for p in PERCENTILES}
                for name, values in named.items()
                if values
            },
            "memory_mb": round(self.memory[-1][1] / 1e6, 1),
            "memory_mb_by_minute": [round(size / 1e6, 1) for size in self.by_minute()],
            "memory_growth_mb": round(self.growth(after) / 1e6, 1),
            "memory_counted_after_s": after,
        }


def resident(process: int) -> int:
    """Resident bytes of a process (Linux)."""
    text = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)[1])


def png(side: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def start_server(folder: Path) -> tuple[subprocess.Popen, dict[str, str]]:
    """A server in a process of its own, and its addresses by protocol."""
    program = Path(__file__).with_name("server.py")
    process = subprocess.Popen(
        [sys.executable, str(program), str(folder), "--grpc-port", "0", "--rest-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # As glibc stands, memory creeps up for hours: it has an arena for each of many threads, which keeps
        # from the others what was freed in it, and after the first large array it takes arrays of up to 32 MB
        # from there.
        env={**os.environ, "MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(2**18)},
    )
    line = process.stdout.readline()
    found = re.search(r"at (\S+) and (http://\S+)", line)
    if not found:
        process.kill()
        raise RuntimeError(f"the server did not start: {line!r}")
    return process, {"grpc": found[1], "rest": found[2]}


def bad_requests(refused_side: int):
    """Calls that a server has to refuse with INVALID_ARGUMENT."""
    large = np.zeros((refused_side, refused_side, 3), np.float32)
    return (
        lambda client: client.upscale(large, np.zeros((16, 16, 3), np.float32)),
        lambda client: client.upscale(b"no image at all"),
        lambda client: client.upscale(png(16, 0)[:60], [png(16, 1)]),
    )


def load(
    folder: Path,
    *,
    clients: int = 8,
    seconds: float = 600.0,
    side: int = 32,
    refused_side: int = 600,
    deadline: float = 300.0,
) -> Report:
    """Puts a server under load.

    Args:
        folder: of the SavedModel.
        clients: threads that call, one call after the other.
        seconds: how long.
        side: of the small images, in pixels; references have twice that.
        refused_side: of an image that the model refuses.
        deadline: seconds for each call.
    """
    process, addresses = start_server(folder)
    report, lock = Report(), threading.Lock()
    rng = np.random.default_rng(0)
    images = [rng.random((side, side, 3), np.float32) for _ in range(4)]
    references = [rng.random((2 * side, 2 * side, 3), np.float32) for _ in range(4)]
    encoded = [png(side, number) for number in range(4)]
    encoded_references = [png(2 * side, 10 + number) for number in range(4)]
    bad = bad_requests(refused_side)
    try:
        with Client(addresses["grpc"], deadline=deadline) as client:
            client.wait_until_ready(300)
            expected = [client.upscale(i, r) for i, r in zip(images, references, strict=True)]
            expected_bytes = [
                client.upscale(i, [r]) for i, r in zip(encoded, encoded_references, strict=True)
            ]
        start = time.monotonic()

        def one_call(client: Client, protocol: str, number: int) -> None:
            which = number % 4
            if number % 10 == 5:
                try:
                    bad[number // 10 % len(bad)](client)
                    raise AssertionError("a bad request was answered")
                except ServingError as error:
                    if error.code != "INVALID_ARGUMENT":
                        raise
                with lock:
                    report.refused += 1
                return
            began = time.monotonic()
            if number % 2:
                same = client.upscale(encoded[which], [encoded_references[which]]) == expected_bytes[which]
            else:
                found = client.upscale(images[which], references[which])
                same = np.allclose(found, expected[which], atol=1e-5)
            took = time.monotonic() - began
            if not same:
                raise AssertionError("another answer than before the load")
            with lock:
                report.seconds[protocol].append(took)

        def work(worker: int) -> None:
            protocol = ("grpc", "rest")[worker % 2]
            with Client(addresses[protocol], deadline=deadline) as client:
                number = worker
                while time.monotonic() - start < seconds:
                    try:
                        one_call(client, protocol, number)
                    except Exception as error:
                        with lock:
                            report.errors[f"{type(error).__name__}: {error}"] += 1
                    number += 1

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            report.memory.append((time.monotonic() - start, resident(process.pid)))
            time.sleep(0.5)
        for thread in threads:
            thread.join()
    finally:
        process.terminate()
        process.wait(timeout=30)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with saved_model.pb")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--size", type=int, default=32, help="side of the small images, in pixels")
    parser.add_argument("--report", type=Path, help="JSON file to write")
    args = parser.parse_args()
    report = load(args.folder, clients=args.clients, seconds=60 * args.minutes, side=args.size)
    summary = report.summary(after=min(60.0, 6 * args.minutes))
    text = json.dumps(summary, indent=2)
    print(text)
    if args.report:
        args.report.write_text(text + "\n")
    return 1 if report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
