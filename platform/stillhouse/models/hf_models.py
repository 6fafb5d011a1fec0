"""Encoders with a sequence-classification head from a local folder of `transformers`: `hf:DIR`.

The folder has `config.json` and `model.safetensors`, as `save_pretrained` writes them. Nothing is downloaded, no code of the
folder runs, and pickled weights are not read. A head for another number of classes is drawn anew.
"""

import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.errors import UsageError, describe_error
from stillhouse.models.layers import Shape
from stillhouse.models.text_layers import PADDING, VOCABULARY, TextModel, check_texts, is_token
from stillhouse.user_paths import expand_user

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "hf:"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_SCORES = "stillhouse_scores"


def hf_folder(name: str) -> Path:
    """The folder of `hf:DIR`, checked.

    Raises:
        UsageError: `transformers` is not installed, or the folder has no model that can be loaded safely.
    """
    if find_spec("transformers") is None:
        raise UsageError(f"{PREFIX} needs the library transformers; run: pip install 'stillhouse[text]'")
    folder = expand_user(name.removeprefix(PREFIX), "model")
    if not folder.is_absolute():  # workers have other working folders
        raise UsageError(f"{PREFIX}{folder} must name the folder by its absolute path, such as {PREFIX}{folder.absolute()}")
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise UsageError(f"{folder} has no {file}; save the model there by save_pretrained(..., safe_serialization=True)")
    return folder


class Recorded(nn.Module):
    """Returns its input; a layer of its own, so that methods can read it."""

    def forward(self, values: Tensor) -> Tensor:
        return values


class Encoder(TextModel):
    """A model of `transformers` that reads token ids and returns logits, with the names of its weights unchanged.

    Args:
        network: returns `logits`, and on request the outputs and the attentions of its layers.
    """

    pooled_layer: str | None = None  # type: ignore[assignment]

    def __init__(self, network: nn.Module, vocabulary: int) -> None:
        super().__init__(vocabulary)
        config: Any = network.config
        # The network's parts are this module's own, so that weights have the names of its files; the network itself only runs.
        for name, part in network.named_children():
            self.add_module(name, part)
        self._network = [network]
        self._padding = PADDING if config.pad_token_id is None else int(config.pad_token_id)
        depth = int(config.num_hidden_layers)
        self.recorded_tokens = nn.ModuleList(Recorded() for _ in range(depth + 1))
        self.recorded_attentions = nn.ModuleList(Recorded() for _ in range(depth))
        self.token_layers = tuple(f"recorded_tokens.{place}" for place in range(depth + 1))
        self.attention_layers = tuple(f"recorded_attentions.{place}" for place in range(depth))

    def forward(self, ids: Tensor) -> Tensor:
        mask = is_token(ids)
        # Stored ids have 0 for padding; where the tokenizer has another id for it, the two changed places.
        if self._padding != PADDING:
            swapped = torch.where(ids == self._padding, torch.full_like(ids, PADDING), ids)
            ids = torch.where(mask, swapped, torch.full_like(ids, self._padding))
        found = self._network[0](
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, output_attentions=True, return_dict=True
        )
        for layer, values in zip(self.recorded_tokens, found.hidden_states, strict=True):
            layer(values)
        for layer, values in zip(self.recorded_attentions, found.attentions, strict=True):
            layer(values)
        logits: Tensor = found.logits
        return logits


def build_hf(folder: Path, *, num_classes: int, input_shape: Shape, vocabulary: int = VOCABULARY) -> nn.Module:
    """The model in the folder, with its weights; on the meta device, without them.

    Args:
        num_classes: number of logits.
        input_shape: (length,).
        vocabulary: the number of tokens of the data set, which the model must have too.

    Raises:
        ValueError: it cannot read such texts.
        UsageError: the folder's files cannot be read.
    """
    check_texts(input_shape, vocabulary)
    import transformers

    _register_attention()
    with _told_in_one_sentence(folder):
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, num_labels=num_classes
        )
    _check_config(config, folder, input_shape[0], vocabulary)
    kind, options = transformers.AutoModelForSequenceClassification, {"attn_implementation": _SCORES}
    with _told_in_one_sentence(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts whose weights are drawn anew
        if torch.get_default_device().type == "meta":
            network = kind.from_config(config, **options)
        else:
            network = kind.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                **options,
            )
    return Encoder(network.train(), vocabulary)


def _check_config(config: Any, folder: Path, length: int, vocabulary: int) -> None:
    if vocabulary > config.vocab_size:
        raise ValueError(
            f"{folder} has {config.vocab_size} tokens and the data set {vocabulary}; set dataset.options.tokenizer to the "
            "folder of its tokenizer"
        )
    # Some models count places from the padding's id on.
    places = getattr(config, "max_position_embeddings", None)
    first = (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "camembert", "xlm-roberta") else 0
    if places is not None and length > places - first:
        raise ValueError(f"{folder} reads at most {places - first} tokens; set dataset.options.length to that or less")


def _register_attention() -> None:
    """Makes the attention before the softmax readable: `transformers` returns what follows it, which hides padding."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_SCORES, _attention)
    AttentionMaskInterface.register(_SCORES, _mask)


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    """The mask that is added to attention; made even where no text has padding, since to look would wait for a GPU."""
    from transformers.masking_utils import eager_mask

    mask: Tensor | None = eager_mask(*arguments, **{**options, "allow_is_bidirectional_skip": False})
    return mask


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_others: Any,
) -> tuple[Tensor, Tensor]:
    """Attention by matrix products: (the mixed values [B, L, heads, D], the attention before the softmax [B, heads, L, L])."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    shares = torch.softmax(scores if attention_mask is None else scores + attention_mask, dim=-1)
    mixed = F.dropout(shares, dropout, module.training) @ value
    return mixed.transpose(1, 2).contiguous(), scores


@contextmanager
def _told_in_one_sentence(folder: Path) -> "Iterator[None]":
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # the library raises many kinds
        raise UsageError(f"the model in {folder} cannot be loaded: {describe_error(error)}") from error
