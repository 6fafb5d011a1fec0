"""A tiny BERT of random weights from a local folder: loaded safely, independent of padding, a teacher of its layers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers

from stillhouse.data.datasets import load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.sources import InlineKnowledge
from stillhouse.distill.trainer import Trainer
from stillhouse.errors import UsageError
from stillhouse.methods.hidden_states import HiddenStates
from stillhouse.models.architecture import describe
from stillhouse.models.given_content import given_content
from stillhouse.models.registry import build_model, model_problems, sketch_model
from stillhouse.models.size import measure_size
from stillhouse.spec.training import Training
from stillhouse.testing.grounds.text_classification import texts

_WORDS = [
    "[PAD]",
    "[UNK]",
    *["river", "stone", "cloud", "apple", "train", "music", "paper", "light", "window", "garden", "awful", "lovely"],
]
_SHAPE = (12,)


def save_bert(folder: Path, **changes: Any) -> str:
    import transformers

    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=30,
    )
    config.update(changes)
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(_WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_bert(tmp_path_factory.mktemp("bert"))


def built(name: str, **options: Any) -> torch.nn.Module:
    return build_model(name, num_classes=2, input_shape=_SHAPE, vocabulary=40, **options).eval()


def test_it_answers_as_transformers_does_whatever_the_padding(bert: str) -> None:
    import transformers

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(bert.removeprefix("hf:")).eval()
    ids = torch.tensor([[5, 6, 7, 0, 0], [3, 4, 5, 6, 8]])
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=(ids != 0).long()).logits
        ours = built(bert)
        torch.testing.assert_close(ours(ids), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(ours(ids[:1, :3]), expected[:1], atol=1e-6, rtol=1e-5)
    assert set(ours.state_dict()) == set(theirs.state_dict())


def test_its_size_is_known_without_its_weights(bert: str) -> None:
    sketched = sketch_model(bert, num_classes=2, input_shape=_SHAPE, vocabulary=40)
    layer = 4 * (16 * 16 + 16) + 16 * 24 + 24 + 24 * 16 + 16 + 2 * 32
    parameters = (40 + 30 + 2) * 16 + 32 + 2 * layer + (16 * 16 + 16) + (16 * 2 + 2)
    assert measure_size(sketched, _SHAPE).parameters == measure_size(built(bert), _SHAPE).parameters == parameters


def test_its_weights_are_part_of_the_keys(bert: str, tmp_path: Path) -> None:
    content = given_content(bert, {"vocabulary": 40}, 2, _SHAPE)
    assert content
    other = save_bert(tmp_path, initializer_range=0.5)
    assert given_content(other, {"vocabulary": 40}, 2, _SHAPE) not in ("", content)


def test_a_head_of_another_number_of_classes_is_drawn_anew(bert: str) -> None:
    model = build_model(bert, num_classes=5, input_shape=_SHAPE, vocabulary=40)
    assert model(torch.ones(2, 4, dtype=torch.int64)).shape == (2, 5)
    assert torch.equal(model.get_parameter("bert.pooler.dense.weight"), built(bert).get_parameter("bert.pooler.dense.weight"))


def test_hidden_states_learn_from_it(bert: str, tmp_path: Path) -> None:
    """Attention before the softmax and all layers, on texts by its own tokenizer."""
    rows = [
        "text,label",
        *(f"{_WORDS[2 + n % 9]} {_WORDS[2 + n % 7]} {('awful', 'lovely')[n % 2]},{n % 2}" for n in range(160)),
    ]
    (tmp_path / "all.csv").write_text("\n".join(rows), encoding="utf-8")
    data = load_dataset(
        "text_table", root=tmp_path, validation=32, options={"tokenizer": bert.removeprefix("hf:")}, task=texts().task
    )
    assert data.model_options == {"vocabulary": len(_WORDS)}
    options = {"num_classes": 2, "input_shape": data.input_shape, **data.model_options}
    teacher, method = build_model(bert, **options), HiddenStates()
    described = describe(teacher, name="bert", input_shape=data.input_shape)
    assert described.shape(described.attention_layers[0]) == (2, *data.input_shape, *data.input_shape)

    def new_student() -> torch.nn.Module:
        return build_model("text_transformer", **options, width=0.125, depth=1)

    student = describe(new_student(), name="student", input_shape=data.input_shape)
    trainer = Trainer(
        new_student=new_student,
        method=method,
        data=data,
        views=Views((), 1, data.input_shape, len(data.train)),
        training=Training(batch_size=32, learning_rate=0.01),
        epochs=2,
        teacher=InlineKnowledge(teacher, method.knowledge(described, student), data.train.labels),
        teacher_architecture=described,
    )
    trainer.fit()
    assert all(bool(weight.isfinite().all()) for weight in trainer.student.parameters())


def test_it_can_be_trained(bert: str) -> None:
    model = build_model(bert, num_classes=2, input_shape=_SHAPE, vocabulary=40)
    model(torch.ones(2, 4, dtype=torch.int64)).sum().backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "pooler" in name)


@pytest.mark.parametrize(
    ("shape", "vocabulary", "message"),
    [
        ((12,), 50, "has 40 tokens and the data set 50; set dataset.options.tokenizer to the folder of its tokenizer"),
        ((31,), 40, "reads at most 30 tokens; set dataset.options.length to that or less"),
        ((3, 8, 8), 40, "reads texts, and the samples of this data set are images"),
    ],
)
def test_texts_that_it_cannot_read_are_refused(bert: str, shape: tuple[int, ...], vocabulary: int, message: str) -> None:
    (problem,) = model_problems(bert, {"vocabulary": vocabulary}, 2, shape)
    assert message in str(problem)


def test_folders_that_cannot_be_loaded_safely_are_refused(bert: str, tmp_path: Path) -> None:
    (problem,) = model_problems(f"hf:{tmp_path}", {}, 2, _SHAPE)
    assert "has no config.json; save the model there by save_pretrained" in str(problem)
    (tmp_path / "config.json").write_text(Path(bert.removeprefix("hf:"), "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    (problem,) = model_problems(f"hf:{tmp_path}", {}, 2, _SHAPE)
    assert "has no model.safetensors" in str(problem)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UsageError, match="cannot be loaded"):
        built(f"hf:{tmp_path}")
    (problem,) = model_problems("hf:somewhere/bert", {}, 2, _SHAPE)
    assert "must name the folder by its absolute path" in str(problem)


def test_code_of_the_folder_does_not_run(bert: str, tmp_path: Path) -> None:
    save_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('code of the folder ran')")
    with pytest.raises(UsageError, match="cannot be loaded"):
        built(f"hf:{tmp_path}")
