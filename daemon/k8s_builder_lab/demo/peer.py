"""A stand-in for the peer: the gRPC service that chaincode registers with, launches, transactions and stops.

After Fabric's core/chaincode (chaincode_support.go, runtime_launcher.go, accesscontrol/) and
core/container/externalbuilder/instance.go. No consensus, no endorsement: a transaction that succeeds is committed.
"""

import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio
import grpc
import grpc.aio
from anyio.abc import TaskGroup

from k8s_builderd.errors import BuilderError

from .builder import PeerConnection
from .certificates import CertificateAuthority, fingerprint
from .ledger import Ledger
from .messages import REGISTER_METHOD, ChaincodeMessage, Kind, decode, decode_chaincode_id, decode_response, encode
from .messages import encode_input as encode_arguments
from .registry import HandlerRegistry, LaunchState
from .stream import Log, State, StreamError, StreamHandler, TransactionError

_HOST = "127.0.0.1"
_CHANNEL_ID = "mychannel"
# accesscontrol's ttl: how long after a launch its certificate can be used to register.
_CERTIFICATE_SECONDS = 600.0


class LaunchError(BuilderError):
    """Raised when a chaincode did not register and become ready."""


class StopError(BuilderError):
    """Raised when there is nothing to stop, or it does not end."""


class RunningChaincode(Protocol):
    """What the peer started for a launch: `run`, or whatever a test puts in its place."""

    async def wait(self) -> int:
        """Wait for its end and return its exit code."""

    def signal(self, number: signal.Signals) -> None:
        """Signal it, if it still runs."""


class Runtime(Protocol):
    """What starts chaincode: an external builder."""

    async def start(self, chaincode_id: str, connection: PeerConnection) -> RunningChaincode:
        """Start it, without waiting until it is ready. Raises BuilderError."""


