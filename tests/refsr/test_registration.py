"""Registration: known views are found, what does not fit is left alone, and what a predictor makes of it."""

import cv2
import numpy as np
import pytest
from PIL import Image
from scenes import scene

from tfcorr.imaging.resize import downscale
from tfcorr.refsr.memory import MemoryPlan
from tfcorr.refsr.nearby import best_nearby, prefer_nearby
from tfcorr.refsr.photos import PhotoCache
from tfcorr.refsr.predictor import SuperResolver
from tfcorr.refsr.registered import RegisteredReferences
from tfcorr.refsr.registration import Registration, register

SIDE = 240


def unit(image):
    return image.astype(np.float32) / np.float32(255)


def turned(image, degrees, scale, slant=0.0):
    """The image as another camera would show it, and the (3, 3) matrix of (x, y, 1) to its pixels."""
    side = image.shape[0]
    size = round(1.5 * scale * side)
    matrix = np.eye(3)
    matrix[:2] = cv2.getRotationMatrix2D((side / 2, side / 2), degrees, scale)
    matrix[:2, 2] += size / 2 - side / 2
    matrix = np.array([[1, 0, 0], [0, 1, 0], [slant, 0, 1]]) @ matrix
    return cv2.warpPerspective(image, matrix, (size, size), flags=cv2.INTER_AREA), matrix


def truth(matrix, side=SIDE):
    """Where each pixel of the image lies in the turned one, (side, side, 2), (y, x)."""
    y, x = np.mgrid[:side, :side]
    places = np.stack([x, y, np.ones_like(x)], axis=-1) @ matrix.T
    return (places[..., :2] / places[..., 2:])[..., ::-1]


@pytest.mark.parametrize(
    ("degrees", "scale", "slant"), [(0, 1.0, 0.0), (30, 0.8, 0.0), (-100, 1.0, 1e-4), (170, 2.0, 0.0)]
)
def test_a_known_view_is_found(degrees, scale, slant):
    image = scene(1, SIDE)
    reference, matrix = turned(image, degrees, scale, slant)
    found = register(unit(downscale(image, 4)), unit(reference))
    error = np.linalg.norm(found.positions - truth(matrix), axis=-1)[8:-8, 8:-8] / scale
    assert np.median(error) < 1.0 and np.mean(error < 4.0) > 0.97
    assert found.positions.dtype == np.float32 and found.points >= 20
    warped = found.warp(unit(reference))
    assert warped.shape == image.shape and warped.dtype == np.float32
    difference = np.abs(warped - unit(image))[16:-16, 16:-16]
    assert np.median(difference) < 0.02
    # The same again, however often.
    np.testing.assert_array_equal(
        register(unit(downscale(image, 4)), unit(reference)).positions, found.positions
    )


def test_a_map_that_no_homography_explains():
    image = scene(2, SIDE)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    # Where the reference's pixels come from.
    from_y, from_x = y + 8 * np.sin(x / 40), x + 8 * np.cos(y / 50)
    reference = cv2.remap(image, from_x, from_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    found = register(unit(downscale(image, 4)), unit(reference))
    inside = found.positions[30:-30, 30:-30]
    back = np.stack(
        [
            cv2.remap(field, inside[..., 1].copy(), inside[..., 0].copy(), cv2.INTER_LINEAR)
            for field in (from_y, from_x)
        ],
        axis=-1,
    )
    error = np.linalg.norm(back - np.stack([y, x], axis=-1)[30:-30, 30:-30], axis=-1)
    assert np.median(error) < 1.0 and np.mean(error < 4.0) > 0.95


def test_what_shows_something_else_is_not_registered():
    image = unit(downscale(scene(1, SIDE), 4))
    assert register(image, unit(scene(3, SIDE))) is None
    noise = np.random.default_rng(0).random((SIDE, SIDE, 3), np.float32)
    assert register(image, noise) is None
    assert register(image, np.zeros((SIDE, SIDE, 3), np.float32)) is None
    assert register(np.full((20, 30, 3), 0.5, np.float32), unit(scene(1, SIDE))) is None


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (40, 1)])
@pytest.mark.parametrize("reference", [(1, 1), (3, 7), (64, 64)])
def test_small_images(size, reference):
    rng = np.random.default_rng(0)
    assert register(rng.random((*size, 3), np.float32), rng.random((*reference, 3), np.float32)) is None


