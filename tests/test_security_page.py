"""The page of promises names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def rows() -> list[tuple[str, str]]:
    """(promise, test) of all tables."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return [tuple(line) for line in lines if line[0] not in ("promise", "---")]


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_promise_has_a_test():
    assert len(rows()) >= 25
    for promise, test in rows():
        assert re.search(r"tests/|scripts/|::test_|the same", test), promise


@pytest.mark.parametrize("line", [test for _, test in rows()], ids=range(len(rows())))
def test_what_is_named_is_there(line):
    for name in re.findall(r"`(scripts/[\w.]+)", line):
        assert (ROOT / name).is_file(), name
    file = None
    for place, function in re.findall(r"`(tests/[\w/.]+\.py)?(?:::(test_\w+))?", line):
        file = ROOT / place if place else file
        if place:
            assert file.is_file(), place
        if function:
            # A name alone belongs to the file before it, of the first table's tests else.
            source = file or ROOT / "tests" / "imaging" / "test_file_corpus.py"
            assert function in functions(source), f"{source.name}::{function}"


def test_figures_of_the_corpus_are_those_of_the_page():
    from file_corpus import cases

    told = re.search(r"(\d+) cases, ([\d,]+) files", PAGE)
    # One case, a file without permission, is there for others than root only.
    assert abs(int(told[1]) - len(cases())) <= 1
