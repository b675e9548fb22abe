"""Table 4 of the paper."""

import json

from tfcorr.cli import main
from tfcorr.config import load_config
from tfcorr.refsr import sizes


def test_table_4(tmp_path):
    config = load_config("refsr/model_sizes", ["presets=[light]", f"output={tmp_path / 'sizes.json'}"])
    result, table = sizes.run(config)
    # Counted from the paper's recipe by hand: see tests/refsr/test_restorer.py for the full network.
    counts = result["networks"]["light"]["parameters"]
    assert counts["restorer"] == 4_825_395 and counts["matcher"] == 1_110_656
    assert counts["total"] == counts["restorer"] + counts["matcher"]
    parts = result["networks"]["light"]["restorer"]
    assert sum(parts.values()) == counts["restorer"]
    # The published counts of the content extractor and of the tails.
    assert parts["conv_first"] + parts["content"] == 1_183_488
    assert parts["tail_small"] == parts["tail_medium"] == 147_712 and parts["tail_large"] == 19_331
    assert json.loads((tmp_path / "sizes.json").read_text()) == result
    assert "4,825,395" in table and "4.8M" in table


def test_no_contact_sheets(capsys):
    assert main(["evaluate", "refsr/model_sizes", "--figures", "sheets"]) == 2
    assert "--figures: stage model_sizes has none" in capsys.readouterr().err
