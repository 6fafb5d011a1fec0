"""The data set `text_table`: its splits, its token ids, its notes, and what is wrong with files and options."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("tokenizers")

from tokenizers import Tokenizer

from stillhouse.data.datasets import ImageData, dataset_facts, dataset_problems, load_dataset
from stillhouse.data.description import describe_data, notes_on_test, training_notes
from stillhouse.errors import UsageError

_LABELS = ("bad", "good")


def rows(count: int, first: int = 0) -> list[tuple[str, str]]:
    """Texts of 3 to 6 words, whose label is in the second one."""
    words = ["river", "stone", "cloud", "apple", "train", "music", "paper", "light"]
    return [
        (
            " ".join([words[i % 8], ("awful", "lovely")[i % 2], *(words[(i * k) % 8] for k in range(1, 2 + i % 4)), str(i)]),
            _LABELS[i % 2],
        )
        for i in range(first, first + count)
    ]


def write(path: Path, table: Sequence[tuple[str, str]], columns: tuple[str, str] = ("text", "label")) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[place] for row in table] for place, name in enumerate(columns)}), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *table])
    return path


def load(folder: Path, validation: float = 8, cache: Path | None = None, **options: Any) -> ImageData:
    return load_dataset(
        "text_table", root=folder, validation=validation, options={"vocabulary": 300, **options}, cache=cache, task="t"
    )


def decoded(data: ImageData, ids: torch.Tensor) -> list[str]:
    tokenizer = Tokenizer.from_str(data.files["tokenizer.json"])
    return [tokenizer.decode([number for number in row if number]).strip() for row in ids.tolist()]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_texts_are_rows_of_token_ids_in_the_files_order(tmp_path: Path, suffix: str) -> None:
    train, test = rows(40), rows(10, 25)
    write(tmp_path / f"train{suffix}", train)
    write(tmp_path / f"test{suffix}", test)
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), data.test_reads) == (32, 8, 0)
    assert (data.class_names, data.num_classes, data.task) == (("bad", "good"), 2, "t")
    assert data.train.images.dtype == torch.int32
    (length,) = data.input_shape
    assert length % 8 == 0
    assert data.model_options == {"vocabulary": 300}
    assert decoded(data, data.test.images) == [text for text, _ in test]
    assert data.test.labels.tolist() == [_LABELS.index(label) for _, label in test]
    known = dict(train)
    for text, label in zip(decoded(data, data.train.images), data.train.labels.tolist(), strict=True):
        assert known[text] == _LABELS[label]
    described = describe_data(data)
    assert (described["train_samples"], described["input_shape"], described["class_names"]) == (32, [length], ["bad", "good"])


def test_the_tokenizer_is_trained_on_the_training_texts_alone(tmp_path: Path) -> None:
    """A word that only validation and test texts have is in no merge, so that it is as many tokens as it has bytes."""
    write(tmp_path / "train.csv", rows(40))
    write(tmp_path / "validation.csv", [("zzzzzz zzzzzz zzzzzz", label) for label in _LABELS * 4])
    write(tmp_path / "test.csv", [("zzzzzz", "bad"), ("zzzzzz", "good")])
    data = load(tmp_path, vocabulary=2000)
    assert (data.test.images != 0).sum(1).tolist() == [7, 7]  # with the space before the word
    assert any("the validation texts are those of its own file" in note for note in training_notes(data))


def test_a_single_table_is_split_the_same_way_every_time(tmp_path: Path) -> None:
    write(tmp_path / "reviews.csv", rows(50), ("body", "stars"))
    first, second = (load(tmp_path, text="body", label="stars", test_share=0.3) for _ in range(2))
    assert (len(first.train), len(first.validation), len(first.test)) == (27, 8, 15)
    assert torch.equal(first.test.images, second.test.images)
    together = [text for split in (first.train, first.validation, first.test) for text in decoded(first, split.images)]
    assert sorted(together) == sorted(text for text, _ in rows(50))
    assert first.test.labels.bincount().tolist() in ([7, 8], [8, 7])


def test_the_fingerprint_follows_texts_and_labels(tmp_path: Path) -> None:
    table = rows(40)
    write(tmp_path / "train.csv", table)
    write(tmp_path / "test.csv", rows(10))
    before = load(tmp_path).fingerprint
    assert load(tmp_path).fingerprint == before
    write(tmp_path / "train.csv", [(table[0][0], table[1][1]), *table[1:]])
    assert load(tmp_path).fingerprint != before
    write(tmp_path / "train.csv", [("other " + table[0][0], table[0][1]), *table[1:]])
    assert load(tmp_path).fingerprint != before


def test_limits_take_a_share_of_every_class(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(40))
    write(tmp_path / "test.csv", rows(20))
    data = load(tmp_path, limit=20, limit_test=6)
    assert (len(data.train) + len(data.validation), len(data.test)) == (20, 6)
    assert data.test.labels.bincount().tolist() == [3, 3]


def test_whole_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [(f"number {i}", str(i % 11)) for i in range(66)])
    write(tmp_path / "test.csv", [("number 3", "10")])
    data = load(tmp_path, validation=11)
    assert data.class_names == tuple(str(number) for number in range(11))
    assert data.test.labels.tolist() == [10]


def test_texts_longer_than_the_limit_are_shortened_counted_and_said(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [*rows(40), ("long " * 30, "bad"), ("long " * 30, "good")])
    write(tmp_path / "test.csv", [*rows(5), ("long " * 50, "bad")])
    data = load(tmp_path, length=20, vocabulary=1000)
    assert data.input_shape == (20,)
    notes = list(training_notes(data))
    assert sum("are longer than 20 tokens and lose their end; dataset.options.length may be larger." in note for note in notes)
    assert any("1 of the 6 test texts are longer than 20 tokens" in note for note in notes_on_test(data))
    assert int((data.test.images[-1] != 0).sum()) == 20


def test_texts_in_two_splits_or_classes_are_noted(tmp_path: Path) -> None:
    table = rows(40)
    write(tmp_path / "train.csv", [*table, (table[0][0], "good")])
    write(tmp_path / "test.csv", [table[1], *rows(5, 100)])
    data = load(tmp_path)
    assert "1 of the 6 test texts is among the training texts too, so test results are too good." in notes_on_test(data)


def test_an_earlier_home_knows_the_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(40))
    write(tmp_path / "test.csv", rows(5))
    data = load(tmp_path, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 1
    assert load(tmp_path, cache=tmp_path / "cache").fingerprint == data.fingerprint


def test_the_splits_travel_to_other_processes(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(40))
    write(tmp_path / "test.csv", rows(5))
    data = load(tmp_path)
    arrays, facts = data.to_arrays()
    again = ImageData.from_arrays(arrays, facts)
    assert torch.equal(again.train.images, data.train.images)
    assert (again.input_shape, again.task, again.fingerprint) == (data.input_shape, "t", data.fingerprint)
    assert again.test.images.dtype == torch.int32


def test_a_label_that_only_the_test_file_has_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(40))
    write(tmp_path / "test.csv", [*rows(5), ("what", "strange")])
    data = load(tmp_path)
    with pytest.raises(
        UsageError, match=r"test.csv has the label 'strange' \(row 6\), which no training text of .*train.csv has"
    ):
        _ = data.test


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ((), {}, r"must have a table train.csv or train.parquet, or a single table; it has none: set dataset.options.train"),
        (("a.csv", "b.csv"), {}, r"it has a.csv, b.csv: set dataset.options.train"),
        (("train.csv", "train.parquet"), {}, "has train.csv and train.parquet; remove one, or set dataset.options.train"),
        (("train.csv",), {"test": "none.csv"}, "dataset.options.test must name a file in .*, there is no none.csv"),
        (("train.csv",), {"tokenizer": "."}, "has no tokenizer.json"),
        (("train.csv",), {"text": "body"}, "has no column 'body'"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, files: Sequence[str], options: dict[str, Any], message: str
) -> None:
    for name in files:
        write(tmp_path / name, rows(20))
    with pytest.raises(UsageError, match=message) as raised:
        load(tmp_path, validation=4, **options)
    assert "\n" not in str(raised.value)


def test_one_class_and_too_few_texts_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [("a b", "same")] * 20)
    write(tmp_path / "test.csv", [("a b", "same")])
    with pytest.raises(UsageError, match="must have at least two classes, it has 1"):
        load(tmp_path)
    write(tmp_path / "train.csv", rows(6))
    with pytest.raises(UsageError, match=r"dataset.validation requests 8 of the 6 training texts"):
        load(tmp_path)


def test_options_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    options = {"length": 0, "vocabulary": 10, "text": 3, "test_share": 2, "grey": True}
    assert [str(problem) for problem in dataset_problems("text_table", root=tmp_path, size=8, options=options)] == [
        "dataset.size has no effect on text_table, got 8; remove it",
        "dataset.options.length must be a whole number of tokens in 1..65536, got 0",
        "dataset.options.vocabulary must be a whole number of tokens >= 300, got 10",
        "dataset.options.text must be the name of a column, got 3",
        "dataset.options.test_share must be in (0, 1), got 2",
        "dataset.options.grey is not an option of text_table; available: label, length, limit, limit_test, test, "
        "test_share, text, tokenizer, train, validation, vocabulary",
    ]
    assert dataset_facts("text_table").task == "text_classification"


def test_texts_that_do_not_fit_into_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.csv", rows(40))
    write(tmp_path / "test.csv", rows(5))
    monkeypatch.setattr("stillhouse.data.memory.memory_bytes", lambda: 1000)
    with pytest.raises(UsageError, match=r"32 texts of \d+ tokens need .* GiB of memory.*; lower dataset.options.length"):
        load(tmp_path)


def test_ids_of_equal_texts_are_equal_in_every_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(40))
    write(tmp_path / "test.csv", rows(40))
    data = load(tmp_path)
    assert {tuple(row) for row in data.train.images.tolist()} <= {tuple(row) for row in data.test.images.tolist()}
    assert np.asarray(data.test.images).max() < 300
