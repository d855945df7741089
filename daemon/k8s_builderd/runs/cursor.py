"""What `run` keeps for us: its Job and pod and the place in the log, or that its peer has dropped the launch. Pure."""

import re

from msgspec import Struct

from k8s_builderd.fabric.names import Token
from k8s_builderd.kube.loglines import Position

_UID = "[0-9A-Za-z-]{1,64}"
_FORM = re.compile(
    rf"(?:1|2 (?P<token>[0-9a-f]{{32}}) (?P<takeovers>[1-9][0-9]{{0,8}})) (?P<job>{_UID})(?: (?P<pod>{_UID})"
    r"(?: (?P<at>[0-9TZ:.+-]{20,40}) (?P<digest>[0-9a-f]{16}) (?P<alike>[0-9]{1,18}) (?P<pieces>[0-9]{1,18}))?)?"
)

_DROPPED = "dropped"
_YEAR = re.compile("19[7-9][0-9]|[2-8][0-9]{3}")  # away from the ends of the calendar, where seconds cannot be added


class Cursor(Struct, frozen=True):
    """The uids of the Job and its pod, and the position in the log; what is not known yet is empty.

    Written as words with one space between them, behind the version of this form: `1 JOB POD AT DIGEST ALIKE PIECES`.
    Where the Job is an earlier launch's, with that one's token and how many launches have gone on with it:
    `2 TOKEN TAKEOVERS JOB ...`. `DROPPED` is the one without a Job.
    """

    job: str
    pod: str = ""
    position: Position | None = None
    token: Token | None = None
    takeovers: int = 0

    def __str__(self) -> str:
        """Return the form in which it travels."""
        if not self.job:
            return _DROPPED
        words = ["2", self.token.digits, str(self.takeovers), self.job] if self.token else ["1", self.job]
        if self.pod:
            words.append(self.pod)
            if (at := self.position) is not None:
                words += [at.at, at.digest, str(at.alike), str(at.pieces)]
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read the form in which it travels.

        :raises ValueError: if it is none.
        """
        if text == _DROPPED:
            return DROPPED
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError("not a cursor")
        position = None
        if match["at"]:
            position = Position(match["at"], match["digest"], int(match["alike"]), int(match["pieces"]))
            if not _YEAR.match(position.at):
                raise ValueError("not a time that a log can have")
            _ = position.since  # raises ValueError for a timestamp that is none
        token = Token(match["token"]) if match["token"] else None
        return cls(match["job"], match["pod"] or "", position, token, int(match["takeovers"] or 0))


DROPPED = Cursor("")
"""Kept by a `run` that never gets a Job, because its peer has dropped the launch meanwhile."""