class Peer:
    """One process of a peer. Made by `open_peer`."""

    def __init__(
        self,
        runtime: Runtime,
        tasks: TaskGroup,
        *,
        mspid: str,
        authority: CertificateAuthority | None,
        startup_timeout: float,
        execute_timeout: float,
        term_timeout: float,
        keepalive: float,
        log: Log,
    ) -> None:
        self.address = ""
        self.mspid = mspid
        self.registry = HandlerRegistry()
        self.ledger = Ledger()
        self.streams: list[StreamHandler] = []
        """Every stream that is open, those that were refused included."""
        self._runtime = runtime
        self._tasks = tasks
        self._authority = authority
        self._startup_timeout = startup_timeout
        self._execute_timeout = execute_timeout
        self._term_timeout = term_timeout
        self._keepalive = keepalive
        self._log = log
        self._running: dict[str, RunningChaincode] = {}
        self._certificates: dict[bytes, tuple[str, float]] = {}

    async def launch(self, chaincode_id: str) -> StreamHandler:
        """Return the handler of a ready chaincode, and start it where there is none. Raises LaunchError.

        Single-flight: who comes while a launch is under way waits for its result. After the start-up time-out the
        launch is forgotten, and what it started is not stopped.
        """
        if (handler := self._handler(chaincode_id)) is not None and handler.state is State.READY:
            return handler
        state, already_started = self.registry.launching(chaincode_id)
        if already_started:
            await state.wait()
        else:
            self._tasks.start_soon(self._start, chaincode_id, state, name=f"launch {chaincode_id}")
            with anyio.move_on_after(self._startup_timeout) as scope:
                await state.wait()
            if scope.cancelled_caught:
                state.notify(LaunchError(f"timeout expired while starting chaincode {chaincode_id} for transaction"))
        if state.error is not None:
            if not already_started:
                self.registry.deregister(chaincode_id)
            raise LaunchError(f"could not launch chaincode {chaincode_id}: {state.error}") from state.error
        if (handler := self._handler(chaincode_id)) is None:
            raise LaunchError(f"claimed to start chaincode container for {chaincode_id} but could not find handler")
        return handler

    async def invoke(self, chaincode_id: str, arguments: Sequence[str]) -> bytes:
        """Run a transaction, launch the chaincode if need be, commit what it wrote and return its payload.

        Raises LaunchError or TransactionError.
        """
        return await self._transact(chaincode_id, arguments, commit=True)

    async def query(self, chaincode_id: str, arguments: Sequence[str]) -> bytes:
        """Run a transaction as `invoke` does, but commit nothing. Raises LaunchError or TransactionError."""
        return await self._transact(chaincode_id, arguments, commit=False)

    async def stop(self, chaincode_id: str) -> None:
        """SIGTERM to the newest `run` of this id, SIGKILL after the term time-out. Raises StopError.

        A `run` of an earlier launch that timed out is never signalled again.
        """
        running = self._running.get(chaincode_id)
        if running is None:
            raise StopError(f"failed to stop chaincode {chaincode_id}: instance has not been started")
        for number in (signal.SIGTERM, signal.SIGKILL):
            running.signal(number)
            with anyio.move_on_after(self._term_timeout):
                await running.wait()
                return
        raise StopError(f"failed to stop instance '{chaincode_id}'")

    async def shutdown(self) -> None:
        """SIGTERM to the newest `run` of every id at once, and wait for the term time-out at most.

        This is what the peer does when it stops; what has not ended then is not killed.
        """
        with anyio.move_on_after(self._term_timeout):
            async with anyio.create_task_group() as stopping:
                for chaincode_id in self._running:
                    stopping.start_soon(self.stop, chaincode_id)

    def connection(self, chaincode_id: str) -> PeerConnection:
        """Return what chaincode.json holds for a launch, with a new client certificate that this peer remembers."""
        if self._authority is None:
            return PeerConnection(self.address, self.mspid)
        pair = self._authority.client_pair()
        self._certificates[fingerprint(pair.certificate)] = (chaincode_id, time.monotonic() + _CERTIFICATE_SECONDS)
        return PeerConnection(
            self.address,
            self.mspid,
            client_cert=pair.certificate.decode(),
            client_key=pair.key.decode(),
            root_cert=self._authority.certificate.decode(),
        )

    async def serve_stream(self, _: object, context: Any) -> None:
        """Serve one call of protos.ChaincodeSupport/Register."""
        wire = _GrpcWire(context)
        try:
            await self._authenticate(wire, context)
            handler = StreamHandler(self.registry, wire, self._log, keepalive=self._keepalive)
            self.streams.append(handler)
            try:
                await handler.serve()
            finally:
                self.streams.remove(handler)
        except* (StreamError, grpc.aio.BaseError) as group:
            reason = _words(group)
            self._log(f"error handling message, ending stream: {reason}")
            context.set_code(grpc.StatusCode.UNKNOWN)
            context.set_details(f"error handling message, ending stream: {reason}")

    async def _authenticate(self, wire: "_GrpcWire", context: Any) -> None:
        if self._authority is None:
            return
        first = await wire.peek()
        if first is None or first.kind != Kind.REGISTER:
            raise StreamError("First message needs to be a register")
        chaincode_id = decode_chaincode_id(first.payload)
        (certificate,) = context.auth_context()["x509_pem_cert"]
        owner, expires = self._certificates.get(fingerprint(certificate), ("", 0.0))
        if not owner or time.monotonic() > expires:
            raise StreamError(f"Chaincode {chaincode_id} with given certificate hash not found in registry")
        if owner != chaincode_id:
            raise StreamError(f"Chaincode {chaincode_id} with given certificate hash belongs to a different chaincode")

    def _handler(self, chaincode_id: str) -> StreamHandler | None:
        handler = self.registry.handler(chaincode_id)
        assert handler is None or isinstance(handler, StreamHandler)
        return handler

    async def _start(self, chaincode_id: str, state: LaunchState) -> None:
        try:
            running = await self._runtime.start(chaincode_id, self.connection(chaincode_id))
        except BuilderError as error:
            state.notify(LaunchError(f"error starting container: {error}"))
            return
        self._running[chaincode_id] = running
        code = await running.wait()
        # Ignored after READY: only the end of its stream deregisters a chaincode then.
        state.notify(LaunchError(f"chaincode registration failed: container exited with {code}"))

    async def _transact(self, chaincode_id: str, arguments: Sequence[str], *, commit: bool) -> bytes:
        handler = await self.launch(chaincode_id)
        namespace = chaincode_id.partition(":")[0]
        simulator = self.ledger.simulate(namespace)
        payload = encode_arguments(argument.encode() for argument in arguments)
        answer = await handler.execute(_CHANNEL_ID, namespace, payload, simulator, self._execute_timeout)
        if answer.kind == Kind.ERROR:
            raise TransactionError(f"transaction returned with failure: {answer.payload.decode(errors='replace')}")
        response = decode_response(answer.payload)
        if response.status >= 400:
            raise TransactionError(f"chaincode response {response.status}, {response.message}")
        if commit:
            simulator.commit()
        return response.payload


