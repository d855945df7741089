"""The peer's end of one chaincode stream: REGISTER to READY, transactions, and what they ask of the ledger.

After Fabric's core/chaincode/handler.go.
"""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from k8s_builderd.errors import BuilderError

from .ledger import Simulator
from .messages import (
    ChaincodeMessage,
    Kind,
    decode_chaincode_id,
    decode_query_id,
    decode_state_request,
    encode_query_response,
)
from .registry import HandlerRegistry, RegisterError

# How many results one answer to a query holds: the peer's MaxResultLimit.
_BATCH = 100


# What the peer would log: one line, in Fabric's words.
Log = Callable[[str], None]


class TransactionError(BuilderError):
    """Raised when a transaction is not endorsed, takes too long, or its stream ends."""


class StreamError(BuilderError):
    """Raised when a message does not belong where it comes; the peer ends the stream."""


class Wire(Protocol):
    """What the handler needs of gRPC: messages in, messages out, one at a time each."""

    def incoming(self) -> AsyncIterator[ChaincodeMessage]:
        """Yield what the chaincode sends, until it closes."""

    async def send(self, message: ChaincodeMessage) -> None:
        """Send one message. Raises StreamError when the stream has ended."""


class State(Enum):
    """How far a stream has come."""

    CREATED = "created"
    ESTABLISHED = "established"
    READY = "ready"


@dataclass
class Transaction:
    """A transaction that the chaincode is working on."""

    namespace: str
    simulator: Simulator
    queries: dict[str, Iterator[tuple[str, bytes]]] = field(default_factory=dict)
    answered: anyio.Event = field(default_factory=anyio.Event)
    answer: ChaincodeMessage | None = None


class StreamHandler:
    """The handler of one stream; `serve` runs until the stream ends."""

    def __init__(self, registry: HandlerRegistry, wire: Wire, log: Log, *, keepalive: float = 0) -> None:
        self.chaincode_id = ""
        self.state = State.CREATED
        self.done = anyio.Event()
        self._registry = registry
        self._wire = wire
        self._log = log
        self._keepalive = keepalive
        self._sending = anyio.Lock()
        self._transactions: dict[tuple[str, str], Transaction] = {}

    def close(self) -> None:
        """Forget the queries of all transactions."""
        for transaction in self._transactions.values():
            transaction.queries.clear()

    async def serve(self) -> None:
        """Serve the stream until the chaincode closes it. Raises StreamError.

        However it ends, whoever holds its id is dropped, even if this stream was refused.
        """
        try:
            async with anyio.create_task_group() as tasks:
                if self._keepalive:
                    tasks.start_soon(self._keep_alive)
                async for message in self._wire.incoming():
                    await self._handle(message, tasks)
                tasks.cancel_scope.cancel()
        finally:
            self.done.set()
            self._registry.deregister(self.chaincode_id)
            self._log(f"deregister handler: {self.chaincode_id}")

    async def execute(
        self, channel_id: str, namespace: str, arguments: bytes, simulator: Simulator, seconds: float
    ) -> ChaincodeMessage:
        """Send TRANSACTION and return its COMPLETED or ERROR.

        Raises TransactionError after `seconds`, or when the stream ends before.
        """
        message = ChaincodeMessage(Kind.TRANSACTION, arguments, secrets.token_hex(32), channel_id)
        transaction = Transaction(namespace, simulator)
        broken = ""
        self._transactions[channel_id, message.txid] = transaction
        try:
            with anyio.move_on_after(seconds):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_cancel_after, self.done, tasks)
                    tasks.start_soon(_cancel_after, transaction.answered, tasks)
                    await self._send(message)
        except* StreamError as group:
            broken = str(group.exceptions[0])
        finally:
            del self._transactions[channel_id, message.txid]
        if transaction.answer is not None:
            return transaction.answer
        if not (broken or self.done.is_set()):
            broken = "timeout expired while executing transaction"
        raise TransactionError(f"error sending: {broken or 'chaincode stream terminated'}")

    async def _handle(self, message: ChaincodeMessage, tasks: TaskGroup) -> None:
        if message.kind == Kind.KEEPALIVE:
            return
        if self.state is State.CREATED and message.kind == Kind.REGISTER:
            await self._register(message)
        elif self.state is State.READY and message.kind in {Kind.COMPLETED, Kind.ERROR}:
            self._notify(message)
        elif self.state is State.READY and message.kind in _STATE_REQUESTS:
            # Not awaited here: a chaincode that does not read must not keep us from reading.
            tasks.start_soon(self._send, self._answer(message))
        else:
            raise StreamError(
                f"[{message.txid}] Fabric side handler cannot handle message ({message.kind_name}) "
                f"while in {self.state.value} state"
            )

    async def _register(self, message: ChaincodeMessage) -> None:
        self.chaincode_id = decode_chaincode_id(message.payload)
        try:
            if not self.chaincode_id:
                raise RegisterError("error in handling register chaincode, chaincodeID name is empty")
            self._registry.register(self)
        except RegisterError as error:
            # The stream stays open, and the chaincode is told nothing.
            self._registry.failed(self.chaincode_id, error)
            self._log(f"failed to start {self.chaincode_id} -- {error}")
            return
        self._log(f"Got REGISTER for chaincodeID = {self.chaincode_id}, sending back REGISTERED")
        await self._send(ChaincodeMessage(Kind.REGISTERED))
        self.state = State.ESTABLISHED
        self._log(f"sending READY for chaincode {self.chaincode_id}")
        await self._send(ChaincodeMessage(Kind.READY))
        self.state = State.READY
        self._registry.ready(self.chaincode_id)

    def _notify(self, message: ChaincodeMessage) -> None:
        transaction = self._transactions.get((message.channel_id, message.txid))
        if transaction is not None and transaction.answer is None:
            transaction.answer = message
            transaction.answered.set()

    def _answer(self, message: ChaincodeMessage) -> ChaincodeMessage:
        transaction = self._transactions.get((message.channel_id, message.txid))
        try:
            if transaction is None:
                raise ValueError("no ledger context")
            kind, payload = Kind.RESPONSE, _serve_state(transaction, message)
        except ValueError as error:
            kind = Kind.ERROR
            payload = f"{message.kind_name} failed: transaction ID: {message.txid}: {error}".encode()
        return ChaincodeMessage(kind, payload, message.txid, message.channel_id)

    async def _send(self, message: ChaincodeMessage) -> None:
        async with self._sending:
            await self._wire.send(message)

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(self._keepalive)
            await self._send(ChaincodeMessage(Kind.KEEPALIVE))


