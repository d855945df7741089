"""Switches to misbehave: rules that say which request meets which fault. No I/O.

`POST /embedded/faults` takes one rule or a list of rules and adds them, `DELETE` forgets them all, `GET` returns them
with how often each has been met. A rule is

| field | meaning |
| --- | --- |
| `verb` | `get list watch create delete patch log evict`; none: any |
| `resource` | `jobs pods secrets events namespaces nodes serviceaccounts resourcequotas selfsubjectaccessreviews \
selfsubjectreviews`; none: any |
| `name` | the object's name begins so (of a list or watch: its `metadata.name` field selector); none: any |
| `after` | so many matching requests pass first (0) |
| `times` | so many meet the fault then (1); null: all |
| `delay` | seconds to wait before anything else (0) |
| `action` | one of those below; none: only the delay |

| `do` of the action | what happens | its fields |
| --- | --- | --- |
| `status` | an HTTP error instead of the work, with its usual words | `code`, `reason`, `message`, `retryAfter` |
| `reset` | the connection is reset (RST) | `when`: `before` the work or `after` it was done (`before`) |
| `hang` | no answer until the client goes; of a watch or a log not even the headers | `when`, as above |
| `close` | the watch ends cleanly | `events`: so many are sent first (0) |
| `expire` | ERROR event 410, then the end | `events` |
| `error` | ERROR event 500, then the end | `events`, `code`, `message` |
| `gone` | 410 as the HTTP status of the watch | |
| `silent` | so much is said, then nothing, not even the end; the connection stays | watch: `events`, log: `bytes` (0) |
| `linger` | the log is told whole, but its stream does not end | |
| `half` | half of the next event's line, then the end | `events` |
| `duplicate` | every event of the watch twice | |
| `replay` | the watch first repeats what happened before its resourceVersion | `events`: so many (10) |
| `padding` | every event carries an annotation that makes it so large | `bytes` (1 MiB) |
| `cut` | the log ends in the middle | `bytes`: after so many (0); `reset`: with RST instead of cleanly |

For example, each a rule:

- `{"verb": "list", "times": 3, "action": {"do": "status", "code": 401}}`: three lists are told Unauthorized
- `{"verb": "list", "resource": "events", "times": null, "action": {"do": "hang"}}`: no list of events is ever answered
- `{"verb": "watch", "times": null, "action": {"do": "close", "events": 1}}`: every watch ends after one event
- `{"verb": "log", "action": {"do": "silent"}}`: a log that opens and tells nothing, neither now nor after the end

The first rule that matches and is not used up is the one that is met. A delay without an action does not use up
others: the next matching rule applies as well.
"""

from typing import Any, Literal

import msgspec

REASONS = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout"}
"""The reason of a status that names none."""

Verb = Literal["get", "list", "watch", "create", "delete", "patch", "log", "evict"]


Kind = Literal[
    "jobs",
    "pods",
    "secrets",
    "events",
    "namespaces",
    "nodes",
    "serviceaccounts",
    "resourcequotas",
    "selfsubjectaccessreviews",
    "selfsubjectreviews",
]


class _Action(msgspec.Struct, forbid_unknown_fields=True, tag_field="do", tag=str.lower, rename="camel"):
    """The base of all actions."""


class Status(_Action):
    """An HTTP error instead of the work."""

    code: int
    reason: str = ""
    message: str = ""
    retry_after: int | None = None


class Reset(_Action):
    """The connection is reset."""

    when: Literal["before", "after"] = "before"


class Hang(_Action):
    """No answer until the client goes."""

    when: Literal["before", "after"] = "before"


class Close(_Action):
    """The watch ends cleanly."""

    events: int = 0


class Expire(_Action):
    """The watch tells 410 in its stream."""

    events: int = 0


class Error(_Action):
    """The watch tells another error in its stream."""

    events: int = 0
    code: int = 500
    message: str = "etcdserver: no leader"


class Gone(_Action):
    """The watch is refused with 410."""


class Silent(_Action):
    """The watch or the log sends nothing more, and does not end."""

    events: int = 0
    bytes: int = 0


class Linger(_Action):
    """The log does not end."""


class Half(_Action):
    """The watch ends in the middle of an event."""

    events: int = 0


class Duplicate(_Action):
    """The watch sends every event twice."""


class Replay(_Action):
    """The watch first repeats what is older than its resourceVersion."""

    events: int = 10


class Padding(_Action):
    """The watch sends large events."""

    bytes: int = 1024 * 1024


class Cut(_Action):
    """The log ends in the middle."""

    bytes: int = 0
    reset: bool = False


Action = (
    Status | Reset | Hang | Close | Expire | Error | Gone | Silent | Linger | Half | Duplicate | Replay | Padding | Cut
)


class Rule(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """Which requests meet which fault; the table above says what the fields mean."""

    verb: Verb | None = None
    resource: Kind | None = None
    name: str = ""
    after: int = 0
    times: int | None = 1
    delay: float = 0
    action: Action | None = None
    seen: int = 0

    @property
    def met(self) -> int:
        """How many requests have met the fault."""
        met = max(0, self.seen - self.after)
        return met if self.times is None else min(met, self.times)

    def take(self, verb: Verb, resource: str, name: str) -> bool:
        """Count a request, and say whether it meets the fault."""
        if self.verb not in {None, verb} or self.resource not in {None, resource} or not name.startswith(self.name):
            return False
        before = self.met
        self.seen += 1
        return self.met > before


class Faults:
    """The rules in force."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def add(self, body: bytes) -> None:
        """Add one rule or a list of rules, as JSON.

        :raises ValueError: not a rule
        """
        try:
            if body.lstrip().startswith(b"["):
                self._rules += msgspec.json.decode(body, type=list[Rule])
            else:
                self._rules.append(msgspec.json.decode(body, type=Rule))
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from None

    def clear(self) -> None:
        """Forget all rules."""
        self._rules.clear()

    def told(self) -> list[dict[str, Any]]:
        """Return the rules as JSON has them, each with `met`."""
        return [{**msgspec.to_builtins(rule), "met": rule.met} for rule in self._rules]

    def take(self, verb: Verb, resource: str, name: str) -> tuple[float, Action | None]:
        """Return how long to wait, and what to do to a request."""
        delay = 0.0
        for rule in self._rules:
            if rule.take(verb, resource, name):
                delay += rule.delay
                if rule.action is not None:
                    return delay, rule.action
        return delay, None
