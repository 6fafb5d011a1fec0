"""Tokenizers: trained alike by the same texts, kept by content, taken from a folder, and what is wrong with one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from stillhouse.data.tokens import Tokens, given_tokens, trained_tokens
from stillhouse.errors import UsageError

_TEXTS = ["The cat sat on the mat.", "A cat and a dog, naïve and 猫 sat.", "the dog ate the cat's mat"] * 3


def _words(*names: str) -> Tokenizer:
    """One token for each word, in the order of `names`."""
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_the_same_texts_give_the_same_tokenizer_in_every_process() -> None:
    here = trained_tokens(_TEXTS, 320)
    code = f"from stillhouse.data.tokens import trained_tokens; print(trained_tokens({_TEXTS!r}, 320).key)"
    for threads in ("true", "false"):
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": threads}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert run.stdout.strip() == here.key


def test_every_text_can_be_encoded_and_case_makes_no_difference() -> None:
    tokens = trained_tokens(_TEXTS, 320)
    assert tokens.size <= 320
    first, second = tokens.encode(["THE CAT", "the cat"], 16).ids
    assert np.array_equal(first, second)
    assert len(tokens.encode(["ÿ€😀"], 64).ids[0]) > 0
    assert all(0 not in ids for ids in tokens.encode(_TEXTS, 64).ids)


def test_a_trained_tokenizer_is_stored_by_its_texts_and_a_damaged_one_is_trained_again(tmp_path: Path) -> None:
    tokens = trained_tokens(_TEXTS, 320, cache=tmp_path)
    (stored,) = (tmp_path / "tokenizers").iterdir()
    assert trained_tokens(_TEXTS, 320, cache=tmp_path).key == tokens.key
    assert trained_tokens([*_TEXTS, "more"], 320, cache=tmp_path).key != tokens.key
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2
    stored.write_bytes(stored.read_bytes()[:-3])
    assert trained_tokens(_TEXTS, 320, cache=tmp_path).key == tokens.key
    assert trained_tokens(_TEXTS, 320, cache=tmp_path).key == tokens.key


def test_long_texts_lose_their_end_but_not_the_mark_of_their_end() -> None:
    tokenizer = _words("[PAD]", "[UNK]", "[END]", "a", "b", "c")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
    encoded = Tokens(tokenizer.to_str(), where="it").encode(["a", "a b c", "a b", "c c c c"], 3)
    assert [ids.tolist() for ids in encoded.ids] == [[3, 2], [3, 4, 2], [3, 4, 2], [5, 5, 2]]
    assert (encoded.truncated, encoded.longest) == (2, 3)
    assert encoded.padded(4)[0].tolist() == [3, 2, 0, 0]


def test_padding_with_another_id_changes_places_with_0(tmp_path: Path) -> None:
    """As in RoBERTa, where <s> is 0 and <pad> is 1."""
    _words("<s>", "<pad>", "[UNK]", "a").save(str(tmp_path / "tokenizer.json"))
    tokens = given_tokens(tmp_path)
    assert (tokens.padding, tokens.size) == (1, 4)
    assert tokens.encode(["a b"], 8).ids[0].tolist() == [3, 2]
    stored = Tokens(tokens.text, where="it")._stored(np.array([0, 3, 1], np.int32))
    assert stored.tolist() == [1, 3, 0]


def test_the_padding_may_be_named_beside_the_tokenizer(tmp_path: Path) -> None:
    _words("none", "[UNK]", "a").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match=r"has no token for padding; add one, such as \[PAD\]"):
        given_tokens(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "none"}}))
    assert given_tokens(tmp_path).padding == 0


def test_a_folder_without_a_tokenizer_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no tokenizer.json; save a fast tokenizer there"):
        given_tokens(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="is no tokenizer"):
        given_tokens(tmp_path)
