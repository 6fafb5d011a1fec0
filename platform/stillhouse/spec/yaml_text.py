"""The text of a spec: YAML 1.2's plain data, without anything that could run code.

Numbers, booleans and null are those of YAML 1.2: `1e-3` is a number and `off` is a word. A key must not appear twice.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from stillhouse.errors import Problem, SpecError, first_line
from stillhouse.spec.display import show
from stillhouse.spec.error_messages import key_of

_MAX_NODES = 50_000
_DEEPEST = 30
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_RESOLVERS = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
)

Place = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_tag}", re.compile(_pattern), _first)


def parse_yaml(text: str, source: str = "the spec") -> tuple[dict[str, Any], list[Problem]]:
    """The mapping in a YAML text, and the problems of its keys and tags.

    Raises:
        SpecError: the text is not YAML, is empty, or is not a mapping.
    """
    value, problems = parse_text(text, source)
    if value is None and not problems:
        raise SpecError([Problem("", f"{source} is empty; a spec needs at least name, dataset and students")])
    if not isinstance(value, dict):
        raise SpecError([*problems, Problem("", f"{source} must be a mapping such as name: my-sweep, got {show(value)}")])
    return value, problems


def to_yaml(plain: Mapping[str, Any]) -> str:
    """Plain data as the YAML that `parse_yaml` reads back unchanged."""
    return yaml.dump(dict(plain), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def parse_text(text: str, source: str) -> tuple[Any, list[Problem]]:
    """The plain data in a YAML text, and the problems of its keys and tags."""
    problems: list[Problem] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, []
        _clean(node, (), problems, [0], ())
        return loader.construct_document(node), problems
    except RecursionError as error:
        raise SpecError([Problem("", f"{source} is nested too deeply")]) from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, LookupError, AttributeError) as error:
        raise SpecError([Problem("", _syntax_sentence(error, source))]) from error


def _clean(node: yaml.Node, place: Place, problems: list[Problem], seen: list[int], above: tuple[yaml.Node, ...]) -> None:
    """Reports keys that appear twice or are not words, and tags that are not plain data; removes them from the tree."""
    count_value(seen)
    if len(above) > _DEEPEST:
        raise yaml.YAMLError(f"it is nested more than {_DEEPEST} levels deep")
    if node in above:
        raise yaml.YAMLError("it contains itself")
    above = (*above, node)
    if node.tag not in _PLAIN_TAGS:
        problems.append(Problem(key_of(place), f"has the tag {node.tag.replace(_TAG, '!!')}; write plain values"))
        node.tag, node.value = f"{_TAG}null", ""
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.YAMLError(f"{key_of(place) or 'it'} has a tag that is not plain data")
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _clean(item, (*place, number), problems, seen, above)
    elif isinstance(node, yaml.MappingNode):
        kept = []
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == f"{_TAG}merge":
                _clean(value, place, problems, seen, above)
            elif key.tag != f"{_TAG}str" or not isinstance(key, yaml.ScalarNode):
                text = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                problems.append(
                    Problem(key_of(place), f"has the key {text or 'null'} in line {line}, which is not a word; quote it")
                )
                continue
            elif key.value in lines:
                problems.append(
                    Problem(key_of((*place, key.value)), f"appears twice, in lines {lines[key.value]} and {line}; remove one")
                )
                continue
            else:
                lines[key.value] = line
                _clean(value, (*place, key.value), problems, seen, above)
            kept.append((key, value))
        node.value = kept


def count_value(seen: list[int]) -> None:
    """Refuses texts whose aliases expand to an enormous document."""
    seen[0] += 1
    if seen[0] > _MAX_NODES:
        raise SpecError([Problem("", f"the spec has more than {_MAX_NODES} values; an alias in it may be repeated too often")])


def _syntax_sentence(error: Exception, source: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        what = getattr(error, "problem", None) or getattr(error, "context", None) or "it cannot be read"
        return f"{source} is not valid YAML at line {mark.line + 1}, column {mark.column + 1}: {what}"
    reason = getattr(error, "reason", None) or first_line(error)
    return f"{source} is not valid YAML: {reason}"
