"""The ablation's table, with models whose gains are known."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

from tfcorr.config import ConfigError, load_config
from tfcorr.refsr import ablation
from tfcorr.refsr.aggregation import DynamicAggregation
from tfcorr.refsr.evaluation import Contender
from tfcorr.training.optimizer import GroupedAdam


class Offset:
    """The reference, too bright by some grey levels."""

    def __init__(self, levels):
        self.levels = levels

    def upscale(self, low_res, reference):
        return reference + np.uint8(self.levels)


def gain(before, after):
    return 20 * np.log10(before / after)


def test_ablation(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = ["scene,input,reference"]
    for number in range(3):
        image = rng.integers(100 - 30 * (number + 1), 100 + 30 * (number + 1), (40, 40, 3)).astype(np.uint8)
        for name in ("in", "ref"):
            Image.fromarray(image).save(tmp_path / f"{name}{number}.png")
        rows.append(f"s{number},in{number}.png,ref{number}.png")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    levels = {"copying": 8, "aggregation": 4, "contrastive": 2}

    def contenders(names, references, output, setting, memory):
        return [Contender(name, Offset(levels[name]), references) for name in names], {}

    monkeypatch.setattr(ablation, "find_contenders", contenders)
    words = [
        f"pairs={{csv: {tmp_path / 'list.csv'}}}",
        "steps=[{label: copying, model: copying},"
        " {label: + aggregation, model: aggregation, paper_gain: 0.08},"
        " {label: + contrastive, model: contrastive, paper_texture_gain: 0.16}]",
        f"output={tmp_path / 'a.json'}",
        f"data_root={tmp_path}",
    ]
    result, table = ablation.run(load_config("refsr/ablation", words), report=lambda line: None)
    assert json.loads((tmp_path / "a.json").read_text()) == result
    first, second, third = result["steps"]
    assert "all gain" not in first
    assert second["all gain"]["mean"] == pytest.approx(gain(8, 4)) and second["all gain"]["error"] < 1e-9
    assert third["texture gain"]["mean"] == pytest.approx(gain(4, 2))
    assert third["texture gain"]["count"] == 1 and third["all gain"]["count"] == 3
    assert result["texture"] == [f"{tmp_path.name}/in2.png"]
    assert "+6.021 ± 0.000" in table and "+0.08" in table and "+0.16" in table
    assert "| + aggregation |" in (tmp_path / "a.md").read_text()
    with pytest.raises(ConfigError, match="steps: expected at least one"):
        ablation.run(load_config("refsr/ablation", [*words, "steps=[]"]))


def test_plain_patch_copying_is_a_configuration():
    # Without a learning rate, the offsets stay where matching put them and the masks at one half.
    rng = np.random.default_rng(0)
    layer = DynamicAggregation(4, deform_groups=2, implementation="reference")
    shapes = {"reference": (1, 6, 7, 8), "feature": (1, 5, 4, 3), "pre_offset": (1, 5, 4, 18)}
    layer.build(*shapes.values())
    optimizer = GroupedAdam(0.1, multipliers={"conv_offset_mask": 0.0})
    variables = layer.trainable_variables
    before = {variable.path: keras.ops.convert_to_numpy(variable) for variable in variables}
    optimizer.apply([keras.ops.ones_like(variable) for variable in variables], variables)
    for variable in variables:
        moved = not np.array_equal(variable, before[variable.path])
        assert moved == ("conv_offset_mask" not in variable.path)
    inputs = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    _, learned = layer(**inputs, return_learned=True)
    assert not np.any(learned)
    offset, mask = layer.predict_offset_mask(inputs["feature"], inputs["pre_offset"])
    np.testing.assert_array_equal(offset[..., :18], inputs["pre_offset"])
    np.testing.assert_array_equal(mask, np.full((1, 5, 4, 18), 0.5))
