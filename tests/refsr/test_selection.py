import numpy as np
import pytest
from PIL import Image

from tfcorr.refsr.predictor import SuperResolver
from tfcorr.refsr.selection import ReferencePool


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return SuperResolver.from_pretrained(tiny_model_folder).model


def scene(seed):
    small = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((192, 144), Image.Resampling.BICUBIC))


def small(image):
    size = image.shape[1] // 4, image.shape[0] // 4
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def test_the_same_scene_wins_and_a_second_copy_adds_nothing(model):
    pool = ReferencePool(model)
    for seed in (1, 2, 3):
        pool.add(scene(seed))
    pool.add(scene(2))
    assert len(pool) == 4
    choices = pool.choose(small(scene(2)), 3)
    assert choices[0].number == 1
    assert 3 not in [choice.number for choice in choices]
    assert all(-1 <= choice.score <= 1 for choice in choices)


def test_the_second_choice_covers_what_the_first_lacks(model):
    whole = scene(5)
    pool = ReferencePool(model)
    left, right = whole.copy(), whole.copy()
    left[:, 96:] = 128
    right[:, :96] = 128
    for image in (scene(6), left, scene(7), right):
        pool.add(image)
    choices = pool.choose(small(whole), 2)
    assert {choice.number for choice in choices} == {1, 3}
    assert choices[1].score > choices[0].score


def test_exclusion_sizes_and_emptiness(model):
    pool = ReferencePool(model)
    assert pool.choose(small(scene(1)), 3) == []
    pool.add(scene(1))
    assert pool.choose(small(scene(1)), 3, without=[0]) == []
    pool.add(np.zeros((1, 1), np.uint8))
    pool.add(np.zeros((3, 700, 1), np.uint16))
    assert pool.choose(np.zeros((1, 1, 3), np.float32), 1)
    assert pool.choose(small(scene(1)), 1)[0].number == 0
