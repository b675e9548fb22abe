"""Typed configuration: what is refused, and how it is said."""

import dataclasses
import datetime
import os

import pytest
import yaml

from tfcorr.config import (
    STAGES,
    ConfigError,
    apply_overrides,
    config_hash,
    load_config,
    parse_config,
    resolve_data_path,
)
from tfcorr.config.reading import load_yaml
from tfcorr.resources import configs_dir

MATCHER = {
    "stage": "matcher",
    "name": "m",
    "output": "out",
    "run": "run",
    "data": {"images": ["bsds400"], "exclude": [{"scene": "lund", "photos": ["026"]}]},
    "loss": {"margin": 1, "safe_radius": 4.0},
    "train": {"steps": 10, "batch": 2, "learning_rate": {"initial": "1e-3"}},
}


def matcher(*overrides):
    return parse_config(apply_overrides(MATCHER, overrides))


def test_values_and_defaults():
    config = matcher("train.steps=20", "data.homography.scale=[0.5, 2]", "name=other")
    assert config.train.steps == 20
    assert config.data.homography.scale == (0.5, 2.0)
    assert config.name == "other"
    # Whole numbers stand for floats, and YAML 1.1's idea of 1e-3 is put right.
    assert config.loss.margin == 1.0 and config.train.learning_rate.initial == 1e-3
    assert config.data.exclude[0].photos == ("026",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.crop=abc", "data.crop: expected int, got 'abc'"),
        ("data.crop=1.5", "data.crop: expected int, got 1.5"),
        ("train.batch=true", "train.batch: expected int, got True"),
        ("train.steps=0", "train.steps: expected at least 1, got 0"),
        ("train.log_every=-1", "train.log_every: expected at least 1, got -1"),
        (
            "train.ema=.nan",
            "train.ema: expected a finite number, got nan",
        ),
        ("train.lerning_rate=1", "train.lerning_rate: unknown key, did you mean 'learning_rate'?"),
        ("zzz=1", "zzz: unknown key, known keys are stage, name"),
        ("name=5", "name: expected str, got 5 (write it in quotes)"),
        (
            "data.homography.kind=narrow",
            "data.homography.kind: expected one of published, wide, got 'narrow'",
        ),
        ("data.homography.scale=[1]", "data.homography.scale: expected 2 values, got [1]"),
        ("data.images=bsds400", "data.images: expected a list, got 'bsds400'"),
        ("data.exclude.0.photos=[26]", "data.exclude.0.photos.0: expected str, got 26 (write it in quotes)"),
        ("data.exclude.4.scene=x", "data.exclude.4.scene: data.exclude has 1 items, counted from 0; got '4'"),
        ("train=7", "train: expected a mapping of keys, got 7"),
        ("train.multipliers={a: b}", "train.multipliers.a: expected float, got 'b'"),
        ("stage=teacher", f"stage: expected one of {', '.join(STAGES)}, got 'teacher'"),
        ("stage=[matcher]", f"stage: expected one of {', '.join(STAGES)}, got ['matcher']"),
        ("steps", "'steps': expected key=value"),
        ("name=[", "name: '[' is not YAML"),
    ],
)
def test_refusals_name_the_key(override, message):
    with pytest.raises(ConfigError) as error:
        matcher(override)
    assert str(error.value).startswith(message)


def test_an_override_does_not_reach_what_an_anchor_shares():
    rules = [{"scene": "church"}]
    changed = apply_overrides({"a": rules, "b": rules}, ["a.0.scene=market"])
    assert changed == {"a": [{"scene": "market"}], "b": [{"scene": "church"}]}
    assert rules == [{"scene": "church"}]


def test_missing_key():
    mapping = {**MATCHER, "loss": {"margin": 1.0}}
    with pytest.raises(ConfigError, match=r"loss\.safe_radius: missing, expected float"):
        parse_config(mapping)


