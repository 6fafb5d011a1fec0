"""Facts about every method and model, for the lists and for methods/README.md."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from stillhouse import methods
from stillhouse.cli.output import make_console, make_table
from stillhouse.distill.method import Method
from stillhouse.errors import UsageError
from stillhouse.models.architecture import describe
from stillhouse.models.blueprint import blueprint
from stillhouse.models.registry import build_model, model_names, model_options, model_problems
from stillhouse.models.size import measure_size

_CATALOGUE_CLASSES = 100


_CATALOGUE_SHAPE = (3, 32, 32)


_FAMILIES = {
    "control": "Controls",
    "L": "Logits",
    "F": "Features",
    "R": "Relations between samples or layers",
    "M": "Several models train",
    "G": "Generations",
    "A": "Methods that make their own inputs",
    "Q": "Low precision",
}


def method_facts(name: str) -> dict[str, Any]:
    kind = methods.find(name)
    defaults = kind.defaults()
    return {
        "name": name,
        "title": kind.card.title,
        "arxiv": kind.card.arxiv,
        "family": kind.card.family,
        "knowledge": asked_by_default(kind),
        "hyperparameters": [
            {"name": key, "default": defaults[key], "prior": rule.prior.to_json() if rule.prior else None, "help": rule.help}
            for key, rule in kind.hyperparameters().items()
        ],
        "equations": kind.card.equations,
        "deviations": kind.card.deviations,
        "suggested": kind.card.suggested,
        "interactions": kind.card.interactions,
    }


def methods_page(facts: Sequence[dict[str, Any]]) -> str:
    """The catalogue of methods in Markdown, by family, made from their cards."""
    lines = [
        "# Methods",
        "",
        "Made from the methods' cards by `stillhouse methods --markdown`. Defaults are the papers' where the card does not say",
        "otherwise; hyper-parameters with a prior are searched when the spec does not name them.",
    ]
    for family, heading in _FAMILIES.items():
        members = [each for each in facts if each["family"] == family]
        if not members:
            continue
        lines += [
            "",
            f"## {heading}",
            "",
            "| method | paper | asks of the teacher | hyper-parameters (default; prior) | deviations |",
        ]
        lines.append("|---|---|---|---|---|")
        lines += [_methods_row(each) for each in members]
    return "\n".join(lines) + "\n"


def _methods_row(facts: dict[str, Any]) -> str:
    paper = facts["title"] + (f" ([{facts['arxiv']}](https://arxiv.org/abs/{facts['arxiv']}))" if facts["arxiv"] else "")
    settings = []
    for each in facts["hyperparameters"]:
        prior = "" if each["prior"] is None else "; " + json.dumps(each["prior"]).strip("{}").replace('"', "")
        settings.append(f"`{each['name']}` ({each['default']}{prior})")
    cells = (
        f"`{facts['name']}`",
        paper,
        ", ".join(facts["knowledge"]) or "nothing",
        ", ".join(settings) or "none",
        facts["deviations"],
    )
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def show_method(facts: dict[str, Any]) -> None:
    print(f"{facts['name']}: {facts['title']}" + (f" (arXiv {facts['arxiv']})" if facts["arxiv"] else ""))
    print(f"asks of the teacher: {', '.join(facts['knowledge']) or 'nothing'}")
    for key in ("equations", "deviations", "suggested", "interactions"):
        if facts[key]:
            print(f"{key}: {facts[key]}")
    table = make_table("hyper-parameter", "default", "prior", "")
    for each in facts["hyperparameters"]:
        prior = "" if each["prior"] is None else json.dumps(each["prior"]).strip("{}").replace('"', "")
        table.add_row(each["name"], str(each["default"]), prior, each["help"])
    make_console().print(table)


def model_facts(name: str, *, full: bool) -> dict[str, Any]:
    problems = model_problems(name, {}, _CATALOGUE_CLASSES, _CATALOGUE_SHAPE)
    if problems:
        raise UsageError(str(problems[0]))
    with torch.device("meta"):
        model = build_model(name, num_classes=_CATALOGUE_CLASSES, input_shape=_CATALOGUE_SHAPE)
    size = measure_size(model, _CATALOGUE_SHAPE)
    facts: dict[str, Any] = {
        "name": name,
        "parameters": size.parameters,
        "macs": size.macs,
        "size_bytes": size.size_bytes,
    }
    if full:
        architecture = describe(model, name=name, input_shape=_CATALOGUE_SHAPE)
        facts |= {
            "options": dict(model_options(name)),
            "stages": {layer: list(architecture.shapes[layer]) for layer in architecture.stages},
            "pooled": architecture.pooled,
            "layers": {layer: list(shape) for layer, shape in architecture.shapes.items()},
        }
    return facts


def asked_by_default(kind: type[Method]) -> list[str]:
    """The kinds of knowledge that the method asks with its defaults, in words; empty when it asks nothing.

    Layers stand for what a method asks of the first shipped teacher that suits it, as a student of its own kind.
    """
    method = kind()
    problem: Exception | None = None
    for name in model_names():
        architecture = blueprint(name, {}, _CATALOGUE_CLASSES, _CATALOGUE_SHAPE).architecture
        if len(architecture.stages) < 2:
            continue
        try:
            asked = method.knowledge(architecture, architecture)
        except ValueError as error:
            problem = error
            continue
        return sorted({str(each) for each in asked.values()}) + (["calls on its own inputs"] if kind.calls_teacher else [])
    raise UsageError(f"no shipped model suits {kind.__name__} as teacher and student: {problem}")
