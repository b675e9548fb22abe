"""What counts as free memory, and the budgets that follow from it."""

import pytest

from tfcorr.refsr import memory


@pytest.mark.parametrize(
    ("folder", "limit", "used", "cache"),
    [
        (".", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_control_group_limits_what_is_free(tmp_path, monkeypatch, folder, limit, used, cache):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_meminfo_available", lambda: 10**10)
    assert memory.available_memory() == 10**10
    group = tmp_path / folder
    group.mkdir(exist_ok=True)
    (group / limit).write_text("3000000000\n")
    (group / used).write_text("2500000000\n")
    assert memory.available_memory() == 5 * 10**8
    # Files that were read can be forgotten again.
    (group / "memory.stat").write_text(f"anon 7\n{cache} 1500000000\n")
    assert memory.available_memory() == 2 * 10**9
    (group / limit).write_text("max\n")
    assert memory.available_memory() == 10**10


def test_the_machine_has_some_memory():
    assert memory.available_memory() >= 256 * 10**6
