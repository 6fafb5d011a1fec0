"""The catalogue of methods, operators and models: their facts, a page of all methods, one method or operator in full."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stillhouse import compress, methods
from stillhouse.cli.output import make_console, make_table
from stillhouse.distill.method import ANY_TASK, Method
from stillhouse.errors import UsageError
from stillhouse.models.architecture import describe
from stillhouse.models.blueprint import blueprint
from stillhouse.models.registry import all_model_names, build_model, model_options, model_problems, usual_shape
from stillhouse.models.size import measure_size
from stillhouse.spec.hyperparameter import Configured

_NUM_CLASSES = 100
"""Sizes in the catalogue are those for CIFAR-100; of models of texts, those for 64 tokens."""

_FAMILIES = {
    "control": "Controls",
    "L": "Logits",
    "F": "Features",
    "R": "Relations between samples or layers",
    "M": "Several models train",
    "G": "Generations",
    "A": "Methods that generate their own inputs",
    "Q": "Low precision",
}


def method_facts(name: str) -> dict[str, Any]:
    """Everything the catalogue has about one method, as plain data.

    Raises:
        UsageError: there is no such method.
    """
    method = methods.find(name)
    return {
        "name": name,
        "title": method.card.title,
        "arxiv": method.card.arxiv,
        "family": method.card.family,
        "tasks": list(method.tasks),
        "knowledge": needed_by_default(method),
        "hyperparameters": _settings_of(method),
        "equations": method.card.equations,
        "deviations": method.card.deviations,
        "suggested": method.card.suggested,
        "interactions": method.card.interactions,
    }


def needed_by_default(method: type[Method]) -> list[str]:
    """The kinds of knowledge that the method needs at its defaults, by name; empty if it needs no teacher.

    Layers are those of the first shipped model that suits the method as teacher and as student.

    Raises:
        UsageError: no shipped model suits the method.
    """
    problem: Exception | None = None
    for name in all_model_names():
        architecture = blueprint(name, {}, _NUM_CLASSES, usual_shape(name)).architecture
        if len(architecture.stages) < 2 and not architecture.attention_layers:
            continue
        try:
            needed = method().knowledge(architecture, architecture)
        except ValueError as error:
            problem = error
            continue
        return sorted({str(kind) for kind in needed.values()}) + (["calls on its own inputs"] if method.calls_teacher else [])
    raise UsageError(f"no shipped model suits {method.__name__} as teacher and student: {problem}")


def methods_page(facts: Sequence[Mapping[str, Any]]) -> str:
    """The catalogue of methods in Markdown, one table for each family."""
    lines = [
        "# Methods",
        "",
        "`stillhouse methods --markdown` prints this page from the methods' cards. A default is the paper's value unless the",
        "last column gives another one. A hyper-parameter with a prior is searched unless the spec sets it. A method for any",
        "task reads labels only in the task's supervised loss; the models must have the layers that it compares.",
    ]
    for family, heading in _FAMILIES.items():
        members = [each for each in facts if each["family"] == family]
        if not members:
            continue
        columns = ("method", "paper", "needs from teacher", "tasks", "hyper-parameters (default; prior)", "deviations")
        lines += ["", f"## {heading}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [_methods_row(each) for each in members]
    return "\n".join(lines) + "\n"


def _methods_row(facts: Mapping[str, Any]) -> str:
    paper = facts["title"] + (f" ([{facts['arxiv']}](https://arxiv.org/abs/{facts['arxiv']}))" if facts["arxiv"] else "")
    settings = []
    for each in facts["hyperparameters"]:
        prior = "" if each["prior"] is None else f"; {_prior_text(each['prior'])}"
        settings.append(f"`{each['name']}` ({each['default']}{prior})")
    cells = (
        f"`{facts['name']}`",
        paper,
        ", ".join(facts["knowledge"]) or "nothing",
        _tasks_text(facts["tasks"]),
        ", ".join(settings) or "none",
        facts["deviations"],
    )
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _prior_text(prior: Mapping[str, Any]) -> str:
    """A prior as the spec writes it: `uniform: [1, 10]`."""
    return json.dumps(prior).strip("{}").replace('"', "")


def _tasks_text(tasks: Sequence[str]) -> str:
    return "any" if ANY_TASK in tasks else ", ".join(tasks)


def print_method(facts: Mapping[str, Any]) -> None:
    """Prints one method with its equations, deviations and hyper-parameters."""
    print(f"{facts['name']}: {facts['title']}" + (f" (arXiv {facts['arxiv']})" if facts["arxiv"] else ""))
    print(f"needs from teacher: {', '.join(facts['knowledge']) or 'nothing'}")
    print(f"tasks: {_tasks_text(facts['tasks'])}")
    for key in ("equations", "deviations", "suggested", "interactions"):
        if facts[key]:
            print(f"{key}: {facts[key]}")
    _print_settings("hyper-parameter", facts["hyperparameters"])


def operator_facts(name: str) -> dict[str, Any]:
    """Everything the catalogue has about one operator, as plain data.

    Raises:
        UsageError: there is no such operator.
    """
    operator = compress.find(name)
    card = operator.card
    return {
        "name": name,
        "title": card.title,
        "arxiv": card.arxiv,
        "changes": str(operator().level),
        "does": card.does,
        "effect": card.effect,
        "options": _settings_of(operator),
        "deviations": card.deviations,
        "suggested": card.suggested,
        "interactions": card.interactions,
    }


def print_operator(facts: Mapping[str, Any]) -> None:
    """Prints one operator with its effect and its options."""
    print(f"{facts['name']}: {facts['title']}" + (f" (arXiv {facts['arxiv']})" if facts["arxiv"] else ""))
    for key in ("does", "effect", "deviations", "suggested", "interactions"):
        if facts[key]:
            print(f"{key}: {facts[key]}")
    _print_settings("option", facts["options"])


def _settings_of(kind: type[Configured]) -> list[dict[str, Any]]:
    """Each option with its default, prior and meaning."""
    defaults = kind.defaults()
    return [
        {"name": key, "default": defaults[key], "prior": rule.prior.to_json() if rule.prior else None, "help": rule.help}
        for key, rule in kind.hyperparameters().items()
    ]


def _print_settings(heading: str, settings: Sequence[Mapping[str, Any]]) -> None:
    table = make_table(heading, "default", "prior", "meaning")
    for each in settings:
        prior = "" if each["prior"] is None else _prior_text(each["prior"])
        table.add_row(each["name"], str(each["default"]), prior, each["help"])
    table.print(make_console())


def model_facts(name: str, *, full: bool) -> dict[str, Any]:
    """The sizes of a model, as plain data.

    Args:
        full: whether options, stages and the shape of every layer are included.

    Raises:
        UsageError: there is no such model.
    """
    shape = usual_shape(name)
    problems = model_problems(name, {}, _NUM_CLASSES, shape)
    if problems:
        raise UsageError(str(problems[0]))
    with torch.device("meta"):
        model = build_model(name, num_classes=_NUM_CLASSES, input_shape=shape)
    size = measure_size(model, shape)
    facts: dict[str, Any] = {
        "name": name,
        "parameters": size.parameters,
        "macs": size.macs,
        "size_bytes": size.size_bytes,
    }
    if full:
        architecture = describe(model, name=name, input_shape=shape)
        facts |= {
            "options": dict(model_options(name)),
            "stages": {layer: list(architecture.shapes[layer]) for layer in architecture.stages},
            "pooled": architecture.pooled,
            "layers": {layer: list(shape) for layer, shape in architecture.shapes.items()},
        }
    return facts
