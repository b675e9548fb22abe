"""The GPU's kernels without TensorFlow: goldens, float64 on the CPU, torchvision.

Needs PyTorch, nvcc and a GPU: `python3 -m pytest tests/cuda`, and under compute-sanitizer as docs/cuda.md
says. Without a GPU test_emulation.py runs this file on the host.
"""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DEFORM_CASES, hwio, load_golden, nhwc

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parents[2] / "custom_ops" / "cuda"))

import standalone  # noqa: E402

if not (standalone.EMULATION or torch.cuda.is_available()):
    pytest.skip("no GPU", allow_module_level=True)

NAMES = ("x", "kernel", "offset", "mask", "bias")


def to_device(array, dtype=torch.float32):
    return torch.as_tensor(np.ascontiguousarray(array)).to(standalone.DEVICE, dtype)


def close(have, want, rtol=1e-4, atol=2e-5, message=""):
    np.testing.assert_allclose(have.float().cpu(), np.asarray(want), rtol=rtol, atol=atol, err_msg=message)


@pytest.mark.parametrize("case", DEFORM_CASES)
def test_deform_golden(case):
    z = load_golden("deform_conv", case)
    stride, padding, dilation, groups = (int(value) for value in z["config"])
    geometry = {
        "strides": (stride, stride),
        "dilations": (dilation, dilation),
        "padding": (padding, padding),
        "groups": groups,
    }
    x, kernel, offset, mask = nhwc(z["x"]), hwio(z["weight"]), nhwc(z["offset"]), nhwc(z["mask"])
    inputs = [to_device(array) for array in (x, kernel, offset, mask)]
    close(standalone.deform_forward(*inputs, to_device(z["bias"]), **geometry), nhwc(z["out"]))
    found = standalone.deform_backward(*inputs, to_device(nhwc(z["grad_out"])), **geometry)
    wanted = [nhwc(z["d_x"]), hwio(z["d_weight"]), nhwc(z["d_offset"]), nhwc(z["d_mask"]), z["d_bias"]]
    for name, have, want in zip(NAMES, found, wanted, strict=True):
        close(have, want, atol=1e-4 if name in ("kernel", "bias") else 2e-5, message=f"{case}: {name}")


