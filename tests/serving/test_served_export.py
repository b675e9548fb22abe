"""A real export behind the server of the tests: images are the predictor's, refusals are sentences."""

import io

import numpy as np
import pytest
from PIL import Image

from tfcorr.serving import Client, ServingError

pytest.importorskip("tensorflow_serving", reason="needs the extra 'serving'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def upscaler(tiny_model_folder):
    from tfcorr import SuperResolver

    return SuperResolver.from_pretrained(tiny_model_folder, memory=10**9)


@pytest.fixture(scope="module")
def server(upscaler, tmp_path_factory):
    from serving.server import Server

    from tfcorr.serving.checks import Limits
    from tfcorr.serving.saved_model import export_super_resolution

    folder = tmp_path_factory.mktemp("export") / "tfcorr" / "1"
    export_super_resolution(upscaler.model, folder, limits=Limits(pixels=1000, reference_pixels=6000))
    with Server(folder) as running:
        yield running


@pytest.fixture(params=["grpc", "rest"])
def client(request, server):
    with Client(server.addresses[request.param], deadline=300) as made:
        yield made


def picture(height: int, width: int, seed: int) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("small, large", [((12, 15), (40, 52)), ((9, 21), (33, 30))])
def test_image_is_the_predictors(client, upscaler, small, large):
    low_res, reference = picture(*small, 1), picture(*large, 2)
    wanted = upscaler.upscale(low_res, reference)
    found = client.upscale(low_res, reference)
    assert found.dtype == np.uint8
    # Rounding to whole numbers may fall to either side.
    assert np.abs(found.astype(int) - wanted).max() <= 1
    answer = Image.open(io.BytesIO(client.upscale(png(low_res), [png(reference)])))
    assert answer.format == "PNG"
    assert np.abs(np.asarray(answer).astype(int) - wanted).max() <= 1


def test_several_references_and_none(client, upscaler):
    low_res = picture(12, 15, 1)
    references = [picture(40, 52, 2), picture(30, 36, 3)]
    for given in (references, []):
        answer = np.asarray(Image.open(io.BytesIO(client.upscale(png(low_res), [png(r) for r in given]))))
        assert np.abs(answer.astype(int) - upscaler.upscale(low_res, given)).max() <= 1


def test_refusals_of_the_graph(client):
    for call in (
        lambda: client.upscale(picture(40, 40, 1), picture(20, 20, 2)),
        lambda: client.upscale(picture(10, 10, 1), picture(100, 100, 2)),
        lambda: client.upscale(png(picture(40, 40, 1)), [png(picture(20, 20, 2))]),
        lambda: client.upscale(b"no image", [png(picture(20, 20, 2))]),
    ):
        with pytest.raises(ServingError, match="refused the request: ") as caught:
            call()
        assert caught.value.code == "INVALID_ARGUMENT"
        told = str(caught.value)
        assert "\n" not in told and "{{" not in told and "[[" not in told and "assertion" not in told, told
    assert client.upscale(picture(8, 8, 1)).shape == (32, 32, 3)
