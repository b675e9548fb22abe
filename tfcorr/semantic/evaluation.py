"""Measuring a matcher: on annotated pairs (`tfcorr.semantic.pck`), and on warps of held-out photographs.

Beside a model stands what it has to beat: its teacher, the plain average of the teacher's hypotheses, the
same backbone and matching without any training, and no flow at all. All see the same pairs, so that
differences are paired, with bootstrap intervals.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tfcorr
from tfcorr.atomic import write_bytes
from tfcorr.config.semantic import Benchmark, Evaluation, SemanticEvaluateConfig, SyntheticBenchmark
from tfcorr.errors import TfcorrError
from tfcorr.pretrained import WEIGHTS_FILE, ModelCard
from tfcorr.semantic.data import WarpedSamples
from tfcorr.semantic.datasets import (
    ImagePair,
    KeypointPair,
    find_image_set,
    find_pairs,
    in_training,
    overlap_warning,
)
from tfcorr.semantic.features import STRIDES, files_key, network_image
from tfcorr.semantic.pck import PairScore, bootstrap, score_pair, summarise
from tfcorr.semantic.synthetic import identity_places
from tfcorr.training.photos import DataError, PhotoCache

__all__ = [
    "Matches",
    "benchmark",
    "headline",
    "run_evaluation",
    "table",
]

# How the names of methods end that do, or do not, average over an image and its mirror image.
_MIRRORED, _PLAIN = "_mirrored", "_plain"
_PAPERS_HYPOTHESES = 4  # m, section 4.1
_MOST_CLASSES = 25  # with a row of the printed table each
#: (B, S, S, 3) source and target in [0, 1] -> flow T2S (B, h, w, 2) in [-1, 1] units.
Matches = Callable[[np.ndarray, np.ndarray], np.ndarray]


def run_evaluation(
    evaluation: Evaluation,
    *,
    model: str | Path,
    teacher: str | Path | None = None,
    data_root: str | None = None,
    trained: Sequence[ImagePair] = (),
    figures: Path | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures a model, and what stands beside it, on benchmarks and on warps of held-out photographs.

    Args:
        evaluation: what is measured.
        model, teacher: names or folders of models.
        data_root: see `tfcorr.config.resolve_data_path`.
        trained: pairs that the model was trained on.
        figures: a folder for pictures of the keypoints' errors, one a pair.
        report: prints a line.

    Returns:
        A dictionary for JSON: ``models``, names and checksums, and of how many hypotheses the ``average`` is;
        ``benchmarks``, by name, with ``methods`` (see `summarise`), ``differences``
        (model - other, in PCK per pair, with intervals), ``pairs`` (each one's score) and, where test pairs
        stand in the training list, ``without_overlap``; ``synthetic``, by name, the share of cells within
        each alpha; ``skipped``, files that cannot be read.

    Raises:
        TfcorrError: a model or the data cannot be used.
    """
    methods, size, cards = _methods(evaluation, model, teacher)
    photos = PhotoCache(keep=200)
    result: dict[str, Any] = {
        "models": cards,
        "tfcorr": tfcorr.__version__,
        "benchmarks": {},
        "synthetic": {},
    }
    for one in evaluation.benchmarks:
        known = [*trained, *(pair for pairs in one.training for pair in find_pairs(pairs, data_root))]
        result["benchmarks"][one.name] = _benchmark(
            one, methods, size, photos, data_root, evaluation, known, figures, report
        )
    for one in evaluation.synthetic:
        result["synthetic"][one.name] = _synthetic(one, methods, size, photos, data_root, evaluation, report)
    result["skipped"] = {str(path): reason for path, reason in photos.bad.items()}
    return result