def deform_float64(x, kernel, offset, mask, bias, strides, dilations, padding, groups):
    """The definition in float64 on the CPU, differentiable by autograd."""
    batch, height, width, channels = x.shape
    kh, kw, _, outputs = kernel.shape
    out_height, out_width = offset.shape[1:3]
    wide = channels // groups
    shift = offset.reshape(batch, out_height, out_width, groups, kh * kw, 2)
    grid_y = torch.arange(out_height).reshape(-1, 1, 1, 1) * strides[0] - padding[0]
    grid_x = torch.arange(out_width).reshape(1, -1, 1, 1) * strides[1] - padding[1]
    tap_y = torch.arange(kh).repeat_interleave(kw) * dilations[0]
    tap_x = torch.arange(kw).repeat(kh) * dilations[1]
    # Positions are float32 by definition.
    y = ((grid_y + tap_y).float() + shift[..., 0].float()).double()
    x_ = ((grid_x + tap_x).float() + shift[..., 1].float()).double()
    y = y.detach() + shift[..., 0] - shift[..., 0].detach()
    x_ = x_.detach() + shift[..., 1] - shift[..., 1].detach()
    inside = (y > -1) & (y < height) & (x_ > -1) & (x_ < width)
    y, x_ = torch.where(inside, y, 0.0), torch.where(inside, x_, 0.0)
    y0, x0 = y.detach().floor(), x_.detach().floor()
    ly, lx = y - y0, x_ - x0
    entry = torch.arange(batch).reshape(-1, 1, 1, 1, 1)
    group = torch.arange(groups).reshape(1, 1, 1, -1, 1)
    table = x.reshape(batch, height, width, groups, wide)
    values = 0.0
    for i in range(2):
        for j in range(2):
            row, column = (y0 + i).long(), (x0 + j).long()
            there = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = (ly if i else 1 - ly) * (lx if j else 1 - lx) * there
            corner = table[entry, row.clamp(0, height - 1), column.clamp(0, width - 1), group]
            values = values + corner * weight.unsqueeze(-1)
    if mask is not None:
        values = values * torch.where(inside, mask.reshape(inside.shape), 0.0).unsqueeze(-1)
    weights = kernel.reshape(kh * kw, groups, wide, outputs)
    output = torch.einsum("bhwgkc,kgco->bhwo", values, weights)
    return output if bias is None else output + bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "groups, wide, outputs, taps, size, grid, strides, dilations",
    [
        (1, 1, 1, (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)),
        (2, 3, 3, (3, 3), (5, 7), (5, 7), (1, 1), (1, 1)),
        (8, 8, 64, (3, 3), (9, 17), (9, 17), (1, 1), (1, 1)),
        (8, 16, 128, (3, 3), (9, 11), (9, 11), (1, 1), (1, 1)),
        (8, 32, 72, (3, 3), (9, 8), (9, 8), (1, 1), (1, 1)),
        (1, 64, 65, (3, 3), (9, 9), (9, 9), (1, 1), (1, 1)),
        (
            2,
            65,
            5,
            (3, 2),
            (8, 9),
            (8, 9),
            (1, 1),
            (1, 1),
        ),  # a sample takes two tiles, the second with 1 column
        (1, 200, 33, (2, 2), (7, 7), (7, 7), (1, 1), (1, 1)),
        (3, 12, 20, (5, 3), (12, 10), (6, 4), (2, 3), (1, 2)),
        (7, 4, 9, (3, 3), (6, 5), (8, 30), (1, 1), (1, 1)),
        (4, 5, 130, (3, 3), (7, 20), (7, 20), (1, 1), (2, 2)),
    ],
)
@pytest.mark.parametrize("has_mask", [True, False])
def test_deform_against_float64(dtype, groups, wide, outputs, taps, size, grid, strides, dilations, has_mask):
    random = np.random.default_rng(groups * 1000 + wide)
    samples, channels, batch = groups * taps[0] * taps[1], groups * wide, 2
    offset = random.normal(size=(batch, *grid, 2 * samples)) * 2.5
    offset = np.floor(offset) + np.clip(offset - np.floor(offset), 0.03, 0.97)  # away from the kinks
    strange = random.uniform(size=offset.shape) < 0.03
    offset[strange] = random.choice([np.nan, np.inf, -np.inf, 3e38, -1e9, 2.0**31], size=strange.sum())
    arrays = [
        random.normal(size=(batch, *size, channels)),
        random.normal(size=(*taps, channels, outputs)) / math.sqrt(samples * wide),
        offset,
        random.uniform(size=(batch, *grid, samples)) if has_mask else None,
        random.normal(size=outputs),
    ]
    above = to_device(random.normal(size=(batch, *grid, outputs)), dtype)
    geometry = {"strides": strides, "dilations": dilations, "padding": (1, 1), "groups": groups}
    inputs = [
        None if array is None else to_device(array, torch.float32 if name == "offset" else dtype)
        for name, array in zip(NAMES, arrays, strict=True)
    ]
    exact = [None if t is None else t.detach().cpu().double().requires_grad_() for t in inputs]
    # Autograd would turn NaN times zero into NaN: outside is outside, wherever it is.
    with torch.no_grad():
        exact[2].copy_(torch.where(torch.isfinite(exact[2]), exact[2], 1e9).clamp(-1e9, 1e9))
    want = deform_float64(*exact, **geometry)
    want.backward(above.cpu().double())
    rtol, atol = (1e-4, 3e-5) if dtype == torch.float32 else (2e-2, 3e-2)
    close(standalone.deform_forward(*inputs, **geometry), want.detach(), rtol, atol)
    found = standalone.deform_backward(*inputs[:4], above, **geometry)
    for name, have, tensor in zip(NAMES, found, exact, strict=True):
        if have is None:
            continue
        wanted = tensor.grad.numpy()
        scale = max(1.0, float(np.abs(wanted).max()))
        assert bool(torch.isfinite(have).all()), name
        close(have, wanted, rtol, atol * scale, name)


