"""The files in deploy/: they parse as what they are for, agree with one another, and name versions."""

import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
IMAGE = re.compile(r"tensorflow/serving:(\d+\.\d+\.\d+)")


def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def manifests() -> dict[str, dict]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def container() -> dict:
    (found,) = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


def message(name: str, fields: dict[str, tuple[int, str]], repeated: tuple[str, ...] = ()):
    """A message class; the server's messages of these two files are not in tensorflow-serving-api.

    Numbers and types are those of its session_bundle_config.proto and monitoring_config.proto.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

    assert wrappers_pb2  # puts its messages into the pool
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto",
        package="tfcorr.test",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    proto = file.message_type.add(name=name)
    plain = {"int64": 3, "bool": 8, "string": 9}
    for field, (number, kind) in fields.items():
        label = 3 if field in repeated else 1
        if kind in plain:
            proto.field.add(name=field, number=number, type=plain[kind], label=label)
        else:
            proto.field.add(name=field, number=number, type=11, type_name=kind, label=label)
    if name == "MonitoringConfig":
        inner = file.message_type.add(name="PrometheusConfig")
        inner.field.add(name="enable", number=1, type=8, label=1)
        inner.field.add(name="path", number=2, type=9, label=1)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tfcorr.test.{name}"))


@pytest.fixture(scope="module")
def batching_parameters():
    wrapped = ".google.protobuf.Int64Value"
    return message(
        "BatchingParameters",
        {
            "max_batch_size": (1, wrapped),
            "batch_timeout_micros": (2, wrapped),
            "max_enqueued_batches": (3, wrapped),
            "num_batch_threads": (4, wrapped),
            "thread_pool_name": (5, ".google.protobuf.StringValue"),
            "allowed_batch_sizes": (6, "int64"),
            "pad_variable_length_inputs": (7, "bool"),
        },
        repeated=("allowed_batch_sizes",),
    )


def parsed(file: str, kind):
    from google.protobuf import text_format

    return text_format.Parse((DEPLOY / "config" / file).read_text(), kind())


@pytest.mark.parametrize(
    "file, names", [("models.pbtxt", ["tfcorr"]), ("models_batched.pbtxt", ["tfcorr", "tfcorr_batched"])]
)
def test_models(file, names):
    server_config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    config = parsed(file, server_config.ModelServerConfig)
    models = config.model_config_list.config
    assert [model.name for model in models] == names
    for model in models:
        assert model.base_path == f"/models/{model.name}"
        assert model.model_platform == "tensorflow"


def test_batching(batching_parameters):
    pool = parsed("batching.pbtxt", batching_parameters)
    assert pool.num_batch_threads.value >= 1
    model = parsed("batching_params.pbtxt", batching_parameters)
    assert model.max_batch_size.value > 1
    # Padding would put black borders into images.
    assert not model.pad_variable_length_inputs


def test_monitoring():
    kind = message("MonitoringConfig", {"prometheus_config": (1, ".tfcorr.test.PrometheusConfig")})
    config = parsed("monitoring.pbtxt", kind)
    assert config.prometheus_config.enable
    annotations = manifests()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == config.prometheus_config.path


def test_a_misspelt_field_is_noticed(batching_parameters):
    from google.protobuf import text_format

    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batch_sizes { value: 4 }", batching_parameters())


def flags(arguments: list[str]) -> dict[str, str]:
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


def test_both_ways_start_the_server_alike():
    service = compose()["services"]["server"]
    here, there = flags(service["command"]), flags(container()["args"])
    threads = {"tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism"}
    assert here == {name: value for name, value in there.items() if name not in threads}
    assert service["entrypoint"] == container()["command"] == ["tensorflow_model_server"]
    # Batching by model only: with it for all, `from_bytes` and its scalar would be refused.
    assert here["enable_per_model_batching_parameters"] == "true"


def test_every_configuration_file_is_there():
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    (generated,) = kustomization["configMapGenerator"]
    packed = {Path(file).name for file in generated["files"]}
    assert all((DEPLOY / file).is_file() for file in generated["files"])
    assert all((DEPLOY / file).is_file() for file in kustomization["resources"])
    for value in flags(container()["args"]).values():
        if value.startswith("/config/"):
            assert Path(value).name in packed
    volume = next(
        v for v in manifests()["Deployment"]["spec"]["template"]["spec"]["volumes"] if "configMap" in v
    )
    assert volume["configMap"]["name"] == generated["name"]


def test_ports_and_labels_agree():
    deployment, service = manifests()["Deployment"], manifests()["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    numbers = {port["name"]: port["containerPort"] for port in container()["ports"]}
    given = flags(container()["args"])
    assert numbers == {"grpc": int(given["port"]), "rest": int(given["rest_api_port"])}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(numbers)


def test_one_version_everywhere():
    """The stock image, the one to build in and the one to build on; none is `latest`."""
    dockerfile = (DEPLOY / "Dockerfile.custom").read_text()
    (serving,) = re.findall(r"^ARG SERVING=(\S+)$", dockerfile, re.MULTILINE)
    used = [compose()["services"]["server"]["image"], container()["image"]]
    assert {IMAGE.fullmatch(image)[1] for image in used} == {serving}
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == [
        "tensorflow/serving:${SERVING}-devel",
        "tensorflow/serving:${SERVING}",
    ]
    build = (DEPLOY / "serving.BUILD").read_text()
    assert f"TFCORR_TF_VERSION={serving}" in build
    requirement = re.search(r"^\s*tensorflow>=(\d+\.\d+)", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert serving.startswith(f"{requirement[1]}.")


def test_custom_image_copies_every_source_of_the_ops():
    dockerfile = (DEPLOY / "Dockerfile.custom").read_text()
    copied = [
        source
        for line in re.findall(r"^COPY (custom_ops\S*(?: \S+)*)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    kept = [
        line.removeprefix("!")
        for line in (DEPLOY / "Dockerfile.custom.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    folder = ROOT / "custom_ops"
    sources = [path for pattern in ("*.cc", "*.h", "kernels/*.*") for path in folder.glob(pattern)]
    assert len(sources) > 10
    for path in sources:
        name = path.relative_to(ROOT).as_posix()
        for patterns in (copied, kept):
            assert any(fnmatch(name, p) or name.startswith(f"{p}/") for p in patterns), (name, patterns)


def test_custom_image_adds_the_ops_to_the_list(tmp_path):
    """The `RUN` of the Dockerfile, on a file like TensorFlow Serving's."""
    dockerfile = (DEPLOY / "Dockerfile.custom").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^RUN (grep .*)$", dockerfile, re.MULTILINE)
    folder = tmp_path / "tensorflow_serving/model_servers"
    folder.mkdir(parents=True)
    (folder / "BUILD").write_text('SUPPORTED_TENSORFLOW_OPS = if_v2([]) + if_not_v2(["a"]) + ["b"]\n')
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    found = {"if_v2": lambda x: x, "if_not_v2": lambda x: []}
    exec((folder / "BUILD").read_text(), found)
    assert found["SUPPORTED_TENSORFLOW_OPS"] == ["//tensorflow_serving/custom_ops/tfcorr:ops", "b"]
    (folder / "BUILD").write_text("SOMETHING_ELSE = []\n")
    assert subprocess.run(["bash", "-ec", command], cwd=tmp_path).returncode != 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_health_check_of_the_composition(server):
    """Its own command, with the port of a server that is here: healthy, then loading, then gone."""
    kind, *command = compose()["services"]["server"]["healthcheck"]["test"]
    assert kind == "CMD"
    command = [part.replace("/8501", f"/{server.rest_port}") for part in command]
    try:
        assert subprocess.run(command, timeout=30).returncode == 0
        server.model.available = False
        assert subprocess.run(command, timeout=30).returncode != 0
    finally:
        server.model.available = True
    server.close()
    assert subprocess.run(command, timeout=30, stderr=subprocess.DEVNULL).returncode != 0


def test_documented_files_exist():
    text = (ROOT / "docs" / "serving.md").read_text()
    for name in set(re.findall(r"\bdeploy/[\w./]+\w", text)):
        assert (ROOT / name).exists(), name


def test_server_of_the_tests_is_a_program(stand_in):
    """`python tests/serving/server.py MODEL`, as the documentation says, and the client from outside."""
    from tfcorr.serving import Client

    program = Path(__file__).parent / "server.py"
    process = subprocess.Popen(
        [sys.executable, str(program), str(stand_in), "--grpc-port", "0", "--rest-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)[0]
        with Client(address) as client:
            assert json.dumps(client.status()[0]["state"]) == '"AVAILABLE"'
    finally:
        process.terminate()
        process.wait(timeout=20)
