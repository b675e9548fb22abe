"""Matching of large images in two steps: candidates by short codes, then the exact score of the best of them.

`tfcorr.ops.match_patches` compares every patch of the input with every patch of the reference, which for
images of 3 megapixels takes 18 TFLOP. Here the reference's patches fall into clusters of similar ones; an
input patch is compared, by codes of 96 numbers instead of 2304, with those of the nearest clusters only. What
wins in each cluster, and what the matches of the neighbouring patches suggest, is ranked with finer codes; of
the last ones the exact score decides. A match may therefore differ from the exact one; its score is its own.

Works on NumPy arrays, on any Keras backend. Convention: maps are (y, x, channels); a patch is named by its
top-left cell, row-major in the grid of the whole patches of its map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from threadpoolctl import threadpool_limits

from tfcorr.ops.match_patches import NORM_EPSILON
from tfcorr.refsr.matching import PATCH_SIZE
from tfcorr.toolchain import usable_cores

__all__ = ["WORTHWHILE_PAIRS", "ReferenceIndex"]

#: Pairs of patches from which on the exact search takes many times as long as this one.
WORTHWHILE_PAIRS = 2 * 10**9

# Numbers that are kept of a descriptor, and of a patch of such cells in its code.
_CELL_WIDTH = 48
_CODE_WIDTH = 96
# Nearest clusters that an input patch is compared with: on the average, as some are in doubt between many and
# others are not, and at most. Parts of a cluster of which each names its best.
_PROBES = 16
_MOST_PROBES = 28
_PARTS = 4
# Candidates that are ranked again, and how many of all get their exact score.
_RANKED = 6
_FINAL = 3
# Rounds in which each patch tries what its neighbours have found.
_ROUNDS = 2
# Patches that clusters and codes are made from, the clusters, and rounds of k-means.
_SAMPLE = 16384
_CLUSTERS = 384
_CLUSTERING_ROUNDS = 5
# Numbers of a block at work: they stay in the cache.
_BLOCK = 1 << 18

_HALO = PATCH_SIZE - 1
_NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))


class ReferenceIndex:
    """The patches of a reference, ready to be searched.

    Args:
        reference: (H, W, C) float32, finite, unit descriptors; at least 3x3.
        threads: that work at a time; None: all processors.

    Attributes:
        shape: rows and columns of the reference's patches.
    """

    def __init__(self, reference: np.ndarray, *, threads: int | None = None):
        self._threads = usable_cores() if threads is None else threads
        self._reference = _Patches(np.ascontiguousarray(reference, np.float32))
        self.shape = self._reference.shape
        rng = np.random.default_rng(0)
        cells = self._reference.cells
        some = cells[rng.choice(len(cells), min(_SAMPLE, len(cells)), replace=False)]
        self._cell_basis = _principal_directions(some, _CELL_WIDTH)
        self._reduced = _Patches(self._reference.map @ self._cell_basis)
        self._weight = 1.0 / (self._reference.norms() + np.float32(NORM_EPSILON))

        count = self.shape[0] * self.shape[1]
        sample = np.sort(rng.choice(count, min(_SAMPLE, count), replace=False))
        patches = np.concatenate(list(self._reduced.runs(sample)), axis=1) * self._weight[sample, None]
        self._code_basis = _principal_directions(patches, _CODE_WIDTH)
        codes = _codes(self._reduced, self._code_basis) * self._weight[:, None]
        self._centres = _centres(codes[sample], rng)
        nearest = np.concatenate(
            self._in_blocks(
                len(codes), len(self._centres), lambda part: _best(codes[part] @ self._centres.T)[0]
            )
        )
        order = np.argsort(nearest, kind="stable").astype(np.int32)
        clusters = np.split(order, np.searchsorted(nearest[order], np.arange(1, len(self._centres))))
        # Repeated members fill a cluster up to parts of one length.
        clusters = [np.resize(members, -(-len(members) // _PARTS) * _PARTS) for members in clusters]
        self._members = np.concatenate(clusters)
        self._begins = np.cumsum([0, *map(len, clusters)])
        self._codes = codes[self._members]

    def search(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The match of each patch of an input.

        Args:
            query: (h, w, C) float32, unit descriptors.

        Returns:
            index, score: int32 and float32 (h - 2, w - 2), as of `tfcorr.ops.match_patches`.
        """
        patches = _Patches(np.ascontiguousarray(query, np.float32))
        reduced = _Patches(patches.map @ self._cell_basis)
        found = self._candidates(_codes(reduced, self._code_basis))
        found, similarity = _largest(found, self._similarities(reduced, found, self._reduced), _FINAL)
        for _ in range(_ROUNDS):
            suggested = self._suggested(found[:, 0].reshape(patches.shape))
            theirs = self._similarities(reduced, suggested, self._reduced)
            found, similarity = _largest(
                np.concatenate([found, suggested], axis=1),
                np.concatenate([similarity, theirs], axis=1),
                _FINAL,
            )
        similarity = self._similarities(patches, found, self._reference)
        best, value = _best(similarity)
        index = np.take_along_axis(found, best[:, None], axis=1)[:, 0]
        score = value / (patches.norms() + np.float32(NORM_EPSILON))
        return index.reshape(patches.shape), score.reshape(patches.shape)

    def _candidates(self, codes: np.ndarray) -> np.ndarray:
        """The most promising of the best patches of the nearest clusters' parts: int32 (n, _RANKED)."""
        most = min(_MOST_PROBES, len(self._centres))
        clusters = np.empty((len(codes), most), np.int32)
        behind = np.empty((len(codes), most), np.float32)

        def nearest(part: slice) -> None:
            similarity = codes[part] @ self._centres.T
            some = np.argpartition(similarity, len(self._centres) - most, axis=1)[:, -most:]
            clusters[part] = some
            behind[part] = similarity.max(axis=1, keepdims=True) - np.take_along_axis(
                similarity, some, axis=1
            )

        self._in_blocks(len(codes), len(self._centres), nearest)
        # The nearest ones of all patches together, as many as are affordable.
        affordable = min(_PROBES * len(codes), behind.size) - 1
        visited = np.flatnonzero(behind <= np.partition(behind, affordable, axis=None)[affordable])
        visited = visited[np.argsort(clusters.ravel()[visited], kind="stable")]
        begins = np.searchsorted(clusters.ravel()[visited], np.arange(len(self._centres) + 1))
        found = np.zeros((clusters.size, _PARTS), np.int32)
        similarity = np.full((clusters.size, _PARTS), -np.inf, np.float32)

        def visit(cluster: int) -> None:
            slots = visited[begins[cluster] : begins[cluster + 1]]
            members = slice(self._begins[cluster], self._begins[cluster + 1])
            theirs = self._codes[members].T
            if not theirs.size:  # all members of its sample have another cluster in the end
                return
            parts = self._members[members].reshape(_PARTS, -1)
            step = max(1, _BLOCK // theirs.shape[1])
            for first in range(0, len(slots), step):
                some = slots[first : first + step]
                best, similarity[some] = _best((codes[some // most] @ theirs).reshape(-1, *parts.shape))
                found[some] = parts[np.arange(_PARTS), best]

        self._map(visit, range(len(self._centres)))
        found, similarity = (array.reshape(len(codes), -1) for array in (found, similarity))
        count = min(_RANKED, found.shape[1])

        def largest(part: slice) -> np.ndarray:
            order = np.argpartition(similarity[part], found.shape[1] - count, axis=1)[:, -count:]
            return np.take_along_axis(found[part], order, axis=1)

        return np.concatenate(self._in_blocks(len(codes), found.shape[1], largest))

    def _suggested(self, found: np.ndarray) -> np.ndarray:
        """What the matches of the four neighbours suggest: the patch beside theirs, int32 (n, 4)."""
        rows, columns = self.shape
        y, x = np.divmod(np.pad(found, 1, mode="edge"), columns)
        height, width = found.shape
        suggested = []
        for dy, dx in _NEIGHBOURS:
            there = np.s_[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
            row, column = np.clip(y[there] - dy, 0, rows - 1), np.clip(x[there] - dx, 0, columns - 1)
            suggested.append((row * columns + column).ravel())
        return np.stack(suggested, axis=1).astype(np.int32)

    def _similarities(self, query: _Patches, found: np.ndarray, reference: _Patches) -> np.ndarray:
        """q . r / (|r| + 1e-5) of each patch with its candidates: float32 (n, m), for candidates (n, m)."""

        def similarity(part: slice) -> np.ndarray:
            candidates = found[part]
            ours = query.runs(np.arange(part.start, part.stop))
            theirs = reference.runs(candidates)
            products = (np.einsum("nd,nmd->nm", q, r) for q, r in zip(ours, theirs, strict=True))
            return sum(products) * self._weight[candidates]

        return np.concatenate(self._in_blocks(len(found), found.shape[1] * reference.width, similarity))

    def _in_blocks(self, count: int, width: int, work: Callable[[slice], Any]) -> list:
        """The results of work on slices of [0, count), each of about `_BLOCK` numbers, `width` for one."""
        step = max(1, _BLOCK // width)
        parts = [slice(first, min(first + step, count)) for first in range(0, count, step)]
        return self._map(work, parts)

    def _map(self, work: Callable[[Any], Any], items: Iterable) -> list:
        """The results of work on items, by as many threads as are allowed, none of them NumPy's own."""
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(work, items))


class _Patches:
    """The patches of a map (H, W, C), without a copy of each."""

    def __init__(self, features: np.ndarray):
        height, width, channels = features.shape
        self.map = features
        self.shape = (height - _HALO, width - _HALO)
        self.cells = features.reshape(-1, channels)
        self.width = PATCH_SIZE**2 * channels
        # Of each cell the run of three in its row; those at the right border are asked for by no patch.
        item = features.itemsize
        self._runs = as_strided(
            self.cells,
            (len(self.cells) - _HALO, PATCH_SIZE * channels),
            (channels * item, item),
            writeable=False,
        )

    def runs(self, index: np.ndarray) -> Iterator[np.ndarray]:
        """The three rows of the patches of some numbers: (..., 3 * C) each."""
        row, column = np.divmod(index, self.shape[1])
        first = row * self.map.shape[1] + column
        return (self._runs[first + i * self.map.shape[1]] for i in range(PATCH_SIZE))

    def norms(self) -> np.ndarray:
        """Euclidean norms of all patches, (rows * columns,)."""
        energy = np.einsum("yxc,yxc->yx", self.map, self.map)
        rows, columns = self.shape
        return np.sqrt(
            sum(energy[i : i + rows, j : j + columns] for i in range(PATCH_SIZE) for j in range(PATCH_SIZE))
        ).ravel()


def _codes(reduced: _Patches, basis: np.ndarray) -> np.ndarray:
    """The codes of all patches: (rows * columns, _CODE_WIDTH)."""
    rows, columns = reduced.shape
    taps = basis.reshape(PATCH_SIZE, PATCH_SIZE, -1, basis.shape[1])
    codes = np.zeros((rows, columns, basis.shape[1]), np.float32)
    for i in range(PATCH_SIZE):
        for j in range(PATCH_SIZE):
            codes += reduced.map[i : i + rows, j : j + columns] @ taps[i, j]
    return codes.reshape(rows * columns, -1)


def _principal_directions(vectors: np.ndarray, count: int) -> np.ndarray:
    """The orthonormal directions that keep most of the vectors' energy: (d, count) for vectors (n, d).

    Nothing is centred: what has to be kept are products of the vectors.
    """
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    return np.ascontiguousarray(directions[:, ::-1][:, :count], dtype=np.float32)


def _centres(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit centres of clusters of codes (n, d), by k-means on the sphere; fewer of few codes."""
    count = min(_CLUSTERS, -(-len(codes) // 16))
    centres = codes[rng.choice(len(codes), count, replace=False)]
    for _ in range(_CLUSTERING_ROUNDS):
        centres = centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
        nearest, _ = _best(codes @ centres.T)
        order = np.argsort(nearest, kind="stable")
        present, begins = np.unique(nearest[order], return_index=True)
        # Clusters that have lost all their members keep their centre.
        centres[present] = np.add.reduceat(codes[order], begins, axis=0)
    return centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)


def _best(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place and value of the largest number along the last axis."""
    best = similarity.argmax(axis=-1)
    return best, np.take_along_axis(similarity, best[..., None], axis=-1)[..., 0]


def _largest(found: np.ndarray, similarity: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The candidates with the largest similarities, each once, the best first, and these: (n, count) both."""
    similarity = similarity.copy()
    for column in range(1, found.shape[1]):
        repeated = (found[:, :column] == found[:, column : column + 1]).any(axis=1)
        similarity[repeated, column] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(similarity, order, axis=1)
