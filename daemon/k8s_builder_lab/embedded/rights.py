"""What the tokens' user may do, and the reviews that tell it. Pure.

A right is RBAC's verb and resource: `create jobs.batch`, `get pods/log`, `get namespaces`; `*` stands for any.
"""

import msgspec

from k8s_builder_lab.embedded.objects import NAMESPACES, NEW_EVENTS, RESOURCES, Object, Resource

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete")

_SUBRESOURCES = {"log": ("get", "pods/log"), "evict": ("create", "pods/eviction")}


class Rights(msgspec.Struct, forbid_unknown_fields=True):
    """All rights but some. What is taken away is refused from then on, and open watches and logs go on.

    without: rights that are missing.
    incomplete: whether the review of the rules tells none, as by an authorizer that is a webhook.
    """

    without: list[str] = []
    incomplete: bool = False

    def allow(self, verb: str, resource: str) -> bool:
        """Say whether RBAC's verb on RBAC's resource is allowed."""
        return not any(
            missing.partition(" ")[0] in {"*", verb} and missing.partition(" ")[2] in {"*", resource}
            for missing in self.without
        )

    def access_review(self, spec: Object) -> Object:
        """Answer a SelfSubjectAccessReview."""
        asked = spec.get("resourceAttributes") or {}
        plural, group, sub = (asked.get(field, "") for field in ("resource", "group", "subresource"))
        resource = (f"{plural}.{group}" if group else plural) + (f"/{sub}" if sub else "")
        return {"allowed": self.allow(asked.get("verb", ""), resource)}

    def rules_review(self) -> Object:
        """Answer a SelfSubjectRulesReview."""
        if self.incomplete:
            told = {"resourceRules": [], "evaluationError": "webhook authorizer does not support user rule resolution"}
            return {**told, "nonResourceRules": [], "incomplete": True}
        rules = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
        if self.without:
            named = [(each.group, each.plural, each.qualified) for each in (*RESOURCES, NEW_EVENTS, NAMESPACES)]
            rules = [
                {"verbs": verbs, "apiGroups": [group], "resources": [plural]}
                for group, plural, qualified in (*named, ("", "pods/log", "pods/log"))
                if (verbs := [verb for verb in VERBS if self.allow(verb, qualified)])
            ]
        return {"resourceRules": rules, "nonResourceRules": [], "incomplete": False}


def asked_for(verb: str, resource: Resource) -> tuple[str, str]:
    """Return RBAC's verb and the plural, with its subresource, of a request that faults know by `verb`."""
    return _SUBRESOURCES.get(verb, (verb, resource.plural))