def test_images_that_opencv_cannot_sample():
    long = np.zeros((4, 2**13, 3), np.float32)
    assert register(long, np.zeros((64, 64, 3), np.float32)) is None
    assert register(np.zeros((16, 16, 3), np.float32), np.zeros((4, 2**15, 3), np.float32)) is None


def test_long_lists_of_places():
    y, x = np.mgrid[:32, :48].astype(np.float32)
    registration = Registration(np.stack([2 * y, x + 1], axis=-1), (50, 40), 20)
    places = np.random.default_rng(0).integers(0, 32, (70000, 2))
    np.testing.assert_allclose(registration.position(places), places * [2, 1] + [0, 1], atol=1e-4)
    pixels = registration.locate(places)
    assert pixels.min() >= 0 and (pixels.max(axis=0) == [49, 32]).all()


def test_a_larger_reference_is_reduced_without_aliases():
    """Stripes of one pixel, seen at a third of their size, are grey."""
    reference = np.zeros((300, 300, 3), np.float32)
    reference[:, ::2] = 1.0
    y, x = np.mgrid[:100, :100].astype(np.float32)
    registration = Registration(np.stack([3 * y + 1, 3 * x + 1], axis=-1), (300, 300), 20)
    inside = registration.warp(reference)[5:-5, 5:-5]
    assert inside.std() < 0.2 and inside.mean() == pytest.approx(0.5, abs=0.05)


def brute_force(query, reference, origin, reach=2):
    rows, columns = reference.shape[0] - 2, reference.shape[1] - 2
    index = np.zeros((query.shape[0] - 2, query.shape[1] - 2), int)
    score = np.full(index.shape, -np.inf)
    for y, x in np.ndindex(index.shape):
        q = query[y : y + 3, x : x + 3].ravel()
        for i in range(max(0, y + origin[0] - reach), min(rows, y + origin[0] + reach + 1)):
            for j in range(max(0, x + origin[1] - reach), min(columns, x + origin[1] + reach + 1)):
                r = reference[i : i + 3, j : j + 3].ravel()
                value = q @ r / (np.linalg.norm(q) + 1e-5) / (np.linalg.norm(r) + 1e-5)
                if value > score[y, x]:
                    index[y, x], score[y, x] = i * columns + j, value
    return index, score


def test_the_best_nearby():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(9, 11, 5)).astype(np.float32)
    for origin, size in (((0, 0), (9, 11)), ((3, 4), (5, 6))):
        query = rng.normal(size=(*size, 5)).astype(np.float32)
        index, score = best_nearby(query, reference, origin)
        expected = brute_force(query, reference, origin)
        np.testing.assert_array_equal(index, expected[0])
        np.testing.assert_allclose(score, expected[1], rtol=1e-5)
        assert index.dtype == np.int32 and score.dtype == np.float32


def test_what_is_nearby_stands_unless_another_place_is_clearly_better():
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(9, 11, 5)).astype(np.float32)
    elsewhere = np.zeros((7, 9), np.int32)
    near, score = best_nearby(cells, cells, (0, 0))
    np.testing.assert_array_equal(near, np.arange(63).reshape(7, 9))
    kept, _ = prefer_nearby(cells, cells, (0, 0), elsewhere, score + 0.04)
    np.testing.assert_array_equal(kept, near)
    moved, values = prefer_nearby(cells, cells, (0, 0), elsewhere, score + 0.06)
    rim = np.ones((7, 9), bool)
    rim[2:-2, 2:-2] = False
    np.testing.assert_array_equal(moved, np.where(rim, near, 0))
    np.testing.assert_allclose(values, np.where(rim, score, score + 0.06))


