"""The floor: ids, named queries, redaction."""

from __future__ import annotations

import pytest

from kit.ids import new_id
from kit.queries import load_queries
from kit.telemetry import redact


def test_ids_are_unique_and_sort_by_time(monkeypatch):
    made = [new_id("job") for _ in range(2000)]
    assert len(set(made)) == 2000
    times = [each[len("job_") :][:10] for each in made]
    assert times == sorted(times)
    assert all(each.startswith("job_") and each == each.lower() for each in made)


def test_named_queries_are_found_by_name(tmp_path):
    file = tmp_path / "q.sql"
    file.write_text("-- a comment\n\n-- name: one\nSELECT 1;\n\n-- name: two\nSELECT :x\n")
    queries = load_queries(file)
    assert {name: str(query) for name, query in queries.items()} == {"one": "SELECT 1", "two": "SELECT :x"}


def test_a_query_named_twice_is_refused(tmp_path):
    file = tmp_path / "q.sql"
    file.write_text("-- name: one\nSELECT 1\n-- name: one\nSELECT 2\n")
    with pytest.raises(ValueError, match="twice"):
        load_queries(file)


@pytest.mark.parametrize(
    "line",
    [
        "key amai_live_abcdefghijklmnop was used",
        "Authorization: Bearer abcdef.ghi",
        "sk_test_51Habcdefgh and whsec_abcdefgh",
        "GET /files/x?expires=1&signature=deadbeef",
        "paid with 4242424242424242",
        "paid with 4000 0566 5566 5556",
        "paid with 3782-822463-10005.",
    ],
)
def test_secrets_do_not_reach_the_log(line):
    for secret in ("abcdefgh", "abcdef.ghi", "51Habcdefgh", "deadbeef", "4242", "5556", "10005"):
        assert secret not in redact(line)
    assert "***" in redact(line)


@pytest.mark.parametrize(
    "line",
    [
        "at 1795351200123 ms",
        "4242424242424241",
        "took 1.4242424242424242 s",
        "job_4242424242424242",
        "1234567",
    ],
)
def test_other_numbers_stay_in_the_log(line):
    assert redact(line) == line
