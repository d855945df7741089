"""How a launch can fail, and who is told how it goes."""

from typing import Protocol

from k8s_builderd.errors import BuilderError
from k8s_builderd.fabric.plan import Plan
from k8s_builderd.runs.category import Category


class LaunchFailed(BuilderError):
    """Raised when the chaincode does not run and will not; the text says what to change."""

    def __init__(self, text: str, category: Category | None = None) -> None:
        """Take the line, and its category where it has one."""
        super().__init__(text)
        self.category: str | None = category


class TimedOut(LaunchFailed):
    """Raised when the container did not run within START_TIMEOUT."""

    def __init__(self, plan: Plan, why: str, category: Category | None = None) -> None:
        """Take what has held the launch up, as far as it is known; the rest is in the Go builder's words."""
        super().__init__(
            f"error waiting for chaincode job {plan.namespace}/{plan.job_name} to start for chaincode ID"
            f" {plan.chaincode.chaincode_id}: timed out waiting for the condition" + (f"; {why}" if why else ""),
            category,
        )


class Vanished(LaunchFailed):
    """Raised when the cursor's Job is no longer there; the chaincode is not launched a second time."""


class OtherInstance(BuilderError):
    """Raised when the Job of a run belongs to another instance: this daemon does not watch it."""


class Unseen(LaunchFailed):
    """Raised in a launch that has failed, when the API does not let us see whether its container runs after all."""


class Audience(Protocol):
    """Who is told how the launch goes: the connection of one `run`."""

    async def say(self, text: str) -> None:
        """Tell one line of the builder's own."""

    async def log(self, cursor: str, lines: bytes = b"") -> None:
        """Pass on lines of the chaincode, and the cursor after them."""