def test_a_predictor_tells_places_in_the_reference_as_given(tiny_model_folder):
    image = scene(4, SIDE)
    reference, matrix = turned(image, 120, 1.2)
    small = downscale(image, 4)
    upscaler = SuperResolver.from_pretrained(tiny_model_folder, registration=True)
    result = upscaler.upscale(small, [scene(5, 100), reference], details=True)
    expected = truth(matrix)[2::4, 2::4]
    inside = np.s_[4:-4, 4:-4]
    assert (result.correspondence[inside][..., 0] == 1).mean() > 0.9
    found = result.correspondence[..., 1:] - expected
    assert np.mean(np.linalg.norm(found, axis=-1)[inside] < 8) > 0.8
    # A card that says nothing leaves references as they are.
    plain = SuperResolver.from_pretrained(tiny_model_folder).upscale(small, reference, details=True)
    found = plain.correspondence[..., 1:] - expected
    assert np.mean(np.linalg.norm(found, axis=-1)[inside] < 8) < 0.2


def test_tiles_of_a_registered_reference(tiny_model_folder):
    image = scene(4, SIDE)
    reference, _ = turned(image, 30, 1.0)
    small = downscale(image, 4)
    whole = SuperResolver.from_pretrained(tiny_model_folder, registration=True)
    tiled = SuperResolver(whole.model, registration=True)
    per_pixel = tiled._memory.tile_bytes
    tiled._memory = MemoryPlan(2 * per_pixel * 40**2, per_pixel, reference_bytes=1)
    one, other = (u.upscale(small, reference, details=True) for u in (whole, tiled))
    assert np.mean(one.correspondence == other.correspondence) > 0.999
    # For any input, and for this one.
    prepared = whole.prepare(reference)
    assert prepared.registrations == (None,)
    assert not np.array_equal(whole.upscale(small, prepared), one.image)
    prepared = whole.prepare(reference, small)
    assert whole.prepare(reference, small) is prepared and prepared.registrations[0].points >= 20
    np.testing.assert_array_equal(whole.upscale(small, prepared), one.image)


def test_registered_references_are_made_once(tmp_path, monkeypatch):
    import tfcorr.refsr.registered as module

    calls = []
    monkeypatch.setattr(module, "register", lambda *a: calls.append(1) or register(*a))
    image = scene(1, SIDE)
    reference, _ = turned(image, 40, 1.0)
    paths = [tmp_path / f"{name}.png" for name in ("image", "reference", "other")]
    for path, pixels in zip(paths, (image, reference, scene(9, SIDE)), strict=True):
        Image.fromarray(pixels).save(path)
    folder = tmp_path / "run" / "registered"
    for _ in range(2):
        registered = RegisteredReferences(PhotoCache(), folder)
        seen = registered.get(paths[0], paths[1])
        assert seen.shape == image.shape
        assert np.median(np.abs(seen.astype(int) - image)[16:-16, 16:-16]) < 6
        np.testing.assert_array_equal(registered.get(paths[0], paths[2]), scene(9, SIDE))
    assert len(calls) == 2 and len(list(folder.iterdir())) == 2
    assert registered.get(paths[0], tmp_path / "missing.png") is None
    # Another photo under the same name is another pair.
    Image.fromarray(scene(1, SIDE)[::-1]).save(paths[1])
    registered.get(paths[0], paths[1])
    assert len(calls) == 3


def test_an_ensemble_of_registered_references(tiny_model_folder):
    image = scene(4, 96)
    reference, _ = turned(image, 30, 1.0)
    small = downscale(image, 4)
    upscaler = SuperResolver.from_pretrained(tiny_model_folder, registration=True, self_ensemble=True)
    result = upscaler.upscale(small, reference, details=True)
    assert result.image.shape == image.shape and (result.correspondence[..., 1:] < reference.shape[:2]).all()
