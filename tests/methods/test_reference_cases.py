"""The pages list every reference case."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CASES = {path.stem for path in (ROOT / "tests" / "reference" / "cases").glob("*.npz")}
PAGES = "\n".join(path.read_text() for path in (ROOT / "docs" / "reference-cases").glob("*.md"))


def test_every_reference_case_is_on_a_page_and_has_its_source() -> None:
    rows = (ROOT / "tests" / "reference" / "README.md").read_text().splitlines()
    assert {row.split("|")[1].strip() for row in rows if row.startswith("| ")} - {"case"} == CASES
    assert [case for case in CASES if case not in PAGES] == []
