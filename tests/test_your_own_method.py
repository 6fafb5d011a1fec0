"""The methods that docs/your-own-method.md shows pass every check as they are written there."""

import re
from pathlib import Path

import pytest
import torch

from stillhouse import methods
from stillhouse.testing import check_method

PAGE = (Path(__file__).parents[1] / "docs" / "your-own-method.md").read_text()
EXAMPLES = {re.match(r'"""(\w+)\.py: ', block)[1]: block for block in re.findall(r"```python\n(\"\"\".*?)```", PAGE, re.DOTALL)}  # type: ignore[index]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_page_has_an_example_of_each_hook() -> None:
    code = "\n".join(EXAMPLES.values())
    for hook in ("knowledge", "student_layers", "modules", "stages", "loss"):
        assert f"def {hook}(" in code
    assert "every_teacher = True" in code
    assert "reduced(" in code


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_page_passes_every_check(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text(EXAMPLES[name])
    methods.add_folder(tmp_path)
    kind = methods.find(name)
    check_method(kind(), teacher=["resnet8", "lenet"] if kind.every_teacher else "resnet8", epochs=2)
