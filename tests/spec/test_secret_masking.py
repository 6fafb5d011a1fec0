"""One masker for everything that is printed, logged and reported, and what its three users make of the same secrets."""

import json
import shlex
from string import ascii_letters, digits
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.report.provenance_words import provenance
from stillhouse.report.trials_table import csv_bytes, trials_table
from stillhouse.spec.display import show
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.spec.records import StudentChoice, SweepFacts, Trial, TrialRecord
from stillhouse.spec.secret_masking import mask_command, mask_data, mask_text, names_secret, user_part
from stillhouse.tracking.entries import clean_params, clean_tags, sweep_tags

# Each text with its secret, `hush` in several spellings, and what must be left of it.
TEXTS = [
    ("postgresql://me:hush@db/mlflow", "postgresql://***@db/mlflow"),
    ("postgresql://me:hu/sh#hush?hush@db/mlflow", "postgresql://***@db/mlflow"),
    ("https://hush@host/path", "https://***@host/path"),
    ("https://me:hush@host:5000/path failed", "https://***@host:5000/path failed"),
    (
        "postgresql+psycopg2://db/x?sslpassword=hush&sslmode=require",
        "postgresql+psycopg2://db/x?sslpassword=***&sslmode=require",
    ),
    ("https://host/?access_token=hush&x=1", "https://host/?access_token=***&x=1"),
    ("https://host/?x=1&api_key=hush", "https://host/?x=1&api_key=***"),
    ("https://host/b?X-Amz-Signature=hush&X-Amz-Date=1", "https://host/b?X-Amz-Signature=***&X-Amz-Date=1"),
    ("https://host/b?sv=2024&sig=hush", "https://host/b?sv=2024&sig=***"),
    ("postgresql://me:hu@sh@host/db", "postgresql://***@host/db"),
    ("postgresql://me:hu@s/h?#hush@host:5432/db", "postgresql://***@host:5432/db"),
    ("postgresql://me:h%40u%2Fsh%25@host/db", "postgresql://***@host/db"),
    ("https://host/?token=hu#sh&x=1", "https://host/?token=***&x=1"),
    ("--set tracking.uri=https://hush@host --json", "--set tracking.uri=https://***@host --json"),
    ("--set dataset.options.password=hush --json", "--set dataset.options.password=*** --json"),
    ("--set 'dataset={name: x, token: hush}'", "--set 'dataset={name: x, token: ***}'"),
    ("--api-key hush --json", "--api-key *** --json"),
    ("--tracking-token 'hu sh hush' --json", "--tracking-token '***' --json"),
    ("--password=hush", "--password=***"),
    ("AWS_ACCESS_KEY_ID=hush AWS_SECRET_ACCESS_KEY=hush run", "AWS_ACCESS_KEY_ID=*** AWS_SECRET_ACCESS_KEY=*** run"),
    ("AWS_SESSION_TOKEN=hush", "AWS_SESSION_TOKEN=***"),
    ("DATABRICKS_TOKEN=hush DATABRICKS_CLIENT_SECRET=hush", "DATABRICKS_TOKEN=*** DATABRICKS_CLIENT_SECRET=***"),
    ('MLFLOW_TRACKING_PASSWORD="hush hush"', 'MLFLOW_TRACKING_PASSWORD="***"'),
    ("AccountName=me;AccountKey=hush", "AccountName=me;AccountKey=***"),
    ("connect(user=me, password='hush') failed", "connect(user=me, password='***') failed"),
    ("Authorization: Bearer hush-hush.hush", "Authorization: Bearer ***"),
    ('{"uri": "x", "password": "hush", "n": 3}', '{"uri": "x", "password": "***", "n": 3}'),
    ("tracking:\n  token: hush\n  name: x", "tracking:\n  token: ***\n  name: x"),
]
ADDRESSES = [
    'postgresql://me:hu sh\'s "hush"@host/db',
    "postgresql://me:hush hush?x#y/z@host:5432/db",
    "  mysql://me: hush@host",
]
"""Addresses whose passwords contain what ends an address in other texts."""
HARMLESS = [
    "sqlite:////home/me@work/mlflow.db",
    "http://127.0.0.1:5000/a/me@work",
    "http://[::1]:5000/a:b@work",
    "http://[fe80::1%25eth0]:5000/runs/a:b@c",
    "mail me@example.org",
    "http://127.0.0.1:5000 answers, mail me@example.org",
    "http://127.0.0.1:5000",
    "tokenizer=bert num_tokens=512 design=3",
    "use_token=true has_token=False token=None",
    '{"token": 5, "keyed": "x"}',
    "SyntaxError: invalid token: x",
    "signature of the teacher's weights",
]
KEYS = ["password", "tracking.password", "api_key", "apiKey", "token", "AWS_SECRET_ACCESS_KEY", "accessToken", "client_secret"]


