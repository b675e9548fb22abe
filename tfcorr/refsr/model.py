"""C2-Matching whole: matcher and restorer behind one call, and references prepared once for many inputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import keras
from keras import ops

from tfcorr.ops import match_patches
from tfcorr.refsr.extractor import FEATURE_STRIDES, CorrespondenceNetwork, FeatureExtractor
from tfcorr.refsr.gate import flow_agreement
from tfcorr.refsr.matching import PATCH_SIZE, flow_from_index, l2_normalize, pre_offsets
from tfcorr.refsr.restorer import RestorationNetwork, RestorerSizes, preset

#: Cells of zeros between two references in one map: learned offsets at a border meet zeros, no neighbour.
GAP = 4


@dataclass(frozen=True)
class Placement:
    """Where a reference stands in the common map: first row, height and width, in cells of conv3_1."""

    row: int
    height: int
    width: int


@dataclass(frozen=True)
class References:
    """One or several references, ready to be matched and sampled.

    Attributes:
        descriptors: For each reference, float32 (1, h, w, 256), unit length.
        features: The reference features of all, in one map each (1, H, W, C): below one another, :data:`GAP`
            cells of zeros between them, zeros at the right of the narrower ones.
        placements: Where each stands.
    """

    descriptors: tuple
    features: dict
    placements: tuple[Placement, ...]

    @property
    def columns(self) -> int:
        """Width of the common map in cells of conv3_1."""
        return max(p.width for p in self.placements)


@dataclass(frozen=True)
class Correspondence:
    """Where each 3x3 patch of an input finds its like among the references.

    Attributes:
        number: int32 (1, h - 2, w - 2), which reference.
        position: int32 (1, h - 2, w - 2, 2), (y, x) of the patch's top-left cell in that reference.
        score: float32 (1, h - 2, w - 2), cosine of the two patches.
        index: int32 (1, h - 2, w - 2), row-major into the patches of the common map.
        agreement: float32 (1, h - 2, w - 2), how well the match agrees with those of neighbouring patches in
            the same reference, see :func:`tfcorr.refsr.gate.flow_agreement`.
    """

    number: object
    position: object
    score: object
    index: object
    agreement: object


def mosaic(features: list[dict], names: tuple[str, ...]) -> tuple[dict, tuple[Placement, ...]]:
    """Puts the features of several references into one map for each level.

    Args:
        features: For each reference a dict with ``conv3_1`` and ``names``, each (1, h * k, w * k, C).
        names: The features wanted, of ``relu3_1``, ``relu2_1``, ``relu1_1``.

    Returns:
        ``(maps, placements)``, see :class:`References`.
    """
    placements, row = [], 0
    for one in features:
        height, width = (int(n) for n in ops.shape(one["conv3_1"])[1:3])
        placements.append(Placement(row, height, width))
        row += height + GAP
    columns = max(p.width for p in placements)
    maps = {}
    for name in names:
        scale = FEATURE_STRIDES["relu3_1"] // FEATURE_STRIDES[name]
        parts = []
        for number, (one, place) in enumerate(zip(features, placements, strict=True)):
            # Odd sizes are floored by pooling: a finer map may have a few cells more than the coarse one
            # covers.
            part = one[name][:, : place.height * scale, : place.width * scale]
            below = 0 if number == len(features) - 1 else GAP * scale
            parts.append(ops.pad(part, [[0, 0], [0, below], [0, (columns - place.width) * scale], [0, 0]]))
        maps[name] = ops.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    return maps, tuple(placements)


class C2Matching(keras.Model):
    """Reference-based x4 super-resolution: C2-Matching (Jiang et al., CVPR 2021).

    Args:
        restorer: ``"full"``, ``"light"``, ``"compact"``, a :class:`RestorerSizes`, or a dict of its fields.
        reference_features: ``"matcher"`` takes the features that are aggregated from the matcher's own
            reference extractor (nothing to download); ``"vgg19"`` (the paper) from a third extractor, to be
            filled by :func:`tfcorr.refsr.extractor.load_imagenet_weights`.
        gate: Whether the restorer gets a gate for references that do not fit, whatever its sizes say; None
            leaves it to them.

    Call arguments:
        inputs: dict of ``lr`` (B, h, w, 3), at least 3x3, and ``reference`` (B, H, W, 3), at least 12x12:
            float, RGB in [0, 1]; any sizes.
        return_learned: Also return the learned offsets of each level, see
            :class:`tfcorr.refsr.restorer.RestorationNetwork`.
        differentiable_reference: Let gradients through the aggregated features to ``reference``, for training
            with a reference that is itself an output.

    Returns:
        float32 (B, 4 * h, 4 * w, 3), not clamped; with ``return_learned``, a tuple of it and the offsets.

    Matching is not differentiable; the extractors do not train here (paper, section 3.5: two stages).
    """

    def __init__(
        self,
        restorer="full",
        reference_features: str = "matcher",
        gate: bool | None = None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if reference_features not in ("matcher", "vgg19"):
            raise ValueError(f"`reference_features` must be 'matcher' or 'vgg19', got {reference_features!r}")
        if isinstance(restorer, str):
            restorer = preset(restorer)
        elif isinstance(restorer, dict):
            restorer = RestorerSizes(**restorer)
        if gate is not None:
            restorer = replace(restorer, gate=gate)
        self.reference_source = reference_features
        self.correspondence = CorrespondenceNetwork(name="correspondence", dtype=self.dtype_policy)
        self.correspondence.trainable = False
        self.vgg = None
        if reference_features == "vgg19":
            self.vgg = FeatureExtractor(name="vgg19", dtype=self.dtype_policy)
            self.vgg.trainable = False
        self.restorer = RestorationNetwork(restorer, name="restorer", dtype=self.dtype_policy)

    def build(self, input_shape=None):
        self.correspondence.build()
        if self.vgg is not None:
            self.vgg.build()
        self.restorer.build()
        self.built = True

    def call(self, inputs, return_learned: bool = False, differentiable_reference: bool = False):
        lr, reference = inputs["lr"], inputs["reference"]
        features = self.extract(reference, differentiable=differentiable_reference)
        matches = match_patches(self.describe(lr), l2_normalize(features["conv3_1"]), patch_size=PATCH_SIZE)
        columns = ops.shape(features["conv3_1"])[2]
        gate = None
        if self.gated:
            gate = self.gate(matches.score, flow_agreement(flow_from_index(matches.index, columns)))
        offsets = pre_offsets(matches.index, columns)
        return self.restore(lr, features, offsets, gate=gate, return_learned=return_learned)

    def describe(self, lr):
        """Unit descriptors of the input: (B, h, w, 3) in [0, 1] -> float32 (B, h, w, 256)."""
        return ops.stop_gradient(l2_normalize(self.correspondence.query_features(lr)))

    def extract(self, reference, differentiable: bool = False):
        """Features of a reference (B, H, W, 3) in [0, 1]: dict of ``conv3_1`` and those of the restorer.

        With ``differentiable``, those of the restorer let gradients through to the reference.
        """
        features = dict(self.correspondence.reference_features(reference))
        if self.vgg is not None:
            features.update({name: f for name, f in self.vgg(reference).items() if name != "conv3_1"})
        if self.restorer.config.detail:
            features["detail"] = ops.stop_gradient(self.restorer.detail_of(reference))
        extracted = {"conv3_1": ops.stop_gradient(features["conv3_1"])}
        for name in self.restorer.reference_features:
            extracted[name] = features[name] if differentiable else ops.stop_gradient(features[name])
        return extracted

    def prepare(self, references: list) -> References:
        """Extracts one or several references, each (1, H, W, 3) in [0, 1], at least 12x12."""
        return self.assemble([self.extract(reference) for reference in references])

    def assemble(self, features: list[dict]) -> References:
        """:class:`References` from the features of each, as :meth:`extract` gives them."""
        maps, placements = mosaic(features, self.restorer.reference_features)
        return References(tuple(l2_normalize(f["conv3_1"]) for f in features), maps, placements)

    def match(self, descriptors, references: References, search=None) -> Correspondence:
        """The best patch of all references for each patch of the input; ties go to the first reference.

        Every reference is matched by itself, so no patch crosses from one into another.

        Args:
            descriptors: (1, h, w, 256) from :meth:`describe`.
            references: From :meth:`prepare`.
            search: What stands in for the exact search of :func:`tfcorr.ops.match_patches`: a function of a
                reference's number, ``descriptors`` and that reference's descriptors that returns the same.
        """
        best = None
        for number, (candidate, place) in enumerate(
            zip(references.descriptors, references.placements, strict=True)
        ):
            if search is None:
                index, score = match_patches(descriptors, candidate, patch_size=PATCH_SIZE)
            else:
                index, score = map(ops.convert_to_tensor, search(number, descriptors, candidate))
            columns = place.width - (PATCH_SIZE - 1)
            row = ops.floor_divide(index, columns)
            position = ops.stack([row, index - row * columns], axis=-1)
            agreement = flow_agreement(flow_from_index(index, place.width))
            here = (ops.full_like(index, number), position, score, agreement)
            if best is None:
                best = here
            else:
                wins = score > best[2]
                best = (
                    ops.where(wins, here[0], best[0]),
                    ops.where(ops.expand_dims(wins, -1), position, best[1]),
                    ops.where(wins, score, best[2]),
                    ops.where(wins, agreement, best[3]),
                )
        number, position, score, agreement = best
        rows = ops.take(ops.convert_to_tensor([p.row for p in references.placements], dtype="int32"), number)
        index = (position[..., 0] + rows) * (references.columns - (PATCH_SIZE - 1)) + position[..., 1]
        return Correspondence(number, position, score, index, agreement)

    @property
    def gated(self) -> bool:
        """Whether :meth:`restore` needs a gate."""
        return self.restorer.gate is not None

    def gate(self, score, agreement):
        """The confidence that weighs what comes from the reference, for a model with a gate.

        Args:
            score, agreement: float32 (B, h - 2, w - 2), see :class:`Correspondence`.

        Returns:
            float32 (B, h, w, 1) in (0, 1).
        """
        return self.restorer.gate(score, agreement)

    def restore(self, lr, features: dict, offsets, origin=None, gate=None, return_learned: bool = False):
        """Runs the restorer.

        Args:
            lr: (B, h, w, 3) in [0, 1].
            features: Reference features by name, from :meth:`extract` or :attr:`References.features`.
            offsets: float32 (B, h, w, 18), :func:`tfcorr.refsr.matching.pre_offsets` relative to this input's
                grid.
            origin: Optional int32 (2,), (y, x) of ``lr`` in the whole input, if it is a tile.
            gate: float32 (B, h, w, 1) from :meth:`gate`; for a model without one, None.
            return_learned: As in :meth:`call`.

        Returns:
            float32 (B, 4 * h, 4 * w, 3), not clamped; with ``return_learned``, a tuple, as of :meth:`call`.
        """
        inputs = {name: features[name] for name in self.restorer.reference_features}
        inputs.update(lr=lr, pre_offset=offsets)
        if origin is not None:
            inputs["origin"] = origin
        if gate is not None:
            inputs["gate"] = gate
        return self.restorer(inputs, return_learned=return_learned)

    def get_config(self):
        return {
            **super().get_config(),
            "restorer": asdict(self.restorer.config),
            "reference_features": self.reference_source,
        }

    @property
    def architecture(self) -> dict:
        """What a model's card stores, for :meth:`from_architecture`: every size, as a preset may change."""
        return {"restorer": asdict(self.restorer.config), "reference_features": self.reference_source}

    @classmethod
    def from_architecture(cls, architecture: dict, **kwargs) -> C2Matching:
        """A built model of the sizes in ``architecture`` with random weights; ``kwargs`` go to `keras.Model`.

        Raises:
            ValueError: unknown keys or values, named.
        """
        unknown = set(architecture) - {"restorer", "reference_features", "gate"}
        if unknown:
            raise ValueError(
                f"unknown architecture keys {sorted(unknown)}; known: restorer, reference_features, gate"
            )
        gate = architecture.get("gate")
        if gate is not None and not isinstance(gate, bool):
            raise ValueError(f"architecture.gate must be true or false, got {gate!r}")
        restorer = architecture.get("restorer", "full")
        if isinstance(restorer, dict):
            try:
                restorer = RestorerSizes(**restorer)
            except TypeError as error:
                raise ValueError(f"architecture.restorer: {error}") from error
        model = cls(restorer, architecture.get("reference_features", "matcher"), gate, **kwargs)
        model.build()
        return model

    def take_weights(self, source: C2Matching) -> list[str]:
        """Copies the weights of a model that may lack a gate, a base, or its detail, where this one has them.

        A base brings its own content path: then only what has to do with the reference is copied, the
        levels that aggregate one and what leads from level to level, and the last convolution begins anew.

        Args:
            source: A built model of otherwise the same architecture.

        Returns:
            Names of this model's weights that ``source`` lacks and that were left as they are.

        Raises:
            ValueError: any other weight is missing here or there, or has another shape; it is named. Nothing
                was copied then.
        """
        ours, theirs = _named_weights(self), _named_weights(source)
        own = ("restorer/gate/", "restorer/detail_share/", "restorer/large/cue_head/")
        if self.restorer.base is not None and source.restorer.base is None:
            theirs = {name: w for name, w in theirs.items() if not name.startswith(_CONTENT_PATH)}
            own += ("restorer/base/", "restorer/entry_", *_CONTENT_PATH)
        absent = [name for name in ours if name not in theirs and name.startswith(own)]
        if lacking := set(ours) - set(theirs) - set(absent):
            raise ValueError(f"{min(lacking)} is not among the weights given")
        if unknown := set(theirs) - set(ours):
            raise ValueError(f"{min(unknown)} is among the weights given, and not in this model")
        for name, weight in theirs.items():
            if weight.shape != ours[name].shape:
                raise ValueError(f"{name} has shape {weight.shape}, expected {ours[name].shape}")
        for name, weight in theirs.items():
            ours[name].assign(weight)
        return absent


# What a restorer over a base does not take from one without, see `C2Matching.take_weights`.
_CONTENT_PATH = ("restorer/conv_first/", "restorer/content_", "restorer/small/", "restorer/tail_large2/")


def _named_weights(model: C2Matching) -> dict:
    """The weights by their paths below the model, whose own name differs from one instance to the next."""
    return {weight.path.removeprefix(f"{model.name}/"): weight for weight in model.weights}
