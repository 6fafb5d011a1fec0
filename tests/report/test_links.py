"""Only web pages become links."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.report import Source, write_comparison, write_report
from stillhouse.report.links import web_addresses
from stillhouse.spec.records import SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]

UNSAFE = [
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    " javascript:alert(1)",
    "java\nscript:alert(1)",
    "\x01javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:x",
    "file:///etc/passwd",
    "sqlite:///mlflow.db",
    "http:",
    "http://[",
    "//host/path",
    "runs/1",
    "",
]


@pytest.mark.parametrize("address", UNSAFE)
def test_what_is_no_web_page_is_no_link(address: str) -> None:
    assert web_addresses({"a": address}) == {}


@pytest.mark.parametrize("address", ["http://127.0.0.1:5000/#/runs/1", "https://mlflow.example/a?b=c#d", "HTTPS://host/"])
def test_web_pages_are_links(address: str) -> None:
    assert web_addresses({"a": address}) == {"a": address}


def test_neither_a_page_nor_its_figure_nor_a_comparison_has_another_address(facts: Facts, record: Make, tmp_path: Path) -> None:
    one = record(key="k")
    addresses = {"": "javascript:alert(1)", "k": "javascript:alert(2)"}
    pages = [
        write_report(facts(), [one], tmp_path / "one", (), addresses).page,
        write_comparison([Source(facts=facts(name=name), records=[one], addresses=addresses) for name in "ab"], tmp_path).page,
    ]
    for page in pages:
        assert "alert(" not in page.read_text(encoding="utf-8")
