"""Reductions of the shipped methods have the versions that release 0.1.0 gave them: its sealed views are used again.

The text of a reduction and of the functions that it calls, docstrings included, is part of a sealed view's key. A version that
differs from the recorded one makes existing homes compute the teacher's outputs again. `RECORDED` was made at commit b8eeec3.
If a reduction must change, change its entry, too, and say so in CHANGELOG.md.
"""

import pytest

from stillhouse import methods
from stillhouse.testing import suiting_trial

RECORDED = {
    "stillhouse.distill.maps:shrink": "709a6dc2efaea839",
    "stillhouse.methods.activation_boundaries:activated": "6f700d32f76115b4",
    "stillhouse.methods.attention_transfer:attention_map": "2ac94af473f9765d",
    "stillhouse.methods.fsp:flow_matrix": "f19487a97e73939b",
    "stillhouse.methods.kd_svd:singular_vectors": "ee756b1bae111a7d",
    "stillhouse.methods.mgd:channel_margins": "23521e46c653b617",
    "stillhouse.methods.nst:mean_selectivity": "dd6ad175b8fa7324",
    "stillhouse.methods.nst:selectivity": "e95ae327b47a59b6",
    "stillhouse.methods.overhaul:margin_relu": "6bd623356d221e01",
    "stillhouse.methods.overhaul:shrunk": "504acc62ab78f6d5",
    "stillhouse.methods.simkd:as_map": "ade32304ec3f025f",
    "stillhouse.methods.simkd:mean_over_positions": "a38e3f19c68b4f3e",
}
VARIANTS = [("nst", {"kernel": "linear"}), ("overhaul", {"margins": "data"})]


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in methods.names()), *VARIANTS])
def test_a_reduction_has_its_recorded_version(name: str, settings: dict[str, str]) -> None:
    kinds = suiting_trial(methods.find(name)(**settings)).knowledge().values()
    reductions = [identity for identity in (kind.identity() for kind in kinds) if "reduction" in identity]
    for identity in reductions:
        # A new method has no recorded version.
        assert identity["source"] == RECORDED.get(identity["reduction"], identity["source"]), identity["reduction"]