@pytest.mark.parametrize(("text", "masked"), TEXTS)
def test_secrets_of_many_forms_are_masked_and_the_rest_stays(text: str, masked: str) -> None:
    assert mask_text(text) == masked
    assert mask_text(masked) == masked


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_password_with_spaces_and_quotes_is_masked_where_the_address_stands_alone(address: str) -> None:
    masked = (mask_text(address), mask_data({"uri": [address]}), mask_command(["--set", f"tracking.uri={address}", "--json"]))
    assert "hu" not in str(masked)
    assert masked[2].startswith("--set")
    assert masked[2].endswith("--json")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert mask_text(text) == text


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_names_a_secret_hides_whatever_is_under_it(key: str) -> None:
    assert names_secret(key)
    data = {"a": [{key: "hush"}, {key: {"x": ["hush", 7]}}], "keyed": 1}
    assert mask_data(data) == {"a": [{key: "***"}, {key: {"x": ["***", "***"]}}], "keyed": 1}


def test_data_without_secrets_stays_as_it_is() -> None:
    data = {"token": "", "password": None, "use_token": True, "tokens": 5, "tokenizer": "bert", "students": ["mlp", 1, None]}
    assert mask_data(data) == data


@given(
    user=st.text(ascii_letters, min_size=1),
    password=st.text(ascii_letters + digits + "!$%+-_.~:/?#", min_size=8).filter(lambda text: not text[0].isdigit()),
)
def test_a_password_in_an_address_never_survives(user: str, password: str) -> None:
    masked = mask_text(f"API request to https://{user}:{password}@tracking.example:5000/api failed")
    assert masked == "API request to https://***@tracking.example:5000/api failed"


@pytest.mark.parametrize("text", ["x" * 2_000_000 + "?" * 50_000, "password" * 100_000, "a.b_" * 200_000, "token= " * 100_000])
def test_masking_takes_linear_time_on_long_texts(text: str) -> None:
    # Minutes when every position is tried against all that follow.
    assert len(mask_text(text)) > len(text) / 2


def test_a_command_line_is_masked_argument_by_argument() -> None:
    arguments = ["stillhouse", "sweep", "a.yaml", "--set", "dataset.options.password=hush", "--token", "hush"]
    command = mask_command([*arguments, "--set", "api_key=hu sh hush", "--set", "name=a b"])
    expected = ["stillhouse", "sweep", "a.yaml", "--set", "dataset.options.password=***", "--token", "***"]
    assert shlex.split(command) == [*expected, "--set", "api_key=***", "--set", "name=a b"]


def test_the_user_part_of_an_address_is_found() -> None:
    assert user_part("postgresql://me:hush@db/x") == "me:hush@"
    assert user_part("postgresql://me:hu/sh@db/x") == "me:hu/sh@"
    assert user_part("https://host/x") is None


# The users: what each prints of the same secrets.


@pytest.mark.parametrize("text", [text for text, _ in TEXTS])
def test_a_spec_that_is_shown_holds_no_secret(text: str) -> None:
    raw = {"name": "s", "students": ["mlp"], "methods": {"scratch": {}}}
    spec = validate({**raw, "dataset": {"name": "digits", "options": {"note": text, "password": "hush"}}})
    assert "hush" not in json.dumps(spec_to_dict(spec))
    assert spec_to_dict(spec, secrets=True)["dataset"]["options"]["note"] == text
    assert "hush" not in show(text)
    assert "hush" not in show({"password": "hush", "note": text})


@pytest.fixture
def make_facts() -> Any:
    def make(text: str) -> SweepFacts:
        return SweepFacts(
            name="s",
            spec={"note": text, "api_key": "hush"},
            dataset={"name": "digits", "options": {"note": text, "password": "hush"}},
            baseline="scratch",
            planned=1,
            notes=[text],
            tracking={"uri": text},
            command=f"stillhouse sweep a.yaml {text}",
        )

    return make


@pytest.mark.parametrize("text", [text for text, _ in TEXTS])
def test_nothing_that_is_tracked_holds_a_secret(text: str, make_facts: Any) -> None:
    assert "hush" not in json.dumps(clean_tags(sweep_tags(make_facts(text), home_id="h")))
    assert "hush" not in json.dumps(clean_params({"note": text, "password": "hush", "options": {"api_key": "hush"}}))


@pytest.mark.parametrize("text", [text for text, _ in TEXTS])
def test_nothing_that_is_reported_holds_a_secret(text: str, make_facts: Any) -> None:
    facts = make_facts(text)
    assert "hush" not in json.dumps(provenance(facts))
    trial = Trial(key="k", phase="search", method="scratch", student=StudentChoice(name="mlp", model="mlp"), seed=0, epochs=1)
    record = TrialRecord(trial=trial, status="failed", reason=text)
    assert b"hush" not in csv_bytes(trials_table(facts, [record]))
