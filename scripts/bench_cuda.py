"""Times the GPU's kernels without TensorFlow, beside torchvision and cuBLAS, and against two floors.

    python3 scripts/bench_cuda.py [--json FILE]

Needs PyTorch, nvcc and a GPU; torchvision for its deformable convolution. The floors of an operation are the
bytes that it has to move over the bandwidth of a large copy, and its multiply-adds over the rate of a large
matrix product of the same type by cuBLAS (no TF32), both measured here first. Times are medians of CUDA
events around single calls, after a warm-up; the ways are timed in turn.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "custom_ops" / "cuda"))

import standalone

SCALES = ((160, 64), (80, 128), (40, 256))
TAPS, GROUPS = 9, 8
MATCHES = (((80, 125), (80, 125)), ((125, 125), (125, 125)), ((250, 188), (250, 188)))
MATCH_CHANNELS = 256


def seconds(*ways, repeats: int = 30) -> list[float]:
    """Median time of each way, one call of each in turn."""
    times = [[] for _ in ways]
    for repeat in range(repeats + 5):
        for way, record in zip(ways, times, strict=True):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            way()
            end.record()
            end.synchronize()
            if repeat >= 5:
                record.append(begin.elapsed_time(end) / 1e3)
    return [statistics.median(record) for record in times]


def machine() -> dict:
    """Bandwidth of a copy in B/s; multiply-adds a second of a product of 8192 x 8192 matrices, by type."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    (copy,) = seconds(lambda: target.copy_(source))
    found = {"device": torch.cuda.get_device_name(), "bandwidth": 2 * source.numel() / copy}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        (time,) = seconds(lambda a=a, b=b: a @ b, repeats=10)
        found[str(dtype).removeprefix("torch.")] = 8192**3 / time
    return found


def row(name: str, dtype: str, times: list[float], macs: float, size: float, known: dict) -> dict:
    """One line of the table, from the times of ours and, if there is one, of the peer."""
    floors = {"bytes": size / known["bandwidth"], "operations": macs / known[dtype]}
    bound = max(floors, key=floors.get)
    return {
        "name": name,
        "dtype": dtype,
        "us": times[0] * 1e6,
        "floor_bytes_us": floors["bytes"] * 1e6,
        "floor_operations_us": floors["operations"] * 1e6,
        "share_of_floor": floors[bound] / times[0],
        "bound": bound,
        "peer_us": times[1] * 1e6 if len(times) > 1 else None,
    }


def torchvision_ways(x, kernel, offset, mask, bias, above) -> tuple | None:
    """torchvision's forward and backward on the same arrays, or None where there is none for them."""
    try:
        from torchvision.ops import deform_conv2d
    except ImportError:
        return None
    # It wants one type: with bfloat16 the offsets are bfloat16, too.
    channels_first = [tensor.to(x.dtype).permute(0, 3, 1, 2) for tensor in (x, offset, mask, above)]
    x, offset, mask, above = (tensor.contiguous() for tensor in channels_first)
    kernel = kernel.permute(3, 2, 0, 1).contiguous()
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, offset, kernel, bias, mask)]

    def forward():
        return deform_conv2d(*leaves[:4], padding=1, mask=leaves[4])

    try:
        output = forward()
    except RuntimeError as error:
        print(f"torchvision, {x.dtype}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return forward, lambda: torch.autograd.grad(output, leaves, above, retain_graph=True)


def deform_rows(size: int, channels: int, dtype: torch.dtype, known: dict) -> list[dict]:
    """Forward and backward at one scale of the restoration network."""
    samples = GROUPS * TAPS
    x, above = (torch.randn(1, size, size, channels, device="cuda", dtype=dtype) for _ in range(2))
    kernel = torch.randn(3, 3, channels, channels, device="cuda", dtype=dtype) / math.sqrt(TAPS * channels)
    offset = torch.randn(1, size, size, 2 * samples, device="cuda") * 4
    mask = torch.rand(1, size, size, samples, device="cuda", dtype=dtype)
    bias = torch.randn(channels, device="cuda", dtype=dtype)
    options = {"padding": (1, 1), "groups": GROUPS}
    theirs = torchvision_ways(x, kernel, offset, mask, bias, above) or (None, None)
    forward = [lambda: standalone.deform_forward(x, kernel, offset, mask, bias, **options), theirs[0]]
    backward = [lambda: standalone.deform_backward(x, kernel, offset, mask, above, **options), theirs[1]]

    macs = size * size * TAPS * channels * channels
    moved = (2 * x.numel() + kernel.numel() + mask.numel()) * x.element_size() + offset.numel() * 4
    name, label = str(dtype).removeprefix("torch."), f"{size}x{size}x{channels}"
    # Backward: two products of the forward pass's size; everything is read, and gradients of it written.
    return [
        row(f"{what} {label}", name, seconds(*filter(None, ways)), factor * macs, factor * moved, known)
        for what, ways, factor in (("forward", forward, 1), ("backward", backward, 2))
    ]


def match_row(query_size: tuple[int, int], reference_size: tuple[int, int], known: dict) -> dict:
    """match_patches beside the product over the channels alone."""
    query = torch.randn(*query_size, MATCH_CHANNELS, device="cuda")
    reference = torch.randn(*reference_size, MATCH_CHANNELS, device="cuda")
    left, right = query.reshape(-1, MATCH_CHANNELS), reference.reshape(-1, MATCH_CHANNELS).T

    def product():
        # In slices: whole, its result is the correlation volume, which need not fit.
        for part in left.split(4096):
            torch.mm(part, right)

    times = seconds(lambda: standalone.match(query, reference), product, repeats=10)
    macs = left.shape[0] * right.shape[1] * MATCH_CHANNELS
    moved = (query.numel() + reference.numel()) * 4 + 8 * left.shape[0]
    label = "x".join(map(str, query_size)) + " in " + "x".join(map(str, reference_size))
    return row(f"match_patches {label}", "float32", times, macs, moved, known)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all numbers to this file, too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_cuda.py: PyTorch sees no GPU here")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    known = machine()
    print(
        f"{known['device']}: copy {known['bandwidth'] / 1e12:.2f} TB/s, "
        f"products {2 * known['float32'] / 1e12:.1f} TFLOP/s float32, "
        f"{2 * known['bfloat16'] / 1e12:.0f} bfloat16"
    )
    print(
        f"{'operation':34} {'type':9} {'us':>9} {'bytes us':>9} {'ops us':>9} {'of floor':>9} "
        f"{'peer us':>9} {'peer/ours':>9}"
    )
    rows = [
        line
        for size, channels in SCALES
        for dtype in (torch.float32, torch.bfloat16)
        for line in deform_rows(size, channels, dtype, known)
    ]
    rows += [match_row(*sizes, known) for sizes in MATCHES]
    for line in rows:
        peer = line["peer_us"]
        versus = f"{peer:9.1f} {peer / line['us']:9.2f}" if peer else f"{'-':>9} {'-':>9}"
        print(
            f"{line['name']:34} {line['dtype']:9} {line['us']:9.1f} {line['floor_bytes_us']:9.1f} "
            f"{line['floor_operations_us']:9.1f} {line['share_of_floor']:9.0%} {versus}"
        )
    print("peer: torchvision for the convolution, cuBLAS' product over C channels alone for match_patches")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": known, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
