"""Weights that a user gave as a file are copied into the home where nodes cannot see the driver's disk."""

from collections.abc import Callable
from pathlib import Path

from stillhouse.home_access.home_address import HomeAddress
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.given_weights import bring_weights

MakeDefinition = Callable[..., TeacherDefinition]


def address(home: Path, keeper: str | None = "keeper-1") -> HomeAddress:
    return HomeAddress(path=str(home), keeper=keeper)


def test_the_copy_is_named_by_its_content_and_written_once(make_definition: MakeDefinition, tmp_path: Path) -> None:
    (tmp_path / "given.safetensors").write_bytes(b"weights")
    definition = make_definition(weights=str(tmp_path / "given.safetensors"))
    brought = [Path(bring_weights(definition, address(tmp_path / "home")).weights or "") for _ in range(2)]
    assert brought[0] == brought[1]
    assert brought[0].read_bytes() == b"weights"
    assert brought[0].is_relative_to(tmp_path / "home")
    (tmp_path / "given.safetensors").write_bytes(b"others")
    other = Path(bring_weights(definition, address(tmp_path / "home")).weights or "")
    assert (other.read_bytes(), brought[0].read_bytes()) == (b"others", b"weights")


def test_where_every_process_sees_the_file_it_stays_where_it_is(make_definition: MakeDefinition, tmp_path: Path) -> None:
    (tmp_path / "given.safetensors").write_bytes(b"weights")
    definition = make_definition(weights=str(tmp_path / "given.safetensors"))
    assert bring_weights(definition, address(tmp_path / "home", keeper=None)) is definition
    assert not (tmp_path / "home").exists()


def test_weights_that_are_no_file_stay_as_they_are(make_definition: MakeDefinition, tmp_path: Path) -> None:
    for weights in (None, "torchvision:ResNet18_Weights.DEFAULT"):
        definition = make_definition(weights=weights)
        assert bring_weights(definition, address(tmp_path)) is definition
