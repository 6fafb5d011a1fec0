import base64
import errno
import gzip
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pyarrow.parquet as pq
import pytest

from stillhouse.report.files import ReportFiles
from stillhouse.report.page import write_report
from stillhouse.spec.records import KnowledgeFacts, SweepFacts, TeacherFacts, TrialRecord
from stillhouse.spec.size_bound import Budget

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]
Sweep = Callable[..., list[TrialRecord]]
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Outline(HTMLParser):
    """The elements of a page and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag == "script"
        if self._open:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.scripts[-1] += data
        else:
            self.text.append(data)

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(name)) is not None]


def read(files: ReportFiles) -> str:
    return files.page.read_text(encoding="utf-8")


def words(files: ReportFiles) -> str:
    return " ".join(" ".join(Outline(read(files)).text).split())


def figures(files: ReportFiles) -> Any:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', read(files), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_four_files_are_written_and_nothing_else(facts: Facts, sweep: Sweep, tmp_path: Path) -> None:
    records = sweep()
    files = write_report(facts(), records, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "tradeoff.csv",
        "tradeoff.parquet",
        "tradeoff.png",
    ]
    assert files.figure.read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(files.csv)) == pq.read_table(files.table).num_rows == len(records)
    assert files.page.stat().st_size < 5_000_000


def test_the_same_records_give_the_same_page(facts: Facts, sweep: Sweep, tmp_path: Path) -> None:
    pages = [read(write_report(facts(), sweep(), tmp_path / name)) for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_the_page_asks_nothing_of_the_network(facts: Facts, sweep: Sweep, tmp_path: Path) -> None:
    outline = Outline(read(write_report(facts(), sweep(), tmp_path)))
    for name in ("src", "href", "action", "srcset", "poster"):
        assert all(value.startswith(("#", "data:")) for value in outline.attributes(name))
    policy = next(each["content"] for tag, each in outline.elements if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_the_policy_lets_the_pages_own_two_scripts_run_and_no_other(facts: Facts, sweep: Sweep, tmp_path: Path) -> None:
    page = read(write_report(facts(), sweep(), tmp_path))
    outline = Outline(page)
    library = next(text for text in outline.scripts if len(text) > 1_000_000)
    plotly = gzip.decompress(base64.b64decode(library))
    allowed = re.findall(r"'(sha256-[^']+)'", next(v for v in outline.attributes("content") if "script-src" in v))
    expected = {
        "sha256-" + base64.b64encode(hashlib.sha256(source).digest()).decode()
        for source in (plotly, outline.scripts[-1].encode())
    }
    assert set(allowed) == expected
    assert "'unsafe-inline'" not in page.split("script-src")[1].split(";")[0]


def test_markup_in_names_reasons_and_settings_stays_text(facts: Facts, record: Make, tmp_path: Path) -> None:
    records = [
        record(method=EVIL, student=EVIL, hyperparameters={EVIL: EVIL}, options={EVIL: EVIL}, key=EVIL, curve=curve()),
        record(method=EVIL, student=EVIL, hyperparameters={EVIL: EVIL + "2"}, key=EVIL + "2"),
        record(method="control", student=EVIL, options={EVIL: EVIL}),
        record(method=EVIL, status="failed", test=None, reason=EVIL),
    ]
    made = facts(name=EVIL, notes=[EVIL], environment={EVIL: EVIL}, command=EVIL, spec={EVIL: EVIL}, dataset={"name": EVIL})
    page = read(write_report(made, records, tmp_path))
    outline = Outline(page)
    plain = Outline(read(write_report(facts(), [record(), record("control")], tmp_path / "plain")))
    assert len(outline.scripts) == len(plain.scripts)
    assert not outline.attributes("onerror")
    assert [tag for tag, _ in outline.elements].count("img") == [tag for tag, _ in plain.elements].count("img")


def curve() -> list[dict[str, Any]]:
    return [{"epoch": epoch, "stage": "main", "validation_accuracy": 0.5 + epoch / 100} for epoch in range(1, 4)]


def test_passwords_never_reach_any_file(facts: Facts, record: Make, tmp_path: Path) -> None:
    secret = "postgresql://writer:hunter2@tracking.example/mlflow"
    made = facts(
        tracking={"uri": secret, "experiment": "e", "run_id": "r"},
        command=f"stillhouse sweep a.yaml --set tracking.uri={secret}",
        notes=[f"no answer from {secret}"],
        spec={"tracking": {"uri": secret, "password": "hunter2"}},
    )
    files = write_report(made, [record(status="failed", test=None, reason=f"cannot reach {secret}")], tmp_path)
    for path in (files.page, files.csv, files.table):
        assert b"hunter2" not in path.read_bytes()
    assert "://***@tracking.example" in words(files)


@pytest.mark.parametrize("count", [1, 3])
def test_a_sweep_of_failures_says_so_and_why(facts: Facts, record: Make, tmp_path: Path, count: int) -> None:
    records = [record(status="failed", test=None, seed=seed, reason="loss is NaN at epoch 1") for seed in range(count)]
    text = words(write_report(facts(), records, tmp_path))
    assert ("The only trial failed" if count == 1 else "All 3 trials failed") in text
    assert "loss is NaN at epoch 1" in text


def test_a_sweep_without_trials_is_a_page_that_says_so(facts: Facts, tmp_path: Path) -> None:
    files = write_report(facts(), [], tmp_path)
    assert "No trial has ended yet" in words(files)
    assert files.figure.read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(files.csv)) == 0


def test_one_trial_is_reported_with_one_seed_and_no_interval(facts: Facts, record: Make, tmp_path: Path) -> None:
    text = words(write_report(facts(), [record(test=0.9)], tmp_path))
    assert "90.0% on test data (one seed, so no interval)" in text
    assert "no student finished both with control and with another method" in text


def test_a_sweep_without_teacher_has_a_page(facts: Facts, record: Make, tmp_path: Path) -> None:
    text = words(write_report(facts(teachers=[]), [record("control"), record("a", test=0.91)], tmp_path))
    assert "The sweep had no teacher." in text


def test_numbers_that_are_missing_or_not_numbers_do_no_harm(facts: Facts, record: Make, tmp_path: Path) -> None:
    records = [
        record(test=math.nan),
        record("control", metrics={"latency_ms": math.nan, "parameters": math.inf}),
        record("a", metrics={"parameters": 0.0, "macs": math.nan}, curve=[{"epoch": 1, "validation_accuracy": None}]),
        record("b", curve=[{"validation_accuracy": math.nan}, {"epoch": None, "validation_accuracy": 0.5}]),
    ]
    teacher = (
        facts()
        .teachers[0]
        .model_copy(update={"test_accuracy": None, "validation_accuracy": None, "latency_ms": None, "seconds_per_sample": None})
    )
    files = write_report(facts(teachers=[teacher]), records, tmp_path)
    assert "its time per sample was not measured" in words(files)


def test_the_figures_are_valid_for_plotly_and_draw_every_winner_once(facts: Facts, sweep: Sweep, tmp_path: Path) -> None:
    files = write_report(facts(), sweep(), tmp_path)
    data = figures(files)
    tradeoff = data["tradeoff"]["figure"]
    go.Figure(tradeoff)
    large = [trace for trace in tradeoff["data"] if "error_y" in trace]
    # 5 students with 7 methods, one pair of which was skipped.
    assert sum(len(trace["y"]) for trace in large) == 34
    for axis in data["tradeoff"]["switch"]["axes"].values():
        assert [len(x) for x in axis["x"]] == [len(trace["x"]) for trace in tradeoff["data"]]
    for group in ("curves", "sensitivity"):
        for panels in data[group].values():
            for panel in panels:
                go.Figure({"data": panel["data"], "layout": panel["layout"]})


def test_every_axis_has_a_front_of_its_own_training_time_too(facts: Facts, record: Make, tmp_path: Path) -> None:
    quick, slow, beaten = {"train_seconds": 36.0}, {"train_seconds": 360.0}, {"train_seconds": 720.0}
    records = [
        record("control", validation=0.80, test=0.80, metrics=quick),
        record("a", validation=0.90, test=0.90, metrics=slow),
        record("b", validation=0.85, test=0.85, metrics=beaten),
    ]
    drawn = figures(write_report(facts(), records, tmp_path))["tradeoff"]
    fronts = drawn["switch"]["fronts"]
    assert [front for front in fronts if front] == list(drawn["switch"]["axes"])
    place = fronts.index("train_hours")
    assert drawn["switch"]["axes"]["train_hours"]["x"][place] == [0.01, 0.1]
    assert drawn["switch"]["scores"]["test"]["y"][place] == [0.80, 0.90]


def test_best_answers_come_back_with_the_files(facts: Facts, sweep: Sweep, tmp_path: Path) -> None:
    files = write_report(facts(), sweep(), tmp_path, [Budget("parameters", 30_000), Budget("parameters", 10)])
    assert [each["budget"] for each in files.best] == [{"parameters": 30_000}, {"parameters": 10}]
    assert files.best[0]["parameters"] <= 30_000
    assert files.best[1]["trial"] is None
    assert "Nothing fits. The smallest finished student needs 5.4k parameters." in words(files)


def test_an_answer_has_the_interval_and_the_number_of_seeds_of_everything_that_has_seeds(
    facts: Facts, record: Make, tmp_path: Path
) -> None:
    accuracies = (0.80, 0.81, 0.82)
    records = [record("a", seed=seed, test=accuracy) for seed, accuracy in enumerate(accuracies)]
    records += [record("control", seed=seed, test=accuracy - 0.01 * seed) for seed, accuracy in enumerate(accuracies)]
    (best,) = write_report(facts(), records, tmp_path).best
    # t(0.975, 2) / sqrt(3) = 2.484138 with a deviation of 0.01; the gains are 0, 0.01 and 0.02.
    assert best["method"] == "a"
    assert best["validation_interval"] == best["test_interval"] == pytest.approx([0.81 - 0.02484138, 0.81 + 0.02484138])
    assert best["accuracy_drop_interval"] == pytest.approx([0.131 - 0.02484138, 0.131 + 0.02484138])
    assert best["gain_interval"] == pytest.approx([0.01 - 0.02484138, 0.01 + 0.02484138])
    assert (best["seeds"], best["gain_seeds"], best["teacher"]) == (3, 3, "large")


def test_a_curve_over_seeds_has_its_interval_in_the_hover(facts: Facts, record: Make, tmp_path: Path) -> None:
    records = [
        record("a", seed=seed, curve=[{"epoch": 1, "validation_accuracy": 0.5 + seed / 100}], test=0.5) for seed in range(3)
    ]
    ((panel,),) = figures(write_report(facts(), records, tmp_path))["curves"].values()
    bold = next(trace for trace in panel["data"] if trace.get("name") == "a")
    assert bold["y"] == [0.51]
    assert bold["customdata"] == [" ± 2.48"]


def test_every_kind_of_a_teachers_knowledge_has_a_line_of_its_own(facts: Facts, record: Make, tmp_path: Path) -> None:
    kinds = [
        KnowledgeFacts(kind="logits", mode="cached", reason="40 B per sample; 4 views take 0.5 MB"),
        KnowledgeFacts(kind="flow_matrix(layer1, layer2)", mode="inline", reason="2 kB per sample; calls served: no room"),
    ]
    teacher = facts().teachers[0].model_copy(update={"kinds": kinds})
    page = read(write_report(facts(teachers=[teacher]), [record()], tmp_path))
    assert "<li>logits cached: 40 B per sample; 4 views take 0.5 MB</li>" in page
    assert "<li>flow_matrix(layer1, layer2) inline: 2 kB per sample; calls served: no room</li>" in page


def test_facts_of_the_first_release_give_one_text_for_all_kinds(facts: Facts, record: Make, tmp_path: Path) -> None:
    document = facts().teachers[0].model_dump(mode="json") | {"reason": "logits cached: 40 B; feature inline: no room"}
    del document["kinds"]
    page = read(write_report(facts(teachers=[TeacherFacts.model_validate(document)]), [record()], tmp_path))
    assert "<li>logits cached: 40 B; feature inline: no room</li>" in page


def test_text_that_matplotlib_would_read_as_mathematics_is_drawn_as_it_is(facts: Facts, record: Make, tmp_path: Path) -> None:
    records = [record("a$_x$", student="_hidden"), record("control", student="_hidden"), record("\u6559", student="$")]
    assert write_report(facts(name="$x"), records, tmp_path).figure.exists()


def test_a_write_that_fails_leaves_the_old_page(
    facts: Facts, record: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_report(facts(), [record()], tmp_path)
    before = files.page.read_bytes()

    def full_disk(_: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="tradeoff"):
        write_report(facts(), [record(), record("control")], tmp_path)
    assert files.page.read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.slow
def test_ten_thousand_trials_fit_in_a_page_below_five_megabytes(facts: Facts, sweep: Sweep, tmp_path: Path) -> None:
    records = sweep(trials_per_pair=342)[:10_000]
    assert len(records) == 10_000
    began = time.monotonic()
    files = write_report(facts(), records, tmp_path)
    assert time.monotonic() - began < 60
    assert files.page.stat().st_size < 5_000_000
    assert "The page shows 1,000 of 10,000 rows" in words(files)
    assert len(pd.read_csv(files.csv)) == 10_000
