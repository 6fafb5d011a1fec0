"""Where the numbers of a page come from, without secrets."""

from collections.abc import Callable

from stillhouse.report.provenance_words import provenance, tracked
from stillhouse.spec.records import SweepFacts


def test_command_data_and_environment_are_listed(facts: Callable[..., SweepFacts]) -> None:
    rows = dict(
        provenance(
            facts(command="stillhouse sweep a.yaml", seconds=61.0, dataset={"name": "digits"}, environment={"gpu": None})
        )
    )
    assert rows["Command"] == "stillhouse sweep a.yaml"
    assert (rows["Duration"], rows["Data: name"], rows["gpu"]) == ("1 min 1 s", "digits", "none")


def test_secrets_of_addresses_and_commands_are_masked(facts: Callable[..., SweepFacts]) -> None:
    shown = provenance(
        facts(
            command="stillhouse sweep a.yaml --set tracking.uri=https://me:hush@host/?token=s3cr3t",
            tracking={"uri": "postgresql://me:hush@host/db", "experiment": None},
        )
    )
    text = str(shown)
    assert "hush" not in text
    assert "s3cr3t" not in text
    assert "host/db" in text


def test_links_of_a_local_server_need_it_to_run(facts: Callable[..., SweepFacts]) -> None:
    assert tracked(facts(), {}) == ""
    assert "while `stillhouse ui made-up` runs" in tracked(facts(), {"a": "http://127.0.0.1:5000/#/runs/1"})
    assert "stillhouse ui" not in tracked(facts(), {"a": "https://mlflow.example/#/runs/1"})
