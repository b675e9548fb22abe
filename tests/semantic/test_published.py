"""PMD's published weights: from a checkpoint with their names to the flows of their program."""

import checkpoints
import keras
import numpy as np
import pytest
from conftest import nhwc

from tfcorr.published import PublishedWeightsError
from tfcorr.semantic.published import published_head
from tfcorr.torch_checkpoint import read_checkpoint

PARTS = {"adap_layer_feat3.": "state_dict1", "adap_layer_feat4.": "state_dict2", "chn4.": "chn4_dict"}


def checkpoint(golden, case):
    """The three state_dicts of a checkpoint, with the counters that PyTorch's normalisations have."""
    content = {part: {} for part in PARTS.values()}
    for name, array in golden("pmd/network").items():
        for start, part in PARTS.items():
            if name.startswith(f"{case}_w/{start}"):
                name = name.removeprefix(f"{case}_w/{start}")
                content[part][name] = array
                if name.endswith("running_var"):
                    counter = name.replace("running_var", "num_batches_tracked")
                    content[part][counter] = np.array(3, np.int64)
    return content


@pytest.mark.parametrize(("case", "legacy"), [("small", False), ("real", True)])
def test_flows(golden, tmp_path, case, legacy):
    path = tmp_path / "pascal_weakly.pt"
    checkpoints.save(path, checkpoint(golden, case), legacy=legacy)
    head = published_head(read_checkpoint(path))
    assert head.channels == (8, 12)
    assert head.kernel_sizes == (5, 3)
    arrays = golden("pmd/network")
    names = {"source_16": "src_feat3", "target_16": "tgt_feat3"}
    names.update(source_32="src_feat4", target_32="tgt_feat4")
    flows = head({ours: nhwc(arrays[f"{case}_{theirs}"]) for ours, theirs in names.items()})
    for direction in ("t2s", "s2t"):
        expected = nhwc(arrays[f"{case}_flow_{direction.upper()}"][:, 0])
        found = keras.ops.convert_to_numpy(flows[f"flow_{direction}"])
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_names_and_shapes_are_checked(golden):
    content = checkpoint(golden, "small")
    with pytest.raises(PublishedWeightsError, match="state_dict1, state_dict2, chn4_dict"):
        published_head(content["state_dict1"])
    broken = {**content, "chn4_dict": {**content["chn4_dict"], "more.weight": np.zeros(2)}}
    with pytest.raises(PublishedWeightsError, match=r"unknown, first chn4_dict\.more\.weight"):
        published_head(broken)
    kernel = content["chn4_dict"]["mu_conv.0.weight"]
    for wrong in (kernel[:6], np.repeat(kernel, 3, axis=2)):
        broken = {**content, "chn4_dict": {**content["chn4_dict"], "mu_conv.0.weight": wrong}}
        with pytest.raises(PublishedWeightsError, match=r"chn4_dict\.mu_conv\.0\.weight has shape"):
            published_head(broken)
    broken = {**content, "state_dict2": {"conv1.0.weight": np.zeros(3)}}
    with pytest.raises(PublishedWeightsError, match=r"state_dict2 has no kernel"):
        published_head(broken)
