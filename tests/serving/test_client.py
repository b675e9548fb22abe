"""The client against a server that speaks TensorFlow Serving's protocol and executes a SavedModel."""

import http.server
import io
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from scenes import scene
from serving.conftest import expected

from tfcorr.errors import InputError, TfcorrError
from tfcorr.refsr.registration import register
from tfcorr.serving import Client, ServingError
from tfcorr.serving.status import sentence

pytest.importorskip("grpc", reason="needs the extra 'serving'")
PROTOCOLS = ("grpc", "rest")


def image(height=6, width=5, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(params=PROTOCOLS)
def client(request, server):
    with Client(server.addresses[request.param], deadline=30) as made:
        yield made


def fault(*arguments, **named):
    from serving.server import Fault

    return Fault(*arguments, **named)


def test_array(client):
    low_res, reference = image(), image(9, 7, 1)
    upscaled = client.upscale(low_res, reference)
    assert upscaled.dtype == np.float32
    np.testing.assert_allclose(upscaled, expected(low_res, reference), atol=1e-6)


def test_array_with_a_registered_reference(client):
    photo = np.float32(scene(1) / 255)
    low_res, reference = photo[2::4, 2::4], np.ascontiguousarray(np.rot90(photo))
    found = register(low_res, reference)
    upscaled = client.upscale(low_res, reference, registration=True)
    np.testing.assert_allclose(upscaled, expected(low_res, found.warp(reference)), atol=1e-6)
    # What cannot be registered goes as it is.
    other = image(9, 7, 1)
    np.testing.assert_array_equal(
        client.upscale(low_res, other, registration=True), client.upscale(low_res, other)
    )


@pytest.mark.parametrize("dtype, peak", [(np.uint8, 255), (np.uint16, 65535)])
def test_array_keeps_the_dtype(client, dtype, peak):
    low_res = np.rint(image() * peak).astype(dtype)
    upscaled = client.upscale(low_res, image(seed=1))
    assert upscaled.dtype == dtype
    wanted = expected(low_res / peak, image(seed=1)) * peak
    assert np.abs(upscaled - wanted).max() <= 0.5 + 0.01


def test_grey_array_stays_grey(client):
    low_res = image()[..., 0]
    upscaled = client.upscale(low_res)
    assert upscaled.shape == (24, 20)
    np.testing.assert_allclose(upscaled, expected(low_res, low_res), atol=1e-6)


def test_bytes_and_files(client, tmp_path):
    low_res, first, second = image(), image(9, 7, 1), image(4, 8, 2)
    (tmp_path / "low.png").write_bytes(png(low_res))
    (tmp_path / "first.png").write_bytes(png(first))
    answer = client.upscale(tmp_path / "low.png", [str(tmp_path / "first.png"), png(second)])
    upscaled = np.asarray(Image.open(io.BytesIO(answer)))

    def stored(pixels):
        return np.rint(pixels * 255) / 255

    wanted = expected(stored(low_res), stored(first), stored(second)) * 255
    assert np.abs(upscaled - wanted).max() <= 0.51
    alone = client.upscale(png(low_res))
    assert alone == client.upscale(png(low_res), bytearray(png(low_res)))


def test_status_and_signatures(client):
    assert client.status() == [{"version": 1, "state": "AVAILABLE", "error": ""}]
    signatures = client.signatures()
    assert set(signatures) >= {"serving_default", "from_bytes"}
    assert signatures["serving_default"]["inputs"]["lr"]["dtype"] == "DT_FLOAT"
    assert set(signatures["from_bytes"]["inputs"]) == {"image", "references"}


def test_sentence_of_the_graph_is_passed_on(client):
    with pytest.raises(ServingError) as caught:
        client.upscale(image(101, 100))
    assert caught.value.code == "INVALID_ARGUMENT"
    assert str(caught.value).endswith("refused the request: the image has more than 10000 pixels")


def test_bytes_that_are_no_image(client):
    with pytest.raises(ServingError, match=r"refused the request: .*image") as caught:
        client.upscale(b"no image at all")
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unknown_model_and_version(server, protocol):
    for named in ({"model": "other"}, {"version": 9}):
        with Client(server.addresses[protocol], **named) as client:
            for call in (lambda c: c.upscale(image()), lambda c: c.status(), lambda c: c.signatures()):
                with pytest.raises(ServingError, match="has no model") as caught:
                    call(client)
                assert caught.value.code == "NOT_FOUND"


def test_deadline(client, server):
    server.model.faults.append(fault(seconds=1.5))
    start = time.monotonic()
    with pytest.raises(ServingError, match=r"no answer within 0\.4 s") as caught:
        client.upscale(image(), deadline=0.4)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert time.monotonic() - start < 1.2
    assert client.upscale(image()).shape == (24, 20, 3)  # nothing is left broken


def test_unavailable_then_recovery(client, server):
    server.model.faults.extend([fault("UNAVAILABLE")] * 2)
    np.testing.assert_allclose(client.upscale(image()), expected(image(), image()), atol=1e-6)
    assert server.model.calls["predict"] == 3


def test_unavailable_for_too_long(server):
    for protocol in PROTOCOLS:
        server.model.calls.clear()
        server.model.faults.extend([fault("UNAVAILABLE", "overloaded")] * 3)
        with (
            Client(server.addresses[protocol], attempts=3, backoff=0.01) as client,
            pytest.raises(ServingError, match="not available, tried 3 times: overloaded"),
        ):
            client.upscale(image())
        assert server.model.calls["predict"] == 3


@pytest.mark.parametrize("code", ["INTERNAL", "RESOURCE_EXHAUSTED"])
def test_other_failures_are_not_tried_again(client, server, code):
    server.model.faults.append(fault(code))
    with pytest.raises(ServingError) as caught:
        client.upscale(image())
    assert caught.value.code == code
    assert server.model.calls["predict"] == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_server_that_starts_late(stand_in_model, protocol):
    from serving.server import Server

    port = free_port()
    address = f"127.0.0.1:{port}" if protocol == "grpc" else f"http://127.0.0.1:{port}"
    started = []

    def start():
        started.append(Server(stand_in_model, **{f"{protocol}_port": port}))

    timer = threading.Timer(1.0, start)
    try:
        with Client(address, deadline=30, attempts=50) as client:
            timer.start()
            client.wait_until_ready(20)
            assert client.upscale(image()).shape == (24, 20, 3)
            # Gone, and there again, while the client stays.
            started.pop().close()
            threading.Timer(0.5, start).start()
            assert client.upscale(image()).shape == (24, 20, 3)
    finally:
        timer.join()
        for running in started:
            running.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_server(protocol):
    address = f"127.0.0.1:{free_port()}"
    with Client(address if protocol == "grpc" else f"http://{address}", attempts=2, backoff=0.01) as client:
        with pytest.raises(ServingError, match="tried 2 times") as caught:
            client.upscale(image())
        assert caught.value.code == "UNAVAILABLE"
        with pytest.raises(ServingError, match=r"waited 0\.3 s"):
            client.wait_until_ready(0.3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_message_limits_of_the_client(server, protocol):
    with Client(server.addresses[protocol], max_message=20_000) as client:
        with pytest.raises(InputError, match=r"an image 60x60 with its reference takes 0\.1 MiB"):
            client.upscale(image(60, 60))
        with pytest.raises(InputError, match="the upscaled image 80x80 takes"):
            client.upscale(image(20, 20))
        with pytest.raises(InputError, match="the image with its references takes"):
            client.upscale(b"x" * 15_000, [b"x" * 15_000])
        assert server.model.calls["predict"] == 0
    # An answer that turns out larger than its numbers: in JSON each takes more than four bytes.
    with (
        Client(server.addresses["rest"], max_message=25_000) as client,
        pytest.raises(ServingError, match="too large") as caught,
    ):
        client.upscale(image(10, 10))
    assert caught.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_message_limit_of_the_server(stand_in_model, protocol):
    from serving.server import Server

    with Server(stand_in_model, max_message=10_000) as server, Client(server.addresses[protocol]) as client:
        with pytest.raises(ServingError) as caught:
            client.upscale(image(60, 60), image(60, 60))
        # Over HTTP the server may close the connection while the body is still on its way.
        assert caught.value.code in {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}
        assert client.upscale(image(4, 4)).shape == (16, 16, 3)


def test_malformed_requests_leave_the_server_sound(server):
    """Requests that no client of ours would send: refused, each of them, and the next one is answered."""
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    def request(shape=(1, 2, 2, 3), content=bytes(48), dtype=1, names=("lr", "reference"), signature=""):
        made = predict_pb2.PredictRequest()
        made.model_spec.name = "tfcorr"
        made.model_spec.signature_name = signature
        for name in names:
            tensor = made.inputs[name]
            tensor.dtype = dtype
            for side in shape:
                tensor.tensor_shape.dim.add(size=side)
            tensor.tensor_content = content
        return made

    wrong = [
        request(content=bytes(47)),  # not a whole number of floats
        request(shape=(1, 2, 2, 4)),  # four channels
        request(shape=(2, 2, 3), content=bytes(48)),  # no batch
        request(shape=(1 << 40, 1 << 40, 2, 3)),  # a product beyond 64 bits
        request(shape=(-1, 2, 2, 3)),
        request(dtype=3),  # integers
        request(names=("lr",)),
        request(names=("lr", "reference", "more")),
        request(signature="none of this name"),
    ]
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for number, bad in enumerate(wrong):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Predict(bad, timeout=20)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, (number, caught.value)
            assert len(stub.Predict(request(), timeout=20).outputs) == 1


def test_many_clients_at_once(server):
    """Half of them over gRPC, half over REST, and among them some whose requests are refused."""

    def work(number: int) -> float:
        with Client(server.addresses[PROTOCOLS[number % 2]], deadline=60) as client:
            worst = 0.0
            for turn in range(4):
                low_res = image(4 + number, 5, 10 * number + turn)
                if number == 3:
                    with pytest.raises(ServingError):
                        client.upscale(image(101, 100))
                found = client.upscale(low_res, low_res)
                worst = max(worst, float(np.abs(found - expected(low_res, low_res)).max()))
            return worst

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(work, range(8))) < 1e-6


def test_one_client_in_many_threads(client):
    images = [image(3 + number, 4, number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for low_res, found in zip(images, pool.map(client.upscale, images), strict=True):
            np.testing.assert_allclose(found, expected(low_res, low_res), atol=1e-6)


class _Strange(http.server.BaseHTTPRequestHandler):
    """Answers as no model server does; the path of the address says how."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.path.split("/")[1]
        body = {
            "html": b"<html>gateway</html>",
            "list": b"[1]",
            "other": json.dumps({"outputs": {"a": 1, "b": 2}}).encode(),
            "shape": json.dumps({"outputs": [[[[0.5]]]]}).encode(),
            "text": json.dumps({"outputs": "text"}).encode(),
            "deep": b"[" * 100_000,
        }.get(kind, b'{"outputs": []}')
        self.send_response(502 if kind == "html" else 200)
        self.send_header("Content-Length", str(len(body) + (100 if kind == "cut" else 0)))
        self.end_headers()
        if kind == "slow":
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.15)
        else:
            self.wfile.write(body)


@pytest.fixture
def strange():
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Strange)
    running.daemon_threads = True
    running.handle_error = lambda *_: None
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize(
    "kind, code, words",
    [
        ("html", "UNAVAILABLE", "HTTP status 502 without a message"),
        ("list", "INTERNAL", "no JSON object"),
        ("deep", "INTERNAL", "no JSON object"),
        ("other", "INTERNAL", "the outputs a, b, expected 'image'"),
        ("shape", "INTERNAL", r"shape \(1, 1, 1, 1\), expected \(1, 24, 20, 3\)"),
        ("cut", "UNAVAILABLE", "100 bytes too early"),
        ("text", "INTERNAL", "answered with no array"),
        ("slow", "DEADLINE_EXCEEDED", "no answer within 0.6 s"),
    ],
)
def test_answers_that_are_none(strange, kind, code, words):
    with (
        Client(f"{strange}/{kind}", attempts=1, deadline=0.6 if kind == "slow" else 20) as client,
        pytest.raises(ServingError, match=words) as caught,
    ):
        client.upscale(image())
    assert caught.value.code == code


def test_answer_without_bytes(strange):
    with Client(f"{strange}/text") as client, pytest.raises(ServingError, match="no bytes"):
        client.upscale(png(image()))


def test_arguments(tmp_path):
    for address in ("ftp://x", "http://localhost:abc", "http://localhost:99999", "http:///x", "grpc://"):
        with pytest.raises(InputError, match=f"address is '{address}'"):
            Client(address)
    for named in ({"deadline": 0}, {"attempts": 0}, {"backoff": -1.0}, {"max_message": 0}, {"model": ""}):
        with pytest.raises(InputError):
            Client("http://localhost:1", **named)
    client = Client("http://localhost:1")
    with pytest.raises(InputError, match="dtype float64"):
        client.upscale(image().astype(np.float64))
    with pytest.raises(InputError, match="references is 2 of them"):
        client.upscale(image(), [image(), image()])
    with pytest.raises(InputError, match="image has shape"):
        client.upscale(image()[:, :0])
    with pytest.raises(InputError, match="image is int"):
        client.upscale(3)
    with pytest.raises(InputError, match="registration is for arrays"):
        client.upscale(tmp_path / "missing.png", registration=True)
    with pytest.raises(OSError):
        client.upscale(tmp_path / "missing.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match="empty"):
        client.upscale(tmp_path / "empty.png")


@pytest.mark.parametrize(
    "details, wanted",
    [
        (
            "assertion failed: [tfcorr: too large: 3 [pixels]] [Condition x]\n\t [[{{node a}}]]",
            "too large: 3 [pixels]",
        ),
        ("tfcorr: no image [[{{node b}}]]", "no image"),
        ("tfcorr: one line\nanother", "one line"),
        ("Servable not found", "Servable not found"),
        ("", ""),
    ],
)
def test_sentence(details, wanted):
    assert sentence(details) == wanted


def test_long_foreign_message_is_cut():
    assert len(sentence("x" * 5000)) < 420


def test_without_the_extra():
    """gRPC without its packages: a sentence; REST works, and nothing imports TensorFlow."""
    program = (
        "import sys; sys.modules['grpc'] = None\n"
        "from tfcorr.serving import Client\n"
        "Client('http://localhost:1').close()\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        "try: Client('localhost:1')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(TfcorrError.__name__)
    assert "pip install 'tfcorr[serving]'" in done.stdout
