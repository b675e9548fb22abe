"""Training samples of PMD: warped photographs and annotated pairs for the teacher, real pairs with their
hypotheses for the student.

A sample has the network's inputs, either two images ``source`` and ``target``, float32 (size, size, 3) in
[0, 1], or their cached feature maps ``source_16``, ``source_32``, ``target_16``, ``target_32``; and flows on
the feature grid, float32 (h, w, 2), (dx, dy) in [-1, 1] units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tfcorr.config.semantic import ColourJitter, Warps
from tfcorr.semantic.datasets import ImagePair, KeypointPair
from tfcorr.semantic.features import (
    STRIDES,
    Extractor,
    FeatureCache,
    feature_fields,
    files_key,
    network_image,
)
from tfcorr.semantic.hypotheses import DIRECTIONS
from tfcorr.semantic.keypoints import keypoint_flow
from tfcorr.semantic.network import mirror_mean
from tfcorr.semantic.records import Records
from tfcorr.semantic.synthetic import (
    affine_places,
    change_colours,
    flip_flow,
    identity_places,
    moved_source,
    random_affine,
    random_pair,
    warp,
)
from tfcorr.training.photos import DataError, PhotoCache
from tfcorr.training.samples import Samples

__all__ = [
    "DistillationSamples",
    "KeypointSamples",
    "PairInputs",
    "PooledSamples",
    "RehearsedSamples",
    "WarpedSamples",
    "make_pool",
]

ROLES = ("source", "target")


class WarpedSamples(Samples):
    """Two warped views of a photograph, with ``flow`` T2S and ``valid`` (h, w), 1 where it holds.

    Args:
        images: paths of photographs.
        photos: decodes them.
        size: side of the views.
        grid: (h, w), the feature grid.
        warps, jitter: how views are drawn.
        batch, seed, augment: see `Samples`; without ``augment``, photographs come in their order, unflipped
            and in their own colours.
    """

    def __init__(
        self,
        images: Sequence[Path],
        photos: PhotoCache,
        *,
        size: int,
        grid: tuple[int, int],
        warps: Warps,
        jitter: ColourJitter | None,
        batch: int,
        seed: int,
        augment: bool = True,
    ):
        super().__init__(images, batch, seed, augment)
        self.photos = photos
        self.size = size
        self.grid = grid
        self.warps = warps
        self.jitter = jitter

    def sample(self, item: Path, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        photo = self.photos.get(item)
        if photo is None:
            return None
        flip = self.augment and rng.random() < 0.5
        pair = random_pair(photo, rng, self.size, self.warps, flip=flip)
        views = {"source": pair.source, "target": pair.target}
        if self.augment:
            views = {role: change_colours(view, rng, self.jitter) for role, view in views.items()}
        flow, valid = pair.flow(self.grid)
        return {
            **{role: view.astype(np.float32) / np.float32(255) for role, view in views.items()},
            "flow": flow.astype(np.float32),
            "valid": valid.astype(np.float32),
        }


def make_pool(
    folder: Path,
    samples: WarpedSamples,
    extractor: Extractor,
    count: int,
    *,
    shard: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Records:
    """Draws ``count`` warped pairs once and keeps the features of their views; goes on where it was stopped.

    Args:
        folder: of the records.
        samples: draws the pairs, with batches of 1.
        extractor: the backbone.
        count: pairs.
        shard: pairs in a file.
        progress: called with (shards done, shards to do).

    Returns:
        Records with the four feature maps (float16), ``flow`` and ``valid``.
    """
    fields = {}
    for role in ROLES:
        fields.update(feature_fields(extractor, f"{role}_"))
    fields["flow"] = ((*samples.grid, 2), "<f4")
    fields["valid"] = (samples.grid, "<f4")
    recipe = {"warps": samples.warps, "jitter": samples.jitter, "seed": samples.seed, "all": samples.augment}
    key = f"{extractor.key}-{files_key(samples.items, **recipe)}"
    records = Records(folder, fields, count, shard=shard, key=key)
    records.check()
    todo = records.missing()
    for done, number in enumerate(todo, start=1):
        batches = [samples.batch(step) for step in records.members(number)]
        drawn = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        arrays = {name: drawn[name] for name in ("flow", "valid")}
        for role in ROLES:
            arrays.update({f"{role}_{stride}": map_ for stride, map_ in extractor(drawn[role]).items()})
        records.write(number, arrays)
        progress(done, len(todo))
    return records


class PooledSamples(Samples):
    """Warped pairs of a pool, see `make_pool`; a sample has feature maps instead of images."""

    def __init__(self, records: Records, batch: int, seed: int, augment: bool = True):
        super().__init__(range(records.count), batch, seed, augment)
        self.records = records

    def sample(self, item: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {name: array[0].astype(np.float32) for name, array in self.records.read([item]).items()}


class PairInputs:
    """The network's inputs for real pairs, by their number.

    Args:
        pairs: of photographs.
        photos: decodes them.
        size: side of the network's images.
        cache: of their feature maps; without it the inputs are images.
        mirror: give the mean of cached maps and the mirror image's, see
            `tfcorr.semantic.network.SemanticMatchingNetwork`, which does it where the inputs are images.
    """

    def __init__(
        self,
        pairs: Sequence[ImagePair],
        photos: PhotoCache,
        size: int,
        cache: FeatureCache | None = None,
        mirror: bool = False,
    ):
        self.pairs = pairs
        self.photos = photos
        self.size = size
        self.cache = cache
        self.mirror = mirror

    def one(self, number: int, flip: bool = False) -> dict[str, np.ndarray] | None:
        """The inputs of one pair, ``flip`` mirrors both images; None if one of them cannot be read."""
        pair = self.pairs[number]
        flip = flip != pair.flip
        inputs = {}
        for role in ROLES:
            path = getattr(pair, role)
            if self.cache is not None:
                maps = self.cache.read(path, flip)
                if maps is None:
                    return None
                if self.mirror:
                    others = self.cache.read(path, not flip)
                    maps = {stride: mirror_mean(map_, others[stride]) for stride, map_ in maps.items()}
                inputs.update({f"{role}_{stride}": maps[stride] for stride in STRIDES})
            else:
                photo = self.photos.get(path)
                if photo is None:
                    return None
                inputs[role] = network_image(photo, self.size, flip)
        return inputs

    def many(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """The inputs of some pairs, stacked; pairs that cannot be read get zeros."""
        rows = [self.one(number) for number in numbers]
        some = next((row for row in rows if row is not None), None)
        if some is None:
            raise DataError(f"none of the pairs {numbers[0]} to {numbers[-1]} can be read")
        blank = {name: np.zeros_like(array) for name, array in some.items()}
        return {name: np.stack([(row or blank)[name] for row in rows]) for name in some}


class KeypointSamples(Samples):
    """Annotated pairs for a strongly supervised teacher: ``flow`` T2S around the keypoints, ``valid`` (h, w).

    Args:
        inputs: of `KeypointPair`s.
        grid: (h, w), the feature grid.
        radius: see `tfcorr.semantic.keypoints.keypoint_flow`.
        batch, seed, augment: see `Samples`; ``augment`` mirrors half of the pairs.
    """

    def __init__(
        self,
        inputs: PairInputs,
        *,
        grid: tuple[int, int],
        radius: float,
        batch: int,
        seed: int,
        augment: bool = True,
    ):
        super().__init__(range(len(inputs.pairs)), batch, seed, augment)
        self.inputs = inputs
        self.grid = grid
        self.radius = radius

    def sample(self, item: int, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        flip = bool(self.augment and rng.random() < 0.5)
        inputs = self.inputs.one(item, flip)
        if inputs is None:
            return None
        pair: KeypointPair = self.inputs.pairs[item]
        sizes = [self._size(pair, role) for role in ROLES]
        if None in sizes:
            return None
        flow, valid = keypoint_flow(
            pair.source_points, pair.target_points, *sizes, grid=self.grid, radius=self.radius
        )
        if flip != pair.flip:
            flow, valid = flip_flow(flow), valid[:, ::-1]
        return {**inputs, "flow": flow.astype(np.float32), "valid": valid.astype(np.float32)}

    def _size(self, pair: KeypointPair, role: str) -> tuple[int, int] | None:
        photo = self.inputs.photos.get(getattr(pair, role))
        return None if photo is None else photo.shape[:2]


class DistillationSamples(Samples):
    """Real pairs with their hypotheses.

    Beside the inputs a sample has, for each trained direction, ``flows_<direction>`` (m, h, w, 2),
    ``confidence_<direction>`` (m, h, w, 1) and ``valid_<direction>`` (m, h, w, 1), bool, which matches lie
    within the other image; ``index``, the pair's number; ``flipped``, whether the pair is mirrored against
    what the variances are kept for.

    Args:
        inputs: of the pairs.
        hypotheses: their records.
        directions: trained ones.
        batch, seed, augment: see `Samples`.
        flip: mirror half of the pairs. This and the following only with ``augment``.
        jitter: change the images' colours; needs images as inputs, as the next does.
        affine: deviation of a random affine warp of the source, which leaves the target's cells, and so the
            variances, where they are. Matches that it moves out of the source are not valid (published).
    """

    def __init__(
        self,
        inputs: PairInputs,
        hypotheses: Records,
        *,
        directions: Sequence[str] = DIRECTIONS[:1],
        batch: int,
        seed: int,
        augment: bool = True,
        flip: bool = True,
        jitter: ColourJitter | None = None,
        affine: float = 0.0,
    ):
        super().__init__(range(len(inputs.pairs)), batch, seed, augment)
        if (jitter or affine) and inputs.cache is not None:
            raise DataError("jitter and affine need images; they do not go with cache_features")
        if affine and tuple(directions) != DIRECTIONS[:1]:
            raise DataError(f"affine: only for direction {DIRECTIONS[0]}, got {', '.join(directions)}")
        self.inputs = inputs
        self.hypotheses = hypotheses
        self.directions = directions
        self.flip = flip
        self.jitter = jitter
        self.affine = affine

    def sample(self, item: int, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        if not self.augment:
            return self._of(item, False)
        sample = self._of(item, bool(self.flip and rng.random() < 0.5))
        if sample is None:
            return None
        if self.affine:
            self._warp_source(sample, random_affine(rng, self.affine))
        if self.jitter:
            for role in ROLES:
                colours = np.rint(sample[role] * 255).astype(np.uint8)
                sample[role] = change_colours(colours, rng, self.jitter).astype(np.float32) / np.float32(255)
        return sample

    def _warp_source(self, sample: dict[str, np.ndarray], matrix: np.ndarray) -> None:
        size = self.inputs.size
        sample["source"] = warp(sample["source"], affine_places(matrix, identity_places(size, size)))
        flows = moved_source(sample["flows_t2s"], matrix)
        places = flows + identity_places(*flows.shape[-3:-1])
        sample["flows_t2s"] = flows.astype(np.float32)
        sample["valid_t2s"] = np.all(np.abs(places) <= 1, axis=-1, keepdims=True)

    def _of(self, item: int, flip: bool) -> dict[str, np.ndarray] | None:
        sample = self.inputs.one(item, flip)
        if sample is None:
            return None
        found = self.hypotheses.read([item])
        for direction in self.directions:
            flows = found[f"flows_{direction}"][0].astype(np.float32)
            confidence = found[f"confidence_{direction}"][0].astype(np.float32)
            if flip:
                flows, confidence = flip_flow(flows), np.ascontiguousarray(confidence[..., ::-1, :])
            sample[f"flows_{direction}"] = flows
            sample[f"confidence_{direction}"] = confidence
            sample[f"valid_{direction}"] = np.ones(confidence.shape, bool)
        sample["index"] = np.int64(item)
        sample["flipped"] = np.bool_(flip)
        return sample

    def every_pair(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches of all pairs that can be read, each once, in order, as they are: for the E-step."""
        for first in range(0, len(self.items), self.batch_size):
            found = [self._of(item, False) for item in self.items[first : first + self.batch_size]]
            rows = [row for row in found if row is not None]
            if rows:
                yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class RehearsedSamples(Samples):
    """Real pairs with their hypotheses, and in each batch some warped pairs, whose truth stands for theirs.

    ``known`` (B,) says which are warped. Theirs are ``index`` 0, which means nothing; hypotheses that all
    equal the flow, with a confidence of 1 and valid where it holds; and nothing valid in direction ``s2t``,
    where it is not known.

    Args:
        real: makes the first samples of a batch.
        warped: makes the rest; from `WarpedSamples` or `PooledSamples`, with the same kind of inputs.
    """

    def __init__(self, real: DistillationSamples, warped: Samples):
        super().__init__(
            [*real.items, *warped.items], real.batch_size + warped.batch_size, real.seed, real.augment
        )
        self.real = real
        self.warped = warped

    def batch(self, step: int) -> dict[str, np.ndarray]:
        real, warped = self.real.batch(step), self.warped.batch(step)
        flow, valid = warped.pop("flow"), warped.pop("valid")
        for direction in self.real.directions:
            known = direction == "t2s"
            flows = np.broadcast_to(flow[:, None], (len(flow), *real[f"flows_{direction}"].shape[1:]))
            holds = np.broadcast_to(valid[:, None, :, :, None] > 0, (*flows.shape[:-1], 1))
            warped[f"flows_{direction}"] = flows if known else np.zeros_like(flows)
            warped[f"confidence_{direction}"] = np.ones(holds.shape, np.float32)
            warped[f"valid_{direction}"] = holds if known else np.zeros_like(holds)
        count = self.warped.batch_size
        warped["index"] = np.zeros(count, real["index"].dtype)
        warped["flipped"] = np.zeros(count, real["flipped"].dtype)
        both = {name: np.concatenate([array, warped[name]]) for name, array in real.items()}
        return {**both, "known": np.arange(self.batch_size) >= self.real.batch_size}