def _benchmark(
    one: Benchmark,
    methods: Mapping[str, Matches],
    size: int,
    photos: PhotoCache,
    data_root: str | None,
    evaluation: Evaluation,
    trained: Sequence[ImagePair],
    figures: Path | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    pairs = find_pairs(one.pairs, data_root)
    if not all(isinstance(pair, KeypointPair) for pair in pairs):
        raise DataError(f"{one.name}: some of its pairs have no keypoints")
    if warning := overlap_warning(one.name, pairs, trained):
        report(warning)
    scores: dict[str, list[PairScore]] = {name: [] for name in methods}
    read: list[KeypointPair] = []
    for number, pair in enumerate(pairs):
        images = [photos.get(pair.source), photos.get(pair.target)]
        if any(image is None for image in images):
            continue
        read.append(pair)
        inputs = [network_image(image, size)[None] for image in images]
        sizes = [image.shape[:2] for image in images]
        for name, matches in methods.items():
            flow = matches(*inputs)[0]
            grid = flow + identity_places(*flow.shape[:2])
            scores[name].append(score_pair(grid, pair, *sizes, threshold=one.threshold, frame=one.frame))
        if figures is not None:
            _draw(figures / one.name, number, pair, images, {name: scores[name][-1] for name in methods})
        if (number + 1) % 50 == 0:
            report(f"{one.name}: {number + 1}/{len(pairs)} pairs")
    if not read:
        raise DataError(f"{one.name}: none of its {len(pairs)} pairs can be read; the log names each file")
    result = _compared(scores, [pair.category for pair in read], evaluation)
    result["threshold"] = one.threshold
    result["list"] = files_key([path for pair in read for path in (pair.source, pair.target)])
    result["pairs"] = [
        {
            "pair": pair.name,
            "category": pair.category,
            **{
                name: (scores[name][i].distance / scores[name][i].length).round(4).tolist()
                for name in methods
            },
        }
        for i, pair in enumerate(read)
    ]
    seen = in_training(read, trained)
    if any(seen) and not all(seen):
        fresh = [i for i, known in enumerate(seen) if not known]
        kept = {name: [values[i] for i in fresh] for name, values in scores.items()}
        result["without_overlap"] = {
            "count": len(fresh),
            **_compared(kept, [read[i].category for i in fresh], evaluation),
        }
    return result


def _compared(
    scores: Mapping[str, Sequence[PairScore]], categories: Sequence[str], evaluation: Evaluation
) -> dict[str, Any]:
    """Every method's summary, and paired differences of the model to each other."""
    result: dict[str, Any] = {
        "count": len(categories),
        "points": sum(len(score.distance) for score in next(iter(scores.values()))),
        "methods": {name: summarise(values, categories, evaluation) for name, values in scores.items()},
        "differences": {},
    }
    for other in scores:
        if other == "model" or "model" not in scores:
            continue
        result["differences"][f"model - {other}"] = {}
        for alpha in evaluation.alphas:
            change = np.array(
                [
                    a.correct(alpha).mean() - b.correct(alpha).mean()
                    for a, b in zip(scores["model"], scores[other], strict=True)
                ]
            )
            result["differences"][f"model - {other}"][f"{alpha:g}"] = {
                "mean": float(change.mean()),
                "interval": bootstrap(change, evaluation.bootstrap, evaluation.seed),
            }
    return result


def _synthetic(
    one: SyntheticBenchmark,
    methods: Mapping[str, Matches],
    size: int,
    photos: PhotoCache,
    data_root: str | None,
    evaluation: Evaluation,
    report: Callable[[str], None],
) -> dict[str, Any]:
    images = find_image_set(one.source, data_root)
    flow = next(iter(methods.values()))(*np.zeros((2, 1, size, size, 3), np.float32))
    samples = WarpedSamples(
        images,
        photos,
        size=size,
        grid=flow.shape[1:3],
        warps=one.warps,
        jitter=None,
        batch=1,
        seed=one.seed,
        augment=False,
    )
    errors: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    for number in range(one.count):
        batch = samples.batch(number)
        for name, matches in methods.items():
            found = matches(batch["source"], batch["target"])
            errors[name].append(np.linalg.norm(found - batch["flow"], axis=-1)[batch["valid"] > 0])
        if (number + 1) % 50 == 0:
            report(f"{one.name}: {number + 1}/{one.count} pairs")
    return {
        "count": one.count,
        "methods": {name: _cells(values, evaluation) for name, values in errors.items()},
    }


def _cells(errors: Sequence[np.ndarray], evaluation: Evaluation) -> dict[str, Any]:
    """The share of cells within each alpha, mean over the pairs, with intervals; and the mean error."""
    # The image's side is 2 in the units of a flow.
    shares = {
        f"{alpha:g}": np.array([np.mean(error <= 2 * alpha) for error in errors])
        for alpha in evaluation.alphas
    }
    return {
        "pck": {alpha: float(values.mean()) for alpha, values in shares.items()},
        "intervals": {
            alpha: bootstrap(values, evaluation.bootstrap, evaluation.seed)
            for alpha, values in shares.items()
        },
        "end_point_error": float(np.mean([error.mean() for error in errors]) / 2),
    }


def _methods(
    evaluation: Evaluation, model: str | Path, teacher: str | Path | None
) -> tuple[dict[str, Matches], int, dict[str, Any]]:
    """The asked methods as functions, the side of their images, and the models' names and checksums."""
    from tfcorr.semantic.loading import SEMANTIC_TEACHER, load_network
    from tfcorr.semantic.network import MatchingHead, SemanticMatchingNetwork
    from tfcorr.semantic.teacher import TeacherHead

    student = load_network(model)
    loaded = {"model": student}
    if any(name.startswith(("teacher", "average")) for name in evaluation.methods):
        if teacher is None:
            raise TfcorrError("evaluation.methods: teacher and average need the teacher's model folder")
        loaded["teacher"] = load_network(teacher, job=SEMANTIC_TEACHER)
    count = evaluation.hypotheses or _hypotheses_of(student.card)
    functions: dict[str, Matches] = {}
    for name in evaluation.methods:
        method = name.removesuffix(_MIRRORED).removesuffix(_PLAIN)
        if method == "identity":
            grid = (-(-student.size // STRIDES[0]),) * 2
            functions[name] = lambda source, target, grid=grid: np.zeros((len(source), *grid, 2), np.float32)
            continue
        owner = loaded["teacher" if method in ("teacher", "average") else "model"].network
        head, samples = owner.head, None
        if method == "untrained":
            # The strong baseline: the backbone's own features, without the layers that are trained on top.
            head = MatchingHead(
                head.channels,
                blocks=0,
                attention="none",
                beta=head.beta,
                kernel_sigma=head.kernel_sigma,
            )
        elif method == "average" and isinstance(head, TeacherHead):
            samples = count
        mirror = owner.mirror if name == "model" else name.endswith(_MIRRORED)
        network = SemanticMatchingNetwork(head, owner.backbone, mirror=mirror)
        functions[name] = _compiled(network, samples, evaluation.seed)
    cards = {
        name: {"name": one.card.name, "sha256": one.card.checksums[WEIGHTS_FILE]}
        for name, one in loaded.items()
    }
    if any(name.startswith("average") for name in evaluation.methods):
        cards["teacher"]["hypotheses"] = count
    return functions, student.size, cards


def _hypotheses_of(card: ModelCard) -> int:
    """How many hypotheses of each pair a student was distilled from, as its card says; else the paper's."""
    try:
        return int(card.content["training"]["hypotheses"]["count"])
    except (KeyError, TypeError, ValueError):
        return _PAPERS_HYPOTHESES


def _compiled(network, samples: int | None = None, seed: int = 0) -> Matches:
    """Flow T2S of a network; with ``samples``, the plain average of a teacher's hypotheses."""
    import tensorflow as tf

    options = {} if samples is None else {"samples": samples, "seed": tf.constant([seed, 0])}

    @tf.function(autograph=False)
    def flows(source, target):
        flow = network({"source": source, "target": target}, training=False, **options)["flow_t2s"]
        return flow if samples is None else tf.reduce_mean(flow, axis=1)

    return lambda source, target: flows(source, target).numpy()


def _draw(
    folder: Path,
    number: int,
    pair: KeypointPair,
    images: Sequence[np.ndarray],
    scores: Mapping[str, PairScore],
) -> None:
    from tfcorr.imaging import write_image
    from tfcorr.semantic.figures import keypoint_figure

    folder.mkdir(parents=True, exist_ok=True)
    drawn = keypoint_figure(*images, pair, scores)
    write_image(folder / f"{number:04d}-{pair.source.stem}-{pair.target.stem}.png", drawn)


def headline(result: dict[str, Any]) -> dict[str, float]:
    """The model's own numbers of `run_evaluation` for its card: ``<benchmark> pck@<alpha>``, of pairs."""
    scores = {}
    for name, part in {**result["benchmarks"], **result["synthetic"]}.items():
        for alpha, value in part["methods"].get("model", {"pck": {}})["pck"].items():
            share = value["per_pair"] if isinstance(value, dict) else value
            scores[f"{name} pck@{alpha}"] = round(share, 4)
    return scores


def table(result: dict[str, Any]) -> str:
    """The result of `run_evaluation` as lines of text."""
    lines = []
    for name, part in result["benchmarks"].items():
        lines += [
            f"{name}: PCK, threshold {part['threshold']}, {part['count']} pairs, {part['points']} points"
        ]
        lines += _rows(part)
        lines += _class_rows(part)
        for title, values in part["differences"].items():
            for alpha, value in values.items():
                lines.append(f"  {title:<20}@{alpha:<6}{100 * value['mean']:>+7.1f}{_interval(value)}")
        if "without_overlap" in part:
            lines.append(
                f"  without the pairs of the training list: {part['without_overlap']['count']} pairs"
            )
            lines += _rows(part["without_overlap"])
        lines.append("")
    for name, part in result["synthetic"].items():
        lines.append(f"{name}: warped photographs, {part['count']} pairs, share of the cells")
        for method, values in part["methods"].items():
            intervals = values.get("intervals", {})
            shown = "".join(
                f"  @{alpha} {100 * value:5.1f}{_interval({'interval': intervals.get(alpha)})}"
                for alpha, value in values["pck"].items()
            )
            lines.append(f"  {method:<10}{shown}")
        lines.append("")
    if count := result.get("models", {}).get("teacher", {}).get("hypotheses"):
        lines.append(f"average: of {count} hypotheses of the teacher")
    return "\n".join(lines).rstrip()


def _rows(part: dict[str, Any]) -> list[str]:
    lines = []
    for method, scores in part["methods"].items():
        for alpha, value in scores["pck"].items():
            lines.append(
                f"  {method:<10}@{alpha:<6}{100 * value['per_pair']:>6.1f} per pair{_interval(value)}"
                f"{100 * value['per_point']:>7.1f} per point{100 * value['mean_of_classes']:>7.1f} mean of "
                f"{len(value['classes'])} classes"
            )
    return lines


def _class_rows(part: dict[str, Any]) -> list[str]:
    """PCK of each class, per pair and per point, at one alpha: 0.1, or the last one."""
    pck = {method: scores["pck"] for method, scores in part["methods"].items()}
    alphas = list(next(iter(pck.values())))
    alpha = "0.1" if "0.1" in alphas else alphas[-1]
    classes = list(next(iter(pck.values()))[alpha]["classes"])
    if not 1 < len(classes) <= _MOST_CLASSES:
        return []
    width = max(map(len, classes))
    lines = [f"  {'class':<{width}} @{alpha:<5}" + "".join(f"{method:>20}" for method in pck)]
    for name in classes:
        cells = []
        for scores in pck.values():
            pair, point = (100 * scores[alpha][key][name] for key in ("classes", "classes_per_point"))
            cells.append(f"{pair:>11.1f} /{point:>6.1f} ")
        lines.append(f"  {name:<{width}}       {''.join(cells)}".rstrip())
    lines.append("  (of each class: per pair / per point)")
    return lines


def _interval(value: dict[str, Any]) -> str:
    if value["interval"] is None:
        return ""
    low, high = value["interval"]
    return f" [{100 * low:.1f}, {100 * high:.1f}]"


def benchmark(
    config: SemanticEvaluateConfig, report: Callable[[str], None] = print
) -> tuple[dict[str, Any], str]:
    """What `tfcorr evaluate` runs: the result of `run_evaluation`, written to ``output``, and its table."""
    result = run_evaluation(
        config.evaluation,
        model=config.model,
        teacher=config.teacher,
        data_root=config.data_root,
        figures=Path(config.figures) if config.figures else None,
        report=report,
    )
    result["evaluation"] = dataclasses.asdict(config.evaluation)
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, (json.dumps(result, indent=2) + "\n").encode())
    return result, table(result)
