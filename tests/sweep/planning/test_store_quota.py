"""The room that a sweep takes of the store, by hand: ten samples, two views, 4 bytes a number."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.errors import DiskFullError, UsageError
from stillhouse.knowledge import feature, logits
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.spec.schema import KnowledgeSpec
from stillhouse.sweep.planning.knowledge_demand import KnowledgeDemand
from stillhouse.sweep.planning.store_quota import StoreQuota
from stillhouse.teachers.definition import view_identity

SAMPLES = 1000
BASE = {"teacher": {"weights": "ours"}}
KINDS = {kind.id: KnowledgeDemand(kind, frozenset({0, 1})) for kind in (logits(), feature("layer"))}
MEASURED: dict[str, Any] = {
    "bytes_per_sample": {logits().id: 40, feature("layer").id: 400},
    "read_seconds": dict.fromkeys(KINDS, 0.5),
    "compute_seconds": dict.fromkeys(KINDS, 1.0),
}


def fill(home: Path, identity: dict[str, Any], *, used: float, num_bytes: int = 40_000) -> int:
    store = KnowledgeStore(home / "knowledge")
    with store.writer(identity, rows=1000, shape=(num_bytes // 4000,), dtype="float32") as writer:
        writer.put(np.arange(1000), np.zeros((1000, num_bytes // 4000), np.float32))
        writer.commit()
        writer.seal()
    os.utime(store.folder(identity) / "manifest", (used, used))
    return next(int(entry["bytes"]) for entry in store.entries() if entry["key"] == store.key(identity))


def ways(room: StoreQuota, kinds: dict[str, KnowledgeDemand] = KINDS) -> dict[str, str]:
    choices = room.choose(kinds, MEASURED, BASE, SAMPLES)
    return {str(KINDS[text].kind): choice.mode for text, choice in choices.items()}


def test_two_views_of_both_kinds_take_their_room(tmp_path: Path) -> None:
    """80 kB of logits and 800 kB of features."""
    assert ways(StoreQuota(KnowledgeSpec(max_bytes=880_000), tmp_path)) == {"logits": "cached", "layer": "cached"}
    assert ways(StoreQuota(KnowledgeSpec(max_bytes=879_999), tmp_path)) == {"logits": "cached", "layer": "inline"}
    assert ways(StoreQuota(KnowledgeSpec(max_bytes=79_999), tmp_path)) == {"logits": "inline", "layer": "inline"}


def test_a_view_in_which_no_trial_reads_a_kind_takes_no_room(tmp_path: Path) -> None:
    """80 kB of logits, and 400 kB of features in one of the two views."""
    once = KINDS | {feature("layer").id: KnowledgeDemand(feature("layer"), frozenset({1}))}
    room = StoreQuota(KnowledgeSpec(max_bytes=480_000), tmp_path)
    assert ways(room, once) == {"logits": "cached", "layer": "cached"}
    # What no trial of this sweep reads is nobody's, and goes when others need the room.
    fill(tmp_path, view_identity(BASE, feature("layer"), 0), used=1, num_bytes=400_000)
    assert [entry["identity"]["view"] for entry in room.evict()] == [0]
    assert ways(StoreQuota(KnowledgeSpec(max_bytes=479_999), tmp_path), once)["layer"] == "inline"


def test_teachers_share_the_room(tmp_path: Path) -> None:
    room = StoreQuota(KnowledgeSpec(max_bytes=100_000), tmp_path)
    only = {logits().id: KINDS[logits().id]}
    assert ways(room, only) == {"logits": "cached"}
    choices = room.choose(only, MEASURED, {"teacher": {"weights": "another"}}, SAMPLES)
    assert [choice.mode for choice in choices.values()] == ["inline"]


def test_what_is_forced_to_be_cached_must_fit_the_spec_and_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """880 kB in all."""
    usage = shutil.disk_usage(tmp_path)._replace(free=879_999)
    forced = KnowledgeSpec(way="cached", max_bytes=800_000)
    with pytest.raises(UsageError, match=r"knowledge\.way is cached, but .*; raise knowledge\.max_bytes"):
        ways(StoreQuota(forced, tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(DiskFullError) as caught:
        ways(StoreQuota(forced, tmp_path))
    assert str(caught.value) == (
        f"no space for 880.00 kB of knowledge in {tmp_path}/knowledge, whose disk has 880.00 kB for it; "
        f"lower views.count or let knowledge.way be auto"
    )


def test_each_kind_can_be_forced(tmp_path: Path) -> None:
    assert ways(StoreQuota(KnowledgeSpec(way="inline", ways={"layer": "cached"}), tmp_path)) == {
        "logits": "inline",
        "layer": "cached",
    }


def test_a_forced_kind_that_nobody_asks_is_one_sentence(tmp_path: Path) -> None:
    room = StoreQuota(KnowledgeSpec(ways={"logit": "inline"}), tmp_path)
    ways(room)
    with pytest.raises(UsageError, match=r"knowledge\.ways names 'logit', which no method needs; did you mean 'logits'"):
        room.check_forced()


def test_views_of_other_sweeps_go_least_recently_used_first_and_only_as_far_as_needed(tmp_path: Path) -> None:
    sizes = [fill(tmp_path, {"teacher": {"weights": "other"}, "view": number}, used=1000 - number) for number in range(3)]
    each = sizes[0]
    own = fill(tmp_path, view_identity(BASE, logits(), 0), used=1)
    assert own < 50_000
    # This sweep's logits need 80 kB; with one of the others there is room for both.
    room = StoreQuota(KnowledgeSpec(max_bytes=80_000 + each, ways={"layer": "inline"}), tmp_path)
    ways(room)
    assert [entry["identity"]["view"] for entry in room.evict()] == [2, 1]
    assert KnowledgeStore(tmp_path / "knowledge").is_sealed(view_identity(BASE, logits(), 0))
    assert room.evict() == []


def test_without_a_limit_the_store_takes_half_of_what_it_has_and_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free, way in ((160_000, "cached"), (159_999, "inline")):
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, usage=usage: usage)
        assert ways(StoreQuota(KnowledgeSpec(), tmp_path))["logits"] == way
