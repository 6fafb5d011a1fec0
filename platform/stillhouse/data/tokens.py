"""Texts as token ids, by a tokenizer that is trained on the training texts or taken from a folder (`tokenizers`).

Stored ids have 0 for padding: where a tokenizer has another id for it, that id and 0 change places.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.durable import bytes_hash, content_hash, read_checked, write_checked
from stillhouse.errors import UsageError, describe_error
from stillhouse.user_paths import read_regular

FILE = "tokenizer.json"
PADDING = "[PAD]"
_VERSION = 1
_MAX_BYTES = 1 << 30
_ENCODED_AT_ONCE = 4096
_FEWEST = 300
"""Tokens: the 256 bytes, the padding, and some pairs."""


@dataclass(frozen=True)
class Encoded:
    """Texts of one split.

    Attributes:
        ids: for each text, without padding.
        truncated: how many texts lost tokens at their end.
    """

    ids: Sequence[NDArray[np.int32]]
    truncated: int

    @property
    def longest(self) -> int:
        return max((len(each) for each in self.ids), default=0)

    def padded(self, length: int) -> NDArray[np.int32]:
        """int32 [N, length], 0 after the end of each text."""
        rows = np.zeros((len(self.ids), length), np.int32)
        for row, ids in zip(rows, self.ids, strict=True):
            row[: len(ids)] = ids
        return rows


class Tokens:
    """A tokenizer.

    Attributes:
        size: the number of different ids.
        padding: the padding's id in the tokenizer itself; stored ids have it and 0 exchanged.
        text: the content of `tokenizer.json`.

    Raises:
        UsageError: the text is no tokenizer, or it has no padding.
    """

    def __init__(self, text: str, *, where: str, padding: str | None = None) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises Exception itself
            raise UsageError(f"{where} is no tokenizer ({describe_error(error)}); write it again") from error
        found = self._padding_id(padding)
        if found is None:
            raise UsageError(f"{where} has no token for padding; add one, such as {PADDING}, to the tokenizer")
        self.text, self.padding = text, found
        self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def key(self) -> str:
        return bytes_hash(self.text.encode())

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        """The ids of each text, at most `length` of them; tokens that mark the end of a text stay."""
        ids: list[NDArray[np.int32]] = []
        truncated = 0
        for start in range(0, len(texts), _ENCODED_AT_ONCE):
            part = list(texts[start : start + _ENCODED_AT_ONCE])
            for text, encoding in zip(part, self._tokenizer.encode_batch(part), strict=True):
                too_long = len(encoding.ids) > length
                truncated += too_long
                kept = self._shortened(text, length) if too_long else encoding.ids
                ids.append(self._stored(np.array(kept, np.int32)))
        return Encoded(ids, truncated)

    def _shortened(self, text: str, length: int) -> Sequence[int]:
        self._tokenizer.enable_truncation(length)
        try:
            ids: Sequence[int] = self._tokenizer.encode(text).ids
            return ids
        finally:
            self._tokenizer.no_truncation()

    def _stored(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        if self.padding == 0:
            return ids
        return np.where(ids == 0, self.padding, np.where(ids == self.padding, 0, ids)).astype(np.int32)

    def _padding_id(self, named: str | None) -> int | None:
        given = self._tokenizer.padding
        candidates = [named, None if given is None else given["pad_token"], PADDING, "<pad>"]
        ids = (self._tokenizer.token_to_id(name) for name in candidates if name is not None)
        return next((each for each in ids if each is not None), None)


def require_tokenizers() -> None:
    """Checks that the package is installed.

    Raises:
        UsageError: it is not.
    """
    if find_spec("tokenizers") is None:
        raise UsageError("texts need tokenizers, not installed here: pip install 'stillhouse[text]'")


def trained_tokens(texts: Sequence[str], vocabulary: int, *, cache: Path | None = None) -> Tokens:
    """A byte-pair tokenizer (arXiv 1508.07909) of at most `vocabulary` tokens, trained on the texts in lower case.

    It reads bytes (Radford et al. 2019), so that no text has an unknown token. The same texts give the same tokenizer.

    Args:
        cache: a folder where it is stored by the content of the texts.
    """
    require_tokenizers()
    import tokenizers

    key = content_hash(
        {
            "version": _VERSION,
            "library": tokenizers.__version__,
            "vocabulary": vocabulary,
            "texts": bytes_hash("\0".join(texts).encode()),
        }
    )
    path = None if cache is None else cache / "tokenizers" / f"{key}.json"
    if path is not None:
        with suppress(OSError, ValueError, UsageError):
            return Tokens(read_checked(path).decode(), where=str(path))
    text = _train(texts, vocabulary)
    if path is not None:
        with suppress(OSError):  # trained again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_checked(path, text.encode())
    return Tokens(text, where="the trained tokenizer")


def _train(texts: Iterable[str], vocabulary: int) -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    text: str = tokenizer.to_str()
    return text


def given_tokens(folder: Path) -> Tokens:
    """The tokenizer in a folder that `transformers` or `tokenizers` wrote.

    Raises:
        UsageError: there is none, or it cannot be used.
    """
    require_tokenizers()
    path = folder / FILE
    if not path.is_file():
        raise UsageError(f"dataset.options.tokenizer {folder} has no {FILE}; save a fast tokenizer there")
    payload = read_regular(path, "the tokenizer", _MAX_BYTES)
    return Tokens(_text(path, payload), where=str(path), padding=_named_padding(folder))


def _text(path: Path, payload: bytes) -> str:
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8; write the tokenizer again") from error


def _named_padding(folder: Path) -> str | None:
    """The padding's token by the configuration beside the tokenizer, as `transformers` writes it."""
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("pad_token")
        content = found.get("content") if isinstance(found, dict) else found
        return content if isinstance(content, str) else None
    return None


def fewest_tokens() -> int:
    """The smallest vocabulary that a tokenizer is trained for."""
    return _FEWEST