def test_files(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(MATCHER))
    assert load_config(path, ["train.steps=3"]).train.steps == 3
    with pytest.raises(ConfigError, match=r"m\.yaml: data\.crop: expected int"):
        load_config(path, ["data.crop=x"])
    path.write_text(yaml.safe_dump({**MATCHER, "name": datetime.date(2024, 1, 31)}))
    with pytest.raises(ConfigError, match=r"m\.yaml: name: expected str, got datetime\.date"):
        load_config(path)
    path.write_text("a: [")
    with pytest.raises(ConfigError, match=r"m\.yaml: not a YAML file"):
        load_config(path)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match=r"expected a mapping of keys, got list"):
        load_config(path)
    with pytest.raises(
        ConfigError, match=r"nothing: no such configuration; those that ship are: .*matcher_cpu"
    ):
        load_config("nothing")


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "aliases stand for more than 20000 values"),
        ("a: &a [*a]", "aliases stand for more than 20000 values"),
        ("a: &a {b: *a}", "aliases stand for more than 20000 values"),
        ("[" * 50_000, "nested too deeply"),
        ("a: " + "{b: " * 50_000, "nested too deeply"),
        ("x: [" + "1, " * 30_000 + "1]", "more than 20000 values"),
        ("stage: matcher\nstage: restorer", "the key 'stage' is there twice"),
        ("train:\n  steps: 1\n  batch: 2\n  steps: 3", "the key 'steps' is there twice"),
        ("a: !!python/object/apply:os.system ['touch witness']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: !<tag:yaml.org,2002:python/module:os>", "could not determine a constructor"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: \x00", "special characters are not allowed"),
        ("? [1]\n: 2", "unhashable key"),
        ("x" * (2 << 20), "2097152 bytes long, expected at most 1048576"),
        ("a: 1\n---\na: 2", "single document"),
    ],
)
def test_texts_that_would_do_harm(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    message = str(error.value)
    assert message.startswith(f"{path}: not a YAML file: ") and words in message
    assert "\n" not in message and len(message) < 700
    assert [file.name for file in tmp_path.iterdir()] == ["m.yaml"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "train.steps=0x" + "f" * 6000,
            "train.steps: expected a number of at most 64 bits, got a number of th",
        ),
        ("train.steps=" + "9" * 400, "train.steps: expected a number of at most 64 bits"),
        ("loss.margin=" + "9" * 400, "loss.margin: expected a number of at most 64 bits"),
        ("loss.margin=1e999", "loss.margin: expected a finite number, got inf"),
        ("name=[" + "a, " * 15_000 + "a]", "name: expected str, got ['a', 'a'"),
        ("name={a: 1, a: 2}", "the key 'a' is there twice"),
        ("name=!!python/object/new:os.system [true]", "is not YAML"),
    ],
)
def test_values_that_would_do_harm(override, words):
    with pytest.raises(ConfigError) as error:
        matcher(override)
    assert words in str(error.value) and len(str(error.value)) < 500


def test_merged_keys_may_be_set_again(tmp_path):
    path = tmp_path / "m.yaml"
    text = "base: &base {steps: 1, batch: 2}\ntrain: {<<: *base, steps: 3}\nother: {<<: *base, batch: 4}"
    path.write_text(text)
    assert load_yaml(text)["train"] == {"steps": 3, "batch": 2}
    assert load_yaml(text)["other"] == {"steps": 1, "batch": 4}


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    for place in (tmp_path, tmp_path / "pipe.yaml", tmp_path / "circle.yaml", "/dev/zero", "nul\0.yaml"):
        with pytest.raises(ConfigError, match="no such configuration"):
            load_config(place)


def test_all_that_ship_are_valid():
    files = sorted(configs_dir().rglob("*.yaml"))
    assert files
    for file in files:
        config = load_config(file)
        assert type(config) is STAGES[config.stage]
        assert load_config(file.relative_to(configs_dir()).with_suffix("")) == config


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.delenv("TFCORR_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"albums: .*data_root=FOLDER or set TFCORR_DATA"):
        resolve_data_path("albums", None)
    assert resolve_data_path("/a/b", None).as_posix() == "/a/b"
    monkeypatch.setenv("TFCORR_DATA", str(tmp_path))
    assert resolve_data_path("albums", None) == tmp_path / "albums"
    assert resolve_data_path("albums", "/elsewhere").as_posix() == "/elsewhere/albums"


def test_hash():
    config = matcher()
    assert config_hash(config) != config_hash(matcher("train.steps=11"))
    ignored = ("train.max_minutes", "run")
    other = dataclasses.replace(matcher("train.max_minutes=1"), run="elsewhere")
    assert config_hash(config, ignored) == config_hash(other, ignored)
    assert config_hash(config) != config_hash(other)


def test_the_hash_outlives_new_keys_with_defaults():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        a: int = 1

    @dataclasses.dataclass(frozen=True)
    class InnerLater(Inner):
        b: float = 0.5

    @dataclasses.dataclass(frozen=True)
    class Stage:
        steps: int
        inner: Inner = Inner()
        items: tuple = ()

    @dataclasses.dataclass(frozen=True)
    class StageLater(Stage):
        inner: InnerLater = InnerLater()
        extra: dict = dataclasses.field(default_factory=dict)
        nested: Inner | None = None

    assert config_hash(Stage(3)) == config_hash(StageLater(3))
    assert config_hash(Stage(3, Inner(2))) == config_hash(StageLater(3, InnerLater(2)))
    assert config_hash(Stage(3, items=(Inner(2),))) == config_hash(StageLater(3, items=(InnerLater(2),)))
    others = [
        StageLater(4),
        StageLater(3, InnerLater(2)),
        StageLater(3, InnerLater(1, 0.6)),
        StageLater(3, extra={"a": 1}),
        StageLater(3, nested=Inner()),
        StageLater(3, items=(Inner(),)),
    ]
    digits = {config_hash(stage) for stage in (StageLater(3), *others)}
    assert len(digits) == 1 + len(others)
