"""Cards of stored teachers: what the library records about each, read without torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.durable import Damaged, read_checked

WEIGHTS = "weights.safetensors"
_CARD = {"model", "options", "dataset", "weights_hash", "train_seconds", "made"}
"""What every card has besides its metric."""


def stored_cards(root: Path) -> Iterator[dict[str, Any]]:
    """The cards of all teachers below `root`, with their `key` and `bytes`."""
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        card = read_card(folder)
        if card is not None:
            yield {"key": folder.name, "bytes": (folder / WEIGHTS).stat().st_size, **card}


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card of a teacher's folder; None without one, or without its weights."""
    try:
        card: dict[str, Any] = json.loads(read_checked(folder / "card"))
        if not (folder / WEIGHTS).is_file() or not card.keys() >= _CARD:
            return None
    except (FileNotFoundError, Damaged, ValueError, AttributeError):
        return None
    return card
