"""What a measuring process does for `tfcorr.bench.matching`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from tfcorr.bench import measure

_SCALE = 4
# Warp of the made-up pair: a rotation, a scale and a shift.
_WARP = np.array([[0.96, -0.12, 20.0], [0.12, 0.96, -10.0], [2e-5, 1e-5, 1.0]])


def run(job: dict[str, Any]) -> dict[str, Any]:
    """A job of `tfcorr.bench.matching`."""
    measure.limit_threads(job["threads"])
    from tfcorr.refsr.coarse_to_fine import ReferenceIndex

    query, reference = descriptors(job)
    if job["measure"] == "memory":
        small = [array[:32, :32] for array in (query, reference)]
        ReferenceIndex(small[1], threads=job["threads"]).search(small[0])
        growth = measure.peak_memory_growth(
            lambda: ReferenceIndex(reference, threads=job["threads"]).search(query)
        )
        return {"extra_bytes": max(growth - 8 * (query.shape[0] - 2) * (query.shape[1] - 2), 0)}
    return _times(job, query, reference)


def _times(job: dict[str, Any], query: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    import tensorflow as tf

    from tfcorr.refsr.coarse_to_fine import ReferenceIndex

    indexing, times = [], []
    for _ in range(job["repeats"]):
        start = time.perf_counter()
        index = ReferenceIndex(reference, threads=job["threads"])
        indexing.append(time.perf_counter() - start)
        found, score = index.search(query)
        times.append(time.perf_counter() - start)
    sample = np.random.default_rng(0).choice(found.size, min(job["sampled"], found.size), replace=False)
    truth, best = exact_matches(query, reference, sample)
    columns = reference.shape[1] - 2
    distance = np.max(
        np.abs(np.stack(np.divmod(found.ravel()[sample], columns)) - np.divmod(truth, columns)), 0
    )
    gemm = measure.interleaved_times({"gemm": measure.gemm()}, 3)["gemm"]
    return {
        "pairs": found.size * index.shape[0] * index.shape[1],
        "times_s": times,
        "index_s": sorted(indexing)[len(indexing) // 2],
        "exact_s": _exact_seconds(query, reference) if job["exact"] else None,
        "equal": float(np.mean(distance == 0)),
        "within_one": float(np.mean(distance <= 1)),
        "score_lost": float(np.mean(best - score.ravel()[sample])),
        "gemm_gflops": [measure.GEMM_FLOPS / seconds / 1e9 for seconds in gemm],
        "versions": {"tensorflow": tf.__version__},
    }


def _exact_seconds(query: np.ndarray, reference: np.ndarray) -> float:
    from tfcorr.ops import match_patches

    start = time.perf_counter()
    match_patches(query[None], reference[None]).index.numpy()
    return time.perf_counter() - start


def exact_matches(
    query: np.ndarray, reference: np.ndarray, sample: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The matches of some patches, by a plain comparison with every patch of the reference.

    Args:
        query, reference: (h, w, C) and (H, W, C) float32.
        sample: numbers of patches of the query.

    Returns:
        index, score of each, as of `tfcorr.ops.match_patches`.
    """
    from tfcorr.ops.match_patches import NORM_EPSILON

    rows, columns = (side - 2 for side in reference.shape[:2])
    y, x = np.divmod(sample, query.shape[1] - 2)
    patches = np.stack([query[y + i, x + j] for i in range(3) for j in range(3)])
    energy = np.square(reference).sum(-1)
    norm = np.sqrt(sum(energy[i : i + rows, j : j + columns] for i in range(3) for j in range(3)))
    best = np.full(len(sample), -np.inf, np.float32)
    index = np.zeros(len(sample), np.int64)
    for row in range(rows):
        similarity = sum(
            patches[3 * i + j] @ reference[row + i, j : j + columns].T for i in range(3) for j in range(3)
        ) / (norm[row] + NORM_EPSILON)
        here = similarity.argmax(axis=1)
        value = similarity[np.arange(len(sample)), here]
        better = value > best
        best[better], index[better] = value[better], row * columns + here[better]
    length = np.sqrt(np.square(patches).sum((0, 2)))
    return index, best / (length + NORM_EPSILON)


def descriptors(job: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Unit descriptors of input and reference: (height / 4, width / 4, C) each."""
    from tfcorr.imaging import downscale

    height, width = job["size"]
    if job["inputs"]:
        image = _mosaic([_photo(path) for path in job["inputs"]], height, width, 0)
        reference = _mosaic([_photo(path) for path in job["references"]], height, width, 1)
    else:
        image, reference = _warped(height, width)
    small = downscale(image, _SCALE).astype(np.float32) / np.float32(255)
    upscaler = _matcher(job["model"])
    query = _in_blocks(small, 1, 6, lambda part: upscaler.query_features(part[None]))
    sharp = reference.astype(np.float32) / np.float32(255)
    found = _in_blocks(sharp, _SCALE, 12, lambda part: upscaler.reference_features(part[None])["conv3_1"])
    return query, found


def _in_blocks(image: np.ndarray, stride: int, margin: int, extract) -> np.ndarray:
    """Unit descriptors of an image in blocks of 64 rows of cells, the same as those of the whole."""
    from tfcorr.refsr.matching import l2_normalize

    parts, step = [], 64 * stride
    for top in range(0, image.shape[0], step):
        first, last = max(0, top - margin), min(image.shape[0], top + step + margin)
        features = np.asarray(l2_normalize(extract(image[first:last])))[0]
        inside = (top - first) // stride
        parts.append(features[inside : inside + (min(top + step, image.shape[0]) - top) // stride])
    return np.concatenate(parts)


def _photo(path: str) -> np.ndarray:
    from tfcorr.imaging import read_image
    from tfcorr.imaging.depth import convert_depth

    pixels = convert_depth(read_image(Path(path)).pixels, np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _mosaic(photos: list[np.ndarray], height: int, width: int, shift: int) -> np.ndarray:
    """Photographs beside and below each other, beginning with number `shift`, cut to (height, width)."""
    sides = [min(photo.shape[axis] for photo in photos) for axis in (0, 1)]
    rows, columns = (math.ceil(total / side) for total, side in zip((height, width), sides, strict=True))
    cut = [photo[: sides[0], : sides[1]] for photo in photos]
    lines = [
        np.concatenate(
            [cut[(row * columns + column + shift) % len(cut)] for column in range(columns)], axis=1
        )
        for row in range(rows)
    ]
    return np.ascontiguousarray(np.concatenate(lines)[:height, :width])


def _warped(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    import cv2

    from tfcorr.bench.networks import make_images

    image = make_images(height // _SCALE, width // _SCALE)[1]
    warped = cv2.warpPerspective(
        image, _WARP, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT
    )
    return image, warped


def _matcher(name: str):
    """The matcher of a model of either job."""
    from tfcorr.errors import TfcorrError
    from tfcorr.pretrained import CORRESPONDENCE, WEIGHTS_FILE, find_model, load_super_resolution, verify
    from tfcorr.refsr.extractor import CorrespondenceNetwork

    try:
        card = find_model(name, job=CORRESPONDENCE)
    except TfcorrError:
        return load_super_resolution(name)[0].correspondence
    verify(card)
    network = CorrespondenceNetwork(**card.architecture)
    network.build()
    network.load_weights(card.folder / WEIGHTS_FILE)
    return network
