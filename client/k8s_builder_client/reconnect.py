"""When to try the daemon again, when to say so and when to give up. Pure: every time is handed in, in seconds."""

FIRST_DELAY = 0.05
LONGEST_DELAY = 5.0
LONGEST_DELAY_AT_START = 0.5
FIRST_WORDS = 2.0
"""How long the daemon may be away before a line says so; shorter ones are nobody's business."""
MORE_WORDS = 60.0
SETTLED = 1.0
"""Seconds after which a connection over which the daemon has taken the request may count, though nothing came yet."""
STABLE = 5.0
"""One that lasted this long makes the delays short again: a daemon that accepts and closes must not be hammered."""


class Reconnect:
    """The daemon's absence, which begins with the program, with each connection that is lost, and with a silence.

    Only a sign of the daemon ends it: the kernel connects to one that is frozen, too. `deadline` is for those who may
    not wait for ever. A connection that lasted less than `patience`, or brought nothing, buys no new one, so that a
    daemon that keeps closing connections cannot hold up the peer without end.
    """

    def __init__(self, now: float, patience: float) -> None:
        self._patience = patience
        self._delay = FIRST_DELAY
        self._connected_at = now
        self._since = now
        self._heard = False
        self.over = False
        self.told = False
        self.deadline = now + patience
        self.retry_at = now
        self.tell_at = now + FIRST_WORDS
        self.settles_at = now
        self.reason = ""
        self.remedy = ""

    def failed(self, now: float, reason: str, remedy: str, longest: float, spread: float) -> None:
        """No connection came about: try again within `longest` seconds, `spread` (0 to 1) apart from the others."""
        self.reason, self.remedy = reason, remedy
        delay = min(self._delay, longest)
        self._delay = min(self._delay * 2, LONGEST_DELAY)
        self.retry_at = now + delay * (0.5 + spread / 2)

    def connected(self, now: float, reason: str, remedy: str) -> None:
        """A connection came about; whether somebody answers is still to be seen, and `reason` stands while not."""
        self.reason, self.remedy = reason, remedy
        self._heard = False
        self._connected_at = now
        self.settles_at = now + SETTLED

    def silent(self, now: float, since: float, reason: str, remedy: str) -> None:
        """The connection is there, but has brought nothing since then."""
        self.reason, self.remedy = reason, remedy
        self.over = False
        self._since = since
        self.tell_at = now

    def end(self, now: float) -> "float | None":
        """The daemon is there. Returns how long it was away where that was told, else None."""
        told = self.told and not self.over
        self._heard = True
        self.over = True
        self.told = False
        return now - self._since if told else None

    def lost(self, now: float, reason: str, remedy: str, longest: float, spread: float) -> None:
        """The connection closed before its time."""
        held = now - self._connected_at
        if self._heard and held >= self._patience:
            self.deadline = now + self._patience
        if held >= STABLE:
            self._delay = FIRST_DELAY
        if self.over:
            self.over = False
            self._since = now
            self.tell_at = now + FIRST_WORDS
        self.failed(now, reason, remedy, longest, spread)

    def tell(self, now: float) -> bool:
        """Whether a line about the absence is due now."""
        if now < self.tell_at:
            return False
        self.told = True
        self.tell_at = now + MORE_WORDS
        return True