def test_deform_repeats_itself():
    """All but the gradient of x, which is summed atomically."""
    random = np.random.default_rng(5)
    inputs = [
        to_device(random.normal(size=shape))
        for shape in ((1, 9, 11, 64), (3, 3, 64, 64), (1, 9, 11, 144), (1, 9, 11, 72))
    ]
    above = to_device(random.normal(size=(1, 9, 11, 64)))
    runs = [
        (
            standalone.deform_forward(*inputs, padding=(1, 1), groups=8),
            *standalone.deform_backward(*inputs, above, padding=(1, 1), groups=8)[1:],
        )
        for _ in range(3)
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_deform_outside_has_no_gradient():
    random = np.random.default_rng(6)
    x, kernel = to_device(random.normal(size=(1, 6, 6, 16))), to_device(random.normal(size=(3, 3, 16, 4)))
    offset = torch.full((1, 6, 6, 36), 50.0, device=standalone.DEVICE)
    offset[..., ::2] = float("nan")
    above = torch.full((1, 6, 6, 4), float("inf"), device=standalone.DEVICE)
    mask = torch.ones((1, 6, 6, 18), device=standalone.DEVICE)
    options = {"padding": (1, 1), "groups": 2}
    assert not standalone.deform_forward(x, kernel, offset, mask, **options).any()
    d_x, _, d_offset, d_mask, _ = standalone.deform_backward(x, kernel, offset, mask, above, **options)
    assert not d_x.any() and not d_offset.any() and not d_mask.any()


@pytest.mark.parametrize("scale", [(160, 64), (80, 128), (40, 256)])
def test_deform_against_torchvision(scale):
    """At the three scales of the restoration network."""
    if standalone.EMULATION:
        pytest.skip("too large for the emulation")
    torchvision = pytest.importorskip("torchvision")
    size, channels = scale
    generator = torch.Generator("cuda").manual_seed(size)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device="cuda")

    x, kernel = normal(1, size, size, channels), normal(3, 3, channels, channels) / math.sqrt(9 * channels)
    offset, mask = (
        normal(1, size, size, 144) * 4,
        torch.rand(1, size, size, 72, generator=generator, device="cuda"),
    )
    bias, above = normal(channels), normal(1, size, size, channels)
    theirs = [
        tensor.detach().permute(order).contiguous().requires_grad_()
        for tensor, order in (
            (x, (0, 3, 1, 2)),
            (offset, (0, 3, 1, 2)),
            (kernel, (3, 2, 0, 1)),
            (mask, (0, 3, 1, 2)),
        )
    ]
    their_bias = bias.clone().requires_grad_()
    want = torchvision.ops.deform_conv2d(
        theirs[0], theirs[1], theirs[2], their_bias, padding=1, mask=theirs[3]
    )
    want.backward(above.permute(0, 3, 1, 2))
    have = standalone.deform_forward(x, kernel, offset, mask, bias, padding=(1, 1), groups=8)
    close(have, want.detach().permute(0, 2, 3, 1).cpu(), 1e-3, 1e-4)
    found = standalone.deform_backward(x, kernel, offset, mask, above, padding=(1, 1), groups=8)
    wanted = [
        theirs[0].grad.permute(0, 2, 3, 1),
        theirs[2].grad.permute(2, 3, 1, 0),
        theirs[1].grad.permute(0, 2, 3, 1),
        theirs[3].grad.permute(0, 2, 3, 1),
        their_bias.grad,
    ]
    for name, have, wanted_gradient in zip(NAMES, found, wanted, strict=True):
        scale_of = float(wanted_gradient.abs().max())
        close(have, wanted_gradient.cpu(), 1e-3, 1e-4 * max(1.0, scale_of), name)


def match_by_definition(query, reference, p):
    """Scores (queries, references) in float64."""

    def patches(features):
        windows = np.lib.stride_tricks.sliding_window_view(features.astype(np.float64), (p, p), axis=(0, 1))
        return windows.reshape(-1, windows[0, 0].size)

    q, r = patches(query), patches(reference)
    norm_q, norm_r = np.linalg.norm(q, axis=1) + 1e-5, np.linalg.norm(r, axis=1) + 1e-5
    return q @ r.T / norm_r / norm_q[:, None]


