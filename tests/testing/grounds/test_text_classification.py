"""The texts of the conformance suite for methods, and which methods are checked on them."""

import pytest

pytest.importorskip("tokenizers")

from stillhouse import methods
from stillhouse.testing import grounds
from stillhouse.testing.grounds.text_classification import GROUND, NUM_TRAINING, NUM_VALIDATION, texts


def test_texts_have_two_classes_of_equal_size_and_several_lengths() -> None:
    data = texts()
    assert (len(data.train), len(data.validation)) == (NUM_TRAINING, NUM_VALIDATION)
    assert data.train.labels.bincount().tolist() == [NUM_TRAINING // 2] * 2
    assert len({int((row != 0).sum()) for row in data.train.images}) > 4
    assert texts() is data


def test_models_are_built_with_the_tokens_of_the_texts() -> None:
    words = GROUND.build("text_cnn").get_submodule("words.table")
    assert words.num_embeddings == texts().model_options["vocabulary"]


@pytest.mark.parametrize(("method", "on_texts"), [("kd", False), ("attention_transfer", False), ("hidden_states", True)])
def test_a_method_is_checked_on_texts_only_if_it_serves_nothing_else(method: str, on_texts: bool) -> None:
    assert (grounds.of_method(methods.find(method)()) is GROUND) is on_texts
