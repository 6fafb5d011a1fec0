"""Texts with one label each, from CSV or Parquet files: `{name: text_table, root: DIR}`.

A sample is one text: token ids int32 [L], 0 after its end. L is the number of tokens of the longest text for training or
validation, rounded up to a multiple of 8, or the option `length` if that is smaller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stillhouse.data import tokens
from stillhouse.data.hashing import array_hash, derive_key
from stillhouse.data.images import ImageData, Split, split_of
from stillhouse.data.memory import check_room
from stillhouse.data.published import limited
from stillhouse.data.shipped import Request, ShippedData
from stillhouse.data.splits import stratified_split
from stillhouse.data.splitting import own_validation_note
from stillhouse.data.tables import SUFFIXES, Table, read_table
from stillhouse.durable import content_hash
from stillhouse.errors import UsageError, printable
from stillhouse.user_paths import resolve_path

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_NAMES = {TRAIN: ("train",), VALIDATION: ("validation", "valid", "val", "dev"), TEST: ("test",)}
_LENGTH, _VOCABULARY, _TEST_SHARE = 256, 8000, 0.2
_MULTIPLE = 8
_MAX_LENGTH = 65_536


@dataclass(frozen=True)
class _Files:
    """The file of each split; a test split that is None is split off from the training file."""

    train: Path
    validation: Path | None
    test: Path | None


class TextTable(ShippedData):
    """See the module."""

    task: ClassVar[str | None] = "text_classification"
    options: ClassVar[tuple[str, ...]] = (
        "text",
        "label",
        TRAIN,
        VALIDATION,
        TEST,
        "test_share",
        "length",
        "vocabulary",
        "tokenizer",
    )
    sample: ClassVar[str] = "text"
    has_size: ClassVar[bool] = False

    def broken_rule(self, option: str, value: Any) -> str | None:
        if option == "test_share":
            return None if isinstance(value, float) and 0 < value < 1 else "must be in (0, 1)"
        if option == "length":
            return None if _is_whole(value, 1, _MAX_LENGTH) else f"must be a whole number of tokens in 1..{_MAX_LENGTH}"
        if option == "vocabulary":
            fewest = tokens.fewest_tokens()
            return None if _is_whole(value, fewest, 10**7) else f"must be a whole number of tokens >= {fewest}"
        what = {"text": "a column", "label": "a column", "tokenizer": "a folder"}.get(option, "a file in dataset.root")
        return None if isinstance(value, str) and value else f"must be the name of {what}"

    def read(self, request: Request) -> ImageData:
        return _Reading(request).data()


def _is_whole(value: Any, first: int, last: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and first <= value <= last


class _Reading:
    """One reading of the files of a request."""

    def __init__(self, request: Request) -> None:
        tokens.require_tokenizers()
        self._request = request
        self._options = request.options
        self._files = find_files(request.root, request.options)
        self._notes: list[str] = []

    def data(self) -> ImageData:
        """The data set; the test split is encoded when it is used.

        Raises:
            UsageError: files are missing, damaged or too few, or their labels cannot be used.
        """
        splitting = self._request.splitting
        whole, own_test = self._published()
        table = whole.only(limited(np.array(whole.labels), self._request.limits[0]).tolist())
        names = _class_names(table.labels)
        labels = splitting.convert(_numbers(table, names), len(names), names)
        if self._files.validation is None:
            rest, taken = splitting.split(labels, names)
            train, validation = table.only(rest.tolist()), table.only(taken.tolist())
        else:
            splitting.check_training(labels, names)
            train, validation = table, self._table(self._files.validation)
            self._notes.append(own_validation_note(str(self._request.root), "texts", "file"))
        found = self._tokens(train.texts)
        limit = int(self._options.get("length", _LENGTH))
        encoded = [found.encode(part.texts, limit) for part in (train, validation)]
        length = min(limit, -(-max(each.longest for each in encoded) // _MULTIPLE) * _MULTIPLE)
        parts = []
        for part, ids, split in zip((train, validation), encoded, ("training", "validation"), strict=True):
            self._note_truncated(ids, length, split)
            parts.append((self._padded(ids, length), _numbers(part, names, known=train.path)))

        def read_test() -> Split:
            test = own_test if self._files.test is None else self._table(self._files.test)
            assert test is not None, "a single file has a part for testing"
            labels = splitting.convert(_numbers(test, names, known=whole.path), len(names), names, split=TEST)
            chosen = limited(labels, self._request.limits[1])
            ids = found.encode(test.only(chosen.tolist()).texts, length)
            self._note_truncated(ids, length, TEST)
            return split_of((self._padded(ids, length), labels[chosen]))

        return ImageData(
            name="text_table",
            num_classes=len(names),
            input_shape=(length,),
            class_names=names,
            fingerprint=content_hash(
                {
                    "num_classes": len(names),
                    "input_shape": [length],
                    "tokenizer": found.key,
                    "arrays": [array_hash(array) for part in parts for array in part],
                }
            ),
            mean=(),
            std=(),
            train=split_of(parts[0]),
            validation=split_of(parts[1]),
            read_test=read_test,
            task=self._request.task,
            model_options={"vocabulary": found.size},
            files={tokens.FILE: found.text},
            preparation={"tokenizer": tokens.FILE, "tokenizer_padding": found.padding},
            notes=self._notes,
        )

    def _published(self) -> tuple[Table, Table | None]:
        """The rows for training and validation; of a single file, also those for testing."""
        table = self._table(self._files.train)
        if self._files.test is not None:
            return table, None
        size = round(self._options.get("test_share", _TEST_SHARE) * len(table))
        if not 0 < size < len(table):
            raise UsageError(
                f"{table.path} has {len(table)} texts, too few for its test share; add some, or a file for testing"
            )
        rest, taken = stratified_split(np.array(table.labels), size, derive_key("text_table", TEST))
        return table.only(rest.tolist()), table.only(taken.tolist())

    def _table(self, path: Path) -> Table:
        return read_table(path, self._options.get("text", "text"), self._options.get("label", "label"))

    def _tokens(self, texts: Sequence[str]) -> tokens.Tokens:
        if (folder := self._options.get("tokenizer")) is not None:
            return tokens.given_tokens(resolve_path(folder, "dataset.options.tokenizer"))
        vocabulary = int(self._options.get("vocabulary", _VOCABULARY))
        return tokens.trained_tokens(texts, vocabulary, cache=self._request.cache)

    def _padded(self, encoded: tokens.Encoded, length: int) -> NDArray[np.int32]:
        count = len(encoded.ids)
        check_room(
            4 * count * length,
            samples=f"{count:,} texts of {length:,} tokens",
            what=self._request.splitting.where,
            remedy="lower dataset.options.length, or set dataset.options.limit",
        )
        return encoded.padded(length)

    def _note_truncated(self, encoded: tokens.Encoded, length: int, split: str) -> None:
        if encoded.truncated:
            self._notes.append(
                f"{self._request.root}: {encoded.truncated} of the {len(encoded.ids)} {split} texts are longer than "
                f"{length} tokens and lose their end; dataset.options.length may be larger."
            )


def find_files(root: Path, options: Mapping[str, Any]) -> _Files:
    """The files of the splits: those that the options name, else `train`, `test` and `validation` with a suffix of a table.

    A folder with one table and no file called `train` has that one for all splits.

    Raises:
        UsageError: there is no table, there are several for one split, or a named one is missing.
    """
    found = {split: _named(root, split, options) or _by_name(root, split) for split in (TRAIN, VALIDATION, TEST)}
    train = found[TRAIN]
    if train is None:
        tables = sorted(path for path in root.iterdir() if path.suffix in SUFFIXES and path not in found.values())
        if len(tables) != 1:
            has = ", ".join(printable(path.name) for path in tables) or "none"
            raise UsageError(
                f"{root} must have a table train.csv or train.parquet, or a single table; it has "
                f"{has}: set dataset.options.train"
            )
        train = tables[0]
    return _Files(train, found[VALIDATION], found[TEST])


def _named(root: Path, split: str, options: Mapping[str, Any]) -> Path | None:
    if split not in options:
        return None
    path: Path = root / options[split]
    if not path.is_file():
        raise UsageError(f"dataset.options.{split} must name a file in {root}, there is no {printable(options[split])}")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"dataset.options.{split} must be a table ({', '.join(SUFFIXES)}), got {printable(path.name)}")
    return path


def _by_name(root: Path, split: str) -> Path | None:
    files = [path for name in _NAMES[split] for suffix in SUFFIXES if (path := root / f"{name}{suffix}").is_file()]
    if len(files) > 1:
        raise UsageError(f"{root} has {files[0].name} and {files[1].name}; remove one, or set dataset.options.{split}")
    return files[0] if files else None


def _class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels, sorted: whole numbers by their value, words by their letters."""
    found = sorted(set(labels))
    if all(each.removeprefix("-").isdecimal() for each in found):
        found.sort(key=int)
    return tuple(found)


def _numbers(table: Table, names: Sequence[str], known: Path | None = None) -> NDArray[np.int64]:
    """The label of each row as its place among the names.

    Args:
        known: the file that the names come from, if it may be another one.

    Raises:
        UsageError: a label is none of the names.
    """
    places = {name: place for place, name in enumerate(names)}
    for row, label in enumerate(table.labels, start=1):
        if label not in places:
            raise UsageError(
                f"{table.path} has the label '{printable(label)}' (row {row}), which no training text of {known} has; "
                "add texts of that label there, or remove these"
            )
    return np.array([places[label] for label in table.labels], np.int64)