SIZES = [
    ((3, 3), (3, 3), 1),
    ((5, 7), (9, 4), 3),
    ((8, 66), (7, 131), 16),
    ((6, 130), (9, 64), 33),
    ((10, 35), (8, 260), 100),
    ((12, 20), (9, 21), 256),
    ((52, 9), (50, 12), 4),  # diagonals in two bands
]


@pytest.mark.parametrize("patch_size", [1, 2, 3, 5])
@pytest.mark.parametrize("query_size, reference_size, channels", SIZES)
def test_match(query_size, reference_size, channels, patch_size):
    if min(*query_size, *reference_size) < patch_size:
        pytest.skip("smaller than a patch")
    random = np.random.default_rng(channels)
    query = random.normal(size=(*query_size, channels)).astype("float32")
    reference = random.normal(size=(*reference_size, channels)).astype("float32")
    index, score = standalone.match(to_device(query), to_device(reference), patch_size)
    scores = match_by_definition(query, reference, patch_size)
    index = index.cpu().numpy().reshape(-1)
    reached = scores[np.arange(len(index)), index]
    np.testing.assert_allclose(reached, scores.max(axis=1), atol=2e-6)
    np.testing.assert_allclose(score.cpu().numpy().reshape(-1), reached, atol=1e-5)


@pytest.mark.parametrize("patch_size", [1, 3, 4, 5])
def test_match_ties_go_to_the_lowest_index(patch_size):
    random = np.random.default_rng(2)
    reference = np.tile(random.integers(-1, 2, size=(6, 6, 8)), (3, 25, 1)).astype("float32")
    query = reference[:8, :70]
    index, _ = standalone.match(to_device(query), to_device(reference), patch_size)
    scores = match_by_definition(query, reference, patch_size)
    first = np.argmax(scores > scores.max(axis=1, keepdims=True) - 1e-9, axis=1)
    np.testing.assert_array_equal(index.cpu().numpy().reshape(-1), first)


def test_match_leaves_out_what_is_not_finite():
    random = np.random.default_rng(3)
    query = random.normal(size=(10, 12, 20)).astype("float32")
    reference = np.concatenate([query, random.normal(size=(10, 12, 20)).astype("float32")])
    reference[:10][random.uniform(size=(10, 12)) < 0.2] = np.nan
    reference[3, 3, 3] = np.inf
    index, _ = standalone.match(to_device(query), to_device(reference))
    windows = np.lib.stride_tricks.sliding_window_view(
        np.isfinite(reference).all(axis=2), (3, 3), axis=(0, 1)
    )
    usable = windows.all(axis=(2, 3)).reshape(-1)
    assert usable[index.cpu().numpy()].all()
    index, score = standalone.match(to_device(query), to_device(np.full_like(reference, np.nan)))
    assert not index.any() and bool(torch.isneginf(score).all())


@pytest.mark.parametrize(
    "case", ["rand16", "shift256", "ties_tiled", "const_padding", "zero_input_region", "tiny5"]
)
def test_match_golden(case):
    z = load_golden("feature_match", case)
    for entry in range(len(z["feat_in"])):
        maps = []
        for name in ("feat_in", "feat_ref"):
            features = z[name][entry].transpose(1, 2, 0)
            maps.append(
                to_device(features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12))
            )
        index, score = standalone.match(*maps)
        close(score, z["max_val"][entry], 0, 1e-5)
        clear = z["margin"][entry] > 1e-4 if case != "ties_tiled" else np.full(index.shape, True)
        np.testing.assert_array_equal(index.cpu().numpy()[clear], z["max_idx"][entry][clear])


@pytest.mark.parametrize("case", ["raw_rect", "raw_p5"])
def test_match_golden_of_the_bare_routine(case):
    raw, z = load_golden("feature_match", "raw"), load_golden("feature_match", case)
    maps = [to_device(raw[name].transpose(1, 2, 0)) for name in ("feat_in", "feat_ref")]
    index, _ = standalone.match(*maps, patch_size=int(z["options"][0]))
    np.testing.assert_array_equal(index.cpu().numpy(), z["max_idx"])
