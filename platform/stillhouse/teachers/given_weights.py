"""Copies weights that a user gave as a file at the driver into the home, where every node finds them."""

from dataclasses import replace
from pathlib import Path

from stillhouse.durable import bytes_hash, write_atomic
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.models.checkpoint_files import checkpoint_file
from stillhouse.teachers.definition import TeacherDefinition


def bring_weights(definition: TeacherDefinition, address: HomeAddress) -> TeacherDefinition:
    """The definition with its weights file in the home; unchanged where it names no file or every node shares the home."""
    if address.keeper is None or definition.weights is None:
        return definition
    source, key = checkpoint_file(definition.weights)
    if not source.is_file():
        return definition
    content = source.read_bytes()
    target = Path(address.path) / "given" / bytes_hash(content)
    if not target.exists():
        write_atomic(target, content)
    return replace(definition, weights=f"{target}#{key}" if key else str(target))
