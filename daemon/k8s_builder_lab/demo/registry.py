"""The peer's memory of who is registered and what is being launched. Decides only; opens no socket, starts nothing.

It follows Fabric's core/chaincode/handler_registry.go step by step, the parts that surprise included: a refused
REGISTER leaves its stream open, and the end of any stream that sent REGISTER for an id drops whoever holds that id.
"""

from typing import Protocol

import anyio

from k8s_builderd.errors import BuilderError


class RegisterError(BuilderError):
    """Raised when the id of a REGISTER is registered already, or is not being launched."""


class Handler(Protocol):
    """The peer's end of one chaincode stream."""

    @property
    def chaincode_id(self) -> str:
        """The id that the stream's REGISTER named."""

    def close(self) -> None:
        """Forget the transactions of a handler that was dropped; its stream stays open."""


class LaunchState:
    """The result of one launch, told once; what is told later is ignored."""

    def __init__(self) -> None:
        self.error: BuilderError | None = None
        self._done = anyio.Event()

    def notify(self, error: BuilderError | None) -> None:
        """End the launch: None is READY, anything else is why it failed."""
        if not self._done.is_set():
            self.error = error
            self._done.set()

    async def wait(self) -> None:
        """Wait until the launch has ended."""
        await self._done.wait()


class HandlerRegistry:
    """Who is registered, and what is being launched, by chaincode id."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._launching: dict[str, LaunchState] = {}

    def launching(self, chaincode_id: str) -> tuple[LaunchState, bool]:
        """Return the launch of this id, and whether it had begun before this call."""
        if chaincode_id in self._launching:
            return self._launching[chaincode_id], True
        state = LaunchState()
        if chaincode_id in self._handlers:
            state.notify(None)
            return state, True
        self._launching[chaincode_id] = state
        return state, False

    def handler(self, chaincode_id: str) -> Handler | None:
        """Return who holds this id."""
        return self._handlers.get(chaincode_id)

    def register(self, handler: Handler) -> None:
        """Give the handler its id. Raises RegisterError; the launch that is under way, if any, is not told."""
        chaincode_id = handler.chaincode_id
        if chaincode_id in self._handlers:
            raise RegisterError(f"duplicate chaincodeID: {chaincode_id}")
        if chaincode_id not in self._launching:
            raise RegisterError(
                f"peer will not accept external chaincode connection {chaincode_id} (except in dev mode)"
            )
        self._handlers[chaincode_id] = handler

    def ready(self, chaincode_id: str) -> None:
        """Tell the launch of this id, if there is one, that READY was sent."""
        if chaincode_id in self._launching:
            self._launching[chaincode_id].notify(None)

    def failed(self, chaincode_id: str, error: BuilderError) -> None:
        """Tell the launch of this id, if there is one, that its registration failed."""
        if chaincode_id in self._launching:
            self._launching[chaincode_id].notify(error)

    def deregister(self, chaincode_id: str) -> None:
        """Drop whoever holds this id, and the launch of it. The launch is not told: it runs into its time-out."""
        handler = self._handlers.pop(chaincode_id, None)
        self._launching.pop(chaincode_id, None)
        if handler is not None:
            handler.close()
