"""Contact sheets of an evaluation, in the manner of the paper's figures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tfcorr.imaging import write_image
from tfcorr.imaging.figure import comparison_figure
from tfcorr.refsr.evaluation import Contender
from tfcorr.refsr.layouts import Case


class ContactSheets:
    """Writes one sheet for each result: input, result, truth, references, a detail of each, correspondences.

    Sheets that are there already are not drawn again. Models without correspondences get none.

    Args:
        folder: where the sheets go, ``SCENE_INPUT_MODEL_REFERENCES.png``.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, case: Case, contender: Contender, name: str) -> Path:
        """The file of a sheet."""
        parts = (case.scene, case.input.stem, contender.name, name)
        return self.folder / (re.sub(r"[^\w.-]+", "-", "_".join(dict.fromkeys(parts))) + ".png")

    def wants(self, case: Case, contender: Contender, name: str) -> bool:
        """Whether the sheet is still to be drawn, and can be."""
        return hasattr(contender.upscaler, "prepare") and not self.path(case, contender, name).exists()

    def draw(
        self,
        case: Case,
        contender: Contender,
        name: str,
        small: np.ndarray,
        references: list[np.ndarray],
        truth: np.ndarray,
    ) -> np.ndarray:
        """Upscales, writes the sheet, and returns the upscaled image.

        Args:
            case, contender, name: what is drawn.
            small: (h, w, 3) uint8, the input of the model.
            references: (H', W', 3) uint8 each; may be empty.
            truth: (H, W, 3) uint8.
        """
        result = contender.upscaler.upscale(small, references or None, details=True)
        height, width = truth.shape[:2]
        cells = slice(height // 4), slice(width // 4)
        sheet = comparison_figure(
            small[cells],
            result.image[:height, :width],
            references,
            result.correspondence[cells],
            result.confidence[cells],
            result.used_share,
            truth=truth,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_image(self.path(case, contender, name), sheet)
        return result.image
