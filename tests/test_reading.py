"""Tables and JSON objects from anywhere: read within limits, or refused in one line."""

import os

import pytest

from tfcorr import reading
from tfcorr.errors import TfcorrError
from tfcorr.reading import read_json_object, read_rows


def error_of(read, path) -> str:
    with pytest.raises(TfcorrError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and len(message) < 500 and "\n" not in message
    return message


def test_a_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffx,y,note\n1,2,"two\nlines"\n3,4,\n', encoding="utf-8")
    columns, rows = read_rows(path)
    assert columns == ["x", "y", "note"]
    assert rows == [{"x": "1", "y": "2", "note": "two\nlines"}, {"x": "3", "y": "4", "note": ""}]
    path.write_text("x,y\n")
    assert read_rows(path) == (["x", "y"], [])
    path.write_text("")
    assert read_rows(path) == ([], [])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x,y\n1\n", "line 2: not as many values"),
        (b"x,y\n1,2\n1,2,3\n", "line 3: more values"),
        (b"x,y\n\xff\xfe,1\n", "not a text file in UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "not a text file in UTF-8"),
        (b"x,y\n1," + b"2" * 200_000 + b"\n", "not a CSV file (field larger than field limit"),
        (b"x" * (2 << 20), "a line of more than 1,048,576 characters"),
        (b"," * (2 << 20), "a line of more than 1,048,576 characters"),
        (b'x\n"' + b"2\n" * 100_000, "not a CSV file (field larger"),
    ],
)
def test_tables_that_are_none(tmp_path, content, words):
    (tmp_path / "a.csv").write_bytes(content)
    assert words in error_of(read_rows, tmp_path / "a.csv")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    for read in (read_rows, read_json_object):
        assert "No such file" in error_of(read, tmp_path / "missing")
        assert "is a folder" in error_of(read, tmp_path)
        assert "not a regular file" in error_of(read, tmp_path / "pipe")
        assert "not a regular file" in error_of(read, "/dev/zero")
        assert "symbolic links" in error_of(read, tmp_path / "circle")


def test_limits_come_before_reading(tmp_path, monkeypatch):
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 100 << 30)
    assert "bytes long, expected at most 67108864" in error_of(read_rows, tmp_path / "large")
    assert "bytes long, expected at most 1048576" in error_of(read_json_object, tmp_path / "large")
    monkeypatch.setattr(reading, "MAX_ROWS", 3)
    (tmp_path / "rows.csv").write_text("x\n1\n2\n3\n")
    assert len(read_rows(tmp_path / "rows.csv")[1]) == 3
    (tmp_path / "rows.csv").write_text("x\n1\n2\n3\n4\n")
    assert "more than 3 rows" in error_of(read_rows, tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "has the key 'c' twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read: Exceeds the limit"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": \xff}', "not a text file"),
    ],
)
def test_json_that_is_none(tmp_path, content, words):
    (tmp_path / "a.json").write_bytes(content)
    assert words in error_of(read_json_object, tmp_path / "a.json")


def test_json(tmp_path):
    (tmp_path / "a.json").write_text('{"a": {"b": [1, 2.5, null, true]}}')
    assert read_json_object(tmp_path / "a.json") == {"a": {"b": [1, 2.5, None, True]}}
