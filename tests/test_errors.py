"""Full disks, recognised through wrappers and across processes; problems; lines of texts; suggestions."""

import errno
import os
import pickle

import pytest
from ray.exceptions import RayTaskError

from stillhouse.errors import (
    DiskFullError,
    InfrastructureError,
    Problem,
    SpecError,
    UnknownNameError,
    UsageError,
    as_disk_full,
    as_stillhouse_error,
    describe_error,
    did_you_mean,
    first_line,
    is_disk_full,
    last_line,
    name_all,
    printable,
)

FULL = OSError(errno.ENOSPC, "any text", "/disk/file")
QUOTA = OSError(errno.EDQUOT, "any text")


def raised(outer: Exception, cause: BaseException) -> Exception:
    """`outer`, as `raise outer from cause` leaves it."""
    outer.__cause__ = cause
    return outer


def remote(cause: Exception) -> Exception:
    """What `ray.get` raises for an error of an actor: a wrapper of the unpickled error whose text is a traceback."""
    copy = pickle.loads(pickle.dumps(cause))
    error: Exception = RayTaskError("request", "Traceback ...\nOSError", copy).as_instanceof_cause()
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FULL, "any text (/disk/file)"),
        (QUOTA, "any text (/home)"),
        (DiskFullError("the views do not fit /disk"), "the views do not fit /disk"),
        (remote(FULL), "any text (/disk/file)"),
        (remote(DiskFullError("the views do not fit /disk")), "the views do not fit /disk"),
        (raised(InfrastructureError("cannot write /home/mark"), FULL), "cannot write /home/mark"),
        (raised(InfrastructureError("cannot measure"), remote(FULL)), "cannot measure"),
        (raised(UsageError("cannot write"), FULL), "any text (/disk/file)"),
        (raised(RuntimeError("a library's error"), DiskFullError("/disk is full")), "/disk is full"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_full_disk_is_recognised_by_its_type_or_number_through_every_wrapper(error: Exception, message: str) -> None:
    assert is_disk_full(error)
    found = as_disk_full(error, "/home")
    assert type(found) is DiskFullError
    assert str(found) == message


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.ENOSPC)),
        InfrastructureError("no space for 16 bytes of knowledge: No space left on device"),
        ValueError("No space left on device"),
        remote(PermissionError(errno.EACCES, "Permission denied")),
    ],
)
def test_no_wording_makes_an_error_one_of_a_full_disk(error: Exception) -> None:
    assert not is_disk_full(error)
    assert as_disk_full(error, "/home") is None


def test_an_error_that_is_its_own_cause_again_ends_the_search() -> None:
    cause = InfrastructureError("lost")
    cause.__cause__ = remote(cause)
    cause.__cause__.cause = cause  # type: ignore[attr-defined]
    assert not is_disk_full(cause)


def test_a_full_disk_is_infrastructure_for_callers_and_exit_codes() -> None:
    assert isinstance(DiskFullError("full"), InfrastructureError)
    assert DiskFullError.exit_code == 4


def test_an_error_of_the_system_becomes_infrastructure_with_its_file() -> None:
    usage = UsageError("wrong")
    assert as_stillhouse_error(usage) is usage
    assert str(as_stillhouse_error(PermissionError(errno.EACCES, "Permission denied", "/x"))) == "Permission denied (/x)"
    assert str(as_stillhouse_error(OSError(errno.EIO, "Input/output error"))) == "Input/output error"
    assert str(as_stillhouse_error(OSError("broken"))) == "broken"


def test_the_problems_of_a_spec_survive_a_pickle() -> None:
    problems = (Problem("a.b", "must be > 0"), Problem("", "is no mapping"))
    copy = pickle.loads(pickle.dumps(SpecError(problems)))
    assert type(copy) is SpecError
    assert copy.problems == problems
    assert str(copy) == "a.b must be > 0\nis no mapping"


def test_the_first_and_the_last_line_of_a_text() -> None:
    assert first_line(ValueError("\n  one \ntwo\n")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(MemoryError(), "no more") == "no more"
    assert last_line("one\n two\n\n", "nothing") == "two"
    assert last_line(" \n", "nothing") == "nothing"


def test_a_problem_is_key_rule_value_and_remedy() -> None:
    assert str(Problem("a.b", "must be > 0", "-1", "raise it")) == "a.b must be > 0, got -1; raise it"
    assert str(Problem("a.b", "must be > 0")) == "a.b must be > 0"
    assert str(Problem("", "the spec is empty")) == "the spec is empty"
    assert Problem("width", "must be > 0", "0").under("students[1]") == Problem("students[1].width", "must be > 0", "0")
    assert Problem("", "does not fit").under("students[1]").key == "students[1]"


def test_an_error_becomes_the_problem_of_the_key_that_caused_it() -> None:
    assert str(Problem.caused_by(UnknownNameError("no model 'x'"), "model")) == "model names no model 'x'"
    assert str(Problem.caused_by(UsageError("no file"), "weights")) == "weights cannot be used: no file"


def test_an_error_of_foreign_code_is_described_by_its_type_and_first_line() -> None:
    assert describe_error(ValueError("no such axis\nat line 3")) == "ValueError: no such axis"
    assert describe_error(KeyError()) == "KeyError"


def test_a_suggestion_is_the_nearest_word_and_then_all_of_them() -> None:
    assert did_you_mean("kdd", ["scratch", "kd"]) == "; did you mean 'kd'? available: kd, scratch"
    assert did_you_mean("xyz", []) == "; available: none"


def test_one_item_is_a_sentence_and_many_are_a_list_with_a_limit() -> None:
    assert name_all(["a"], one="is broken", many="are broken") == "a is broken"
    assert name_all(["a", "b"], one="is broken", many="are broken") == "2 are broken:\n  a\n  b"
    some = [str(number) for number in range(5)]
    assert name_all(some, one="is broken", many="are broken", limit=2) == "5 are broken:\n  0\n  1\n  and 3 more"


def test_a_message_about_a_name_that_is_no_utf_8_can_be_printed() -> None:
    name = os.fsdecode(b"caf\xe9")
    assert printable(name) == "caf\\xe9"
    assert printable("caf\u00e9 \U0001f600") == "caf\u00e9 \U0001f600"
    assert printable("\ud800") == "\\ud800"
    assert str(UsageError(f"{name} is missing")).encode() == b"caf\\xe9 is missing"