def _words(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_words(inner) for inner in error.exceptions)
    return str(error)


class _GrpcWire:
    """A gRPC call as the handler's wire."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._peeked: ChaincodeMessage | None = None

    async def peek(self) -> ChaincodeMessage | None:
        """Return the first message, which `incoming` will yield again; None if there is none."""
        message = await self._context.read()
        self._peeked = None if message is grpc.aio.EOF else message
        return self._peeked

    async def incoming(self) -> AsyncIterator[ChaincodeMessage]:
        if self._peeked is not None:
            yield self._peeked
        while (message := await self._context.read()) is not grpc.aio.EOF:
            yield message

    async def send(self, message: ChaincodeMessage) -> None:
        try:
            await self._context.write(message)
        except grpc.aio.BaseError as error:
            raise StreamError(f"error sending {message.kind_name}: {error}") from error


class _Service(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Finds the one method of protos.ChaincodeSupport."""

    def __init__(self, peer: Peer) -> None:
        self._method = grpc.stream_stream_rpc_method_handler(
            peer.serve_stream, request_deserializer=decode, response_serializer=encode
        )

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call, None for an unknown method."""
        return self._method if handler_call_details.method == REGISTER_METHOD else None


@asynccontextmanager
async def open_peer(
    runtime: Runtime,
    *,
    mspid: str = "Org1MSP",
    tls: bool = True,
    startup_timeout: float = 300.0,
    execute_timeout: float = 30.0,
    term_timeout: float = 5.0,
    keepalive: float = 0.0,
    log: Log = lambda _: None,
) -> AsyncIterator[Peer]:
    """Start a peer on a free port of 127.0.0.1; times are in seconds and the peer's own, a keepalive of 0 sends none.

    `term_timeout` is the time from SIGTERM to SIGKILL, `log` is given lines in the words of the peer's own log.
    Each start makes a new CA. Leaving stops every chaincode as `Peer.shutdown` does and ends every stream.
    """
    authority = CertificateAuthority() if tls else None
    server = grpc.aio.server()
    async with anyio.create_task_group() as tasks:
        peer = Peer(
            runtime,
            tasks,
            mspid=mspid,
            authority=authority,
            startup_timeout=startup_timeout,
            execute_timeout=execute_timeout,
            term_timeout=term_timeout,
            keepalive=keepalive,
            log=log,
        )
        server.add_generic_rpc_handlers((_Service(peer),))
        if authority is None:
            port = server.add_insecure_port(f"{_HOST}:0")
        else:
            pair = authority.server_pair(_HOST)
            credentials = grpc.ssl_server_credentials(
                [(pair.key, pair.certificate)], root_certificates=authority.certificate, require_client_auth=True
            )
            port = server.add_secure_port(f"{_HOST}:0", credentials)
        peer.address = f"{_HOST}:{port}"
        await server.start()
        try:
            yield peer
        finally:
            with anyio.CancelScope(shield=True):
                await peer.shutdown()
                await server.stop(None)
            tasks.cancel_scope.cancel()