_STATE_REQUESTS = frozenset(
    {
        Kind.GET_STATE,
        Kind.PUT_STATE,
        Kind.DEL_STATE,
        Kind.GET_STATE_BY_RANGE,
        Kind.QUERY_STATE_NEXT,
        Kind.QUERY_STATE_CLOSE,
    }
)


def _serve_state(transaction: Transaction, message: ChaincodeMessage) -> bytes:
    """Return the payload of the RESPONSE. Raises ValueError with why it cannot be served."""
    if message.kind == Kind.QUERY_STATE_CLOSE:
        query_id = decode_query_id(message)
        transaction.queries.pop(query_id, None)
        return encode_query_response(transaction.namespace, (), query_id, has_more=False)
    if message.kind == Kind.QUERY_STATE_NEXT:
        return _next_batch(transaction, decode_query_id(message))
    request = decode_state_request(message)
    if request.collection or request.paged:
        raise ValueError("this peer is a stand-in without private data and without pagination")
    match message.kind:
        case Kind.GET_STATE:
            return transaction.simulator.get(request.key)
        case Kind.PUT_STATE:
            transaction.simulator.put(request.key, request.value)
        case Kind.DEL_STATE:
            transaction.simulator.delete(request.key)
        case _:
            query_id = secrets.token_hex(16)
            transaction.queries[query_id] = transaction.simulator.scan(request.key, request.end_key)
            return _next_batch(transaction, query_id)
    return b""


def _next_batch(transaction: Transaction, query_id: str) -> bytes:
    results = transaction.queries.get(query_id)
    if results is None:
        raise ValueError("query iterator not found")
    batch = list(islice(results, _BATCH))
    has_more = len(batch) == _BATCH
    if not has_more:
        del transaction.queries[query_id]
    return encode_query_response(transaction.namespace, batch, query_id, has_more=has_more)


async def _cancel_after(event: anyio.Event, tasks: TaskGroup) -> None:
    await event.wait()
    tasks.cancel_scope.cancel()
