"""What the chart lets the controller's account do in its namespace: this list and nothing else."""

import pytest
from chart_rig import CI_FILES, find, kinds, merged, render

pytestmark = pytest.mark.packaging

RIGHTS = {
    "jobset.x-k8s.io/jobsets": {"create", "delete", "get", "list", "watch"},
    "batch/jobs": {"create", "delete", "get", "list", "watch"},
    "/services": {"create"},
    "/pods": {"delete", "list", "patch", "watch"},
    "/pods/log": {"get"},
    "/events": {"list"},
    "kueue.x-k8s.io/workloads": {"list"},
    "coordination.k8s.io/leases": {"create", "get", "update"},
}


def test_controller_may_do_exactly_what_it_does() -> None:
    """The Role's rules are the list above: no secrets, no wildcards, no exec, no rights on rights."""
    role = find(render(), "Role", "weft-trainer")
    granted: dict[str, set[str]] = {}
    for rule in role["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                granted.setdefault(f"{group}/{resource}", set()).update(rule["verbs"])
    assert granted == RIGHTS


def test_role_is_bound_to_the_controller_alone() -> None:
    """One account, in the release's namespace; one that exists already where the values name it."""
    binding = find(render(), "RoleBinding", "weft-trainer")
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "weft-trainer"}
    subject = {"kind": "ServiceAccount", "name": "weft-trainer", "namespace": "interpretability"}
    assert binding["subjects"] == [subject]
    existing = render(merged({"trainer": {"serviceAccount": {"create": False, "name": "theirs"}}}))
    assert find(existing, "RoleBinding", "weft-trainer")["subjects"] == [{**subject, "name": "theirs"}]


@pytest.mark.parametrize("values", CI_FILES, ids=lambda path: path.stem)
def test_nothing_reaches_beyond_the_namespace(values: object) -> None:
    """No ClusterRole, no binding to one, in any configuration."""
    documents = render(values)  # type: ignore[arg-type]
    assert not kinds(documents, "ClusterRole")
    assert not kinds(documents, "ClusterRoleBinding")
    assert all(each["roleRef"]["kind"] == "Role" for each in kinds(documents, "RoleBinding").values())


def test_local_ranks_need_no_rights() -> None:
    """With ranks as processes there is no Role, no binding and no account of ranks."""
    documents = render(merged({"trainer": {"launcher": "local"}}))
    assert not kinds(documents, "Role")
    assert not kinds(documents, "RoleBinding")
    assert "weft-rank" not in kinds(documents, "ServiceAccount")
