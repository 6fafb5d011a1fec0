"""What a home stores of its teachers: their weights, and the sealed views of their knowledge."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.knowledge.output_names import LOGITS
from stillhouse.knowledge.stored_views import stored_views
from stillhouse.teachers.cards import stored_cards


def stored_teachers(home: Path) -> list[dict[str, Any]]:
    """The card of every teacher, with `knowledge`: the number of sealed `views`, their `bytes`, and the list of `kinds`.

    A kind has `knowledge` (its name), `dataset`, `dtype`, `views`, `unsealed` views, `bytes` and `last_used` (seconds since the
    epoch). Views of a teacher whose card is gone are listed under a teacher with an empty key.
    """
    by_weights: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in stored_views(home / "knowledge"):
        identity = entry["identity"]
        weights = identity.get("teacher", {}).get("weights", "")
        name = describe_kind(identity.get("knowledge", {}))
        data, dtype = str(identity.get("data", "")), str(identity.get("dtype", ""))
        kind = by_weights.setdefault(weights, {}).setdefault(
            f"{name} {data} {dtype} {identity.get('views')}",
            {"knowledge": name, "dataset": data, "dtype": dtype, "views": 0, "unsealed": 0, "bytes": 0, "last_used": 0.0},
        )
        kind["views" if entry["sealed"] else "unsealed"] += 1
        kind["bytes"] += entry["bytes"]
        kind["last_used"] = max(kind["last_used"], entry["last_used"])
        kind.setdefault("model", identity.get("teacher", {}).get("model", "unknown"))
    teachers = []
    for card in stored_cards(home / "teachers"):
        kinds = by_weights.pop(card["weights_hash"], {})
        for kind in kinds.values():
            kind["dataset"] = card.get("dataset", kind["dataset"])
        teachers.append({**card, "knowledge": _added_up(kinds)})
    orphans = [
        {
            "key": "",
            "model": next(iter(kinds.values()))["model"],
            "weights_hash": weights,
            "bytes": 0,
            "knowledge": _added_up(kinds),
        }
        for weights, kinds in by_weights.items()
    ]
    return [*teachers, *orphans]


def describe_kind(identity: Mapping[str, Any]) -> str:
    """The name of a kind of knowledge, from the part of a view's identity that describes it; equal to that of `Knowledge`."""
    if not identity:
        return "unknown"
    what = "input_gradient" if "of" in identity else ", ".join(identity["layers"]) or identity.get("output", LOGITS)
    reduction = identity.get("reduction")
    return what if reduction is None else f"{reduction.rpartition(':')[2].rpartition('.')[2]}({what})"


def _added_up(kinds: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    listed = [{key: value for key, value in kind.items() if key != "model"} for kind in kinds.values()]
    return {
        "views": sum(kind["views"] for kind in listed),
        "bytes": sum(kind["bytes"] for kind in listed),
        "kinds": sorted(listed, key=lambda kind: str(kind["knowledge"])),
    }
