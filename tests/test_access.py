"""What a refused or a successful request says of the daemon's access."""

import pytest

from k8s_builderd.access import NEEDED, Access
from k8s_builderd.kube.errors import (
    AlreadyExists,
    ApiError,
    Forbidden,
    Invalid,
    NamespaceNotFound,
    NamespaceTerminating,
    NotFound,
    Unauthorized,
    Unavailable,
    Unreachable,
)

RBAC = 'jobs.batch is forbidden: User "x" cannot create resource "jobs" in API group "batch" in the namespace "ns"'
QUOTA = 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1'
CREATE = ("create", "jobs.batch")
LIST = ("list", "pods")


def refused(kind: type[ApiError], message: str = "no", right: tuple[str, str] = CREATE) -> ApiError:
    return kind(message, verb=right[0], resource=right[1])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (refused(Forbidden, RBAC), "cannot create jobs.batch: jobs.batch is forbidden"),
        (refused(Forbidden, QUOTA), None),
        (refused(Unauthorized), "cannot create jobs.batch: no. Check the service account's token"),
        (
            refused(NamespaceNotFound, 'namespaces "ns" not found'),
            'cannot create jobs.batch: namespaces "ns" not found',
        ),
        (refused(NamespaceTerminating), "cannot create jobs.batch: no. The namespace is being deleted"),
        (refused(NotFound), None),
        (refused(AlreadyExists), None),
        (refused(Invalid), None),
        (refused(Unavailable), None),
        (refused(Unreachable), None),
        (None, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ApiError) else "",
)
def test_an_answer_counts_at_once(error: ApiError | None, told: str | None) -> None:
    access = Access()
    access.answered(*CREATE, error)
    assert (access.error or "").startswith(told or "")
    assert (access.error is None) == (told is None)
    access.answered(*CREATE, refused(Unreachable))
    assert (access.error is None) == (told is None), "that nobody answers proves nothing"
    access.answered(*CREATE, None)
    assert access.error is None


def test_a_success_proves_its_own_right_and_the_token_and_nothing_else() -> None:
    access = Access()
    access.answered(*CREATE, refused(Forbidden, RBAC))
    access.answered(*LIST, None)
    assert access.error is not None
    access.answered(*CREATE, refused(Unauthorized))
    access.answered(*LIST, None)
    assert access.error is not None
    assert "jobs.batch is forbidden" in access.error
    access.answered(*CREATE, None)
    access.answered(*CREATE, refused(NamespaceNotFound))
    access.answered("get", "namespaces", None)
    access.answered(*LIST, None)
    assert access.error is not None, "a list of a namespace that is gone is empty"


def test_a_right_that_is_not_needed_is_not_missed() -> None:
    access = Access()
    access.answered("list", "events", refused(Forbidden, RBAC, ("list", "events")))
    assert access.error is None


def test_several_rights_are_named_and_all_of_them_in_one_word() -> None:
    access = Access()
    for right in reversed(NEEDED[:2]):
        access.answered(*right, refused(Forbidden, RBAC, right))
    assert (access.error or "").startswith("missing: create jobs.batch, get jobs.batch. Check the Role")
    for right in NEEDED:
        access.answered(*right, refused(Forbidden, RBAC, right))
    assert (access.error or "").startswith("missing: all rights. Check the Role")
