"""The Unix socket: who may come, how many at once, and what becomes of each call. Never touches Kubernetes."""

import errno
import fcntl
import os
import resource
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskStatus
from structlog.contextvars import bound_contextvars

from k8s_builderd.errors import BuilderError, ClientGone, ProtocolError, SettingsError
from k8s_builderd.gateway.connection import Connection
from k8s_builderd.gateway.instance import addresses, held
from k8s_builderd.gateway.protocol import Request
from k8s_builderd.metrics import Metrics
from k8s_builderd.runs.attend import cannot_continue
from k8s_builderd.settings import Settings

BACKLOG = 1024
ACCEPT_PAUSE = 0.5
"""Seconds to wait for file descriptors or memory when there are none for another connection."""
_PASSING = {errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM}
CALL_TIMEOUT = 60.0
"""Seconds that detect, build and release may take; what takes time in them is the client that copies."""
FAREWELL = 2.0
"""Seconds in which a client must take its last words."""

_DESCRIPTORS_EACH = 2
"""File descriptors that one `run` costs: its connection, and the log that is followed for it."""
_DESCRIPTORS_KEPT = 256

_GERUNDS = {
    "detect": "detecting",
    "build": "building",
    "release": "releasing",
    "run": "running",
    "status": "listing",
    "logs": "reading the log of",
    "stop": "stopping",
}
_UNLIMITED = {"run", "logs", "stop"}
"""The stages that take as long as a chaincode or a person does."""

_log = structlog.get_logger("k8s_builderd.gateway.listener")

SIGNS = 1.0
"""Seconds between two looks at who has heard nothing for a while."""

Serve = Callable[[Request, Connection], Awaitable[int]]


class Listener:
    """Accepts connections and serves each in a task of its own, whose errors stay there."""

    def __init__(
        self,
        settings: Settings,
        stages: Mapping[str, Serve],
        metrics: Metrics,
        *,
        knocked: Callable[[Request, str], bool],
        deaf: Callable[[], None],
        inherited: socket.socket | None = None,
    ) -> None:
        """Prepare to listen.

        :param knocked: is told of a `run` that is turned away to come again, and why; returns whether that is news to
            its client. Only token and cursor are in its request.
        :param deaf: is told that nobody can be heard for a while.
        :param inherited: a socket that listens already; whoever made it decides its path and who may use it.
        """
        self.open = False
        self.connections = 0
        self.most = min(settings.max_connections, _descriptors())
        """How many connections may be open."""
        self._settings = settings
        self._stages = {name: serve if name in _UNLIMITED else _limited(serve) for name, serve in stages.items()}
        self._metrics = metrics
        self._knocked = knocked
        self._deaf = deaf
        self._inherited = inherited
        self._served: set[Connection] = set()

    async def serve(self, api_server: str, *, task_status: TaskStatus[None]) -> None:
        """Listen until cancelled; started when the socket is there.

        :param api_server: which cluster it is where no other daemon of this host may have our instance.
        :raises SettingsError: if the socket cannot be made, or another daemon has it, or the instance.
        """
        inherited = self._inherited
        path = self._settings.socket if inherited is None else Path(inherited.getsockname())
        with (
            _locked(path, self._settings.socket_mode),
            held(await addresses(api_server), self._settings.namespace, self._settings.instance),
            _bound(path, self._settings.socket_mode) if inherited is None else inherited as listening,
        ):
            self.open = True
            task_status.started()
            _log.info("socket_open", path=str(path), connections=self.most)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._give_signs)
                while True:
                    await anyio.wait_readable(listening)
                    try:
                        for accepted in _accept(listening):
                            tasks.start_soon(self._handle, accepted)
                    except OSError as error:
                        if error.errno not in _PASSING:
                            raise
                        # The queue keeps who comes; without a pause this loop would only burn the CPU.
                        _log.warning("accept_failed", reason=error.strerror)
                        self._deaf()
                        await anyio.sleep(ACCEPT_PAUSE)

    async def _give_signs(self) -> None:
        while True:
            await anyio.sleep(SIGNS)
            now = anyio.current_time()
            for connection in self._served:
                connection.give_sign_if_due(now)

    async def _handle(self, accepted: socket.socket) -> None:
        self.connections += 1
        try:
            with accepted:
                connection = Connection(accepted)
                try:
                    await self._call(connection)
                finally:
                    self._served.discard(connection)
        except ClientGone:
            pass
        except Exception:  # noqa: BLE001 - one call that breaks takes no other along
            _log.exception("call_crashed")
        finally:
            self.connections -= 1

    async def _call(self, connection: Connection) -> None:
        try:
            with anyio.fail_after(self._settings.request_timeout):
                request = await self._request(connection)
        except TimeoutError:
            seconds = self._settings.request_timeout
            self._metrics.rejected("timeout")
            await self._turn_away(connection, f"the request was not complete within {seconds:g} s")
            return
        except _Full as full:
            self._metrics.rejected("connections")
            if connection.stage == "run":
                await self._knock(connection, str(full))
            await self._turn_away(connection, str(full))
            return
        except _NotAllowed as error:
            self._metrics.rejected("uid")
            for_good = True
            if connection.stage == "run":
                # If an earlier daemon has served it, its chaincode may be running, and no setting of ours ends that.
                knock = await self._knock(connection, str(error), tell=True)
                for_good = knock is not None and not knock.cursor
            await self._turn_away(connection, str(error), for_good=for_good)
            return
        except ProtocolError as error:
            self._metrics.rejected("protocol")
            await self._turn_away(connection, str(error), for_good=True)
            return
        with bound_contextvars(stage=request.stage, client_pid=request.pid, uid=connection.credentials.uid):
            code = await self._serve(request, connection)
            self._metrics.called(request.stage, code)
            with anyio.move_on_after(FAREWELL):
                await connection.exit(code)

    async def _request(self, connection: Connection) -> Request:
        await connection.read_hello()
        allowed, uid = self._settings.allowed_uids, connection.credentials.uid
        if allowed is not None and uid not in allowed:
            raise _NotAllowed(f"user id {uid} is not in FABRIC_K8S_BUILDER_ALLOWED_UIDS")
        if len(self._served) >= self.most:
            raise _Full(f"more than {self.most} connections (FABRIC_K8S_BUILDER_MAX_CONNECTIONS)")
        self._served.add(connection)
        connection.give_sign()
        return await connection.read_request()

    async def _knock(self, connection: Connection, why: str, *, tell: bool = False) -> Request | None:
        """Learn whose `run` this is before it is turned away: a chaincode whose client knocks is nobody's orphan.

        :param tell: whether a `run` that an earlier daemon has served is told why it has to come again.
        :returns: its token and cursor; None where it did not say.
        """
        request = None
        with anyio.move_on_after(self._settings.request_timeout):
            try:
                request = await connection.read_claim()
                if self._knocked(request, why) and tell and request.cursor:
                    await connection.say(cannot_continue(why))
            except ProtocolError as error:
                _log.warning("claim_unreadable", reason=str(error))
        return request

    async def _serve(self, request: Request, connection: Connection) -> int:
        category = None
        try:
            return await self._stages[request.stage](request, connection)
        except TimeoutError:
            text = f"the client did not read its answer within {CALL_TIMEOUT:g} s"
        except SettingsError as error:
            text = str(error)  # in the Go builder's words, which have nothing in front of them
        except ProtocolError as error:
            text = f"k8s-builderd refused this call: {error}"
        except BuilderError as error:
            text = f"Error {_GERUNDS[request.stage]} chaincode: {error}"
            category = error.category
        except ClientGone:
            raise
        except Exception:  # noqa: BLE001 - one call that breaks takes no other along
            _log.exception("call_crashed")
            if request.stage == "run":
                raise ClientGone from None  # it comes again: a mistake of ours ends no chaincode
            gerund = _GERUNDS[request.stage]
            text = f"Error {gerund} chaincode: internal error in k8s-builderd: see call_crashed in its log"
        _log.warning("call_failed", reason=text, category=category)
        with anyio.move_on_after(FAREWELL):
            await connection.say(text)
        return 1

    async def _turn_away(self, connection: Connection, why: str, *, for_good: bool = False) -> None:
        """Close the connection. A `run` hears nothing unless it is for good: its chaincode may be running, and an exit
        would end that; so it comes again.
        """
        _log.warning("client_turned_away", reason=why, uid=connection.credentials.uid)
        if connection.stage == "run" and not for_good:
            return
        with anyio.move_on_after(FAREWELL):
            await connection.say(f"k8s-builderd refused this call: {why}")
            await connection.exit(1)


class _Full(Exception):
    """Raised where there are as many connections as there may be."""


class _NotAllowed(ProtocolError):
    """Raised where the client's user is none that may call."""


def _limited(serve: Serve) -> Serve:
    async def limited(request: Request, connection: Connection) -> int:
        with anyio.fail_after(CALL_TIMEOUT):
            return await serve(request, connection)

    return limited


def _accept(listening: socket.socket) -> Iterator[socket.socket]:
    for _ in range(BACKLOG):
        try:
            connection, _ = listening.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        yield connection


def _descriptors() -> int:
    """Allow ourselves as many file descriptors as we may have, and return for how many connections that is enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, (hard - _DESCRIPTORS_KEPT) // _DESCRIPTORS_EACH) if hard != resource.RLIM_INFINITY else 1 << 20


@contextmanager
def _locked(path: Path, mode: int) -> Iterator[None]:
    """Hold the lock beside the socket: whoever has it may remove a socket that a dead daemon has left.

    The lock's file has the socket's mode, so that who may use the one may lock the other: a daemon that comes back as
    another user of the same group finds its predecessor's.
    """
    beside = path.with_name(path.name + ".lock")
    descriptor = _open_lock(path, beside, mode)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(f"{beside} is locked") from None
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path, beside: Path, mode: int) -> int:
    try:
        try:
            return _create_lock(beside, mode)
        except PermissionError:
            if not beside.exists():
                raise
            _remove_lock(path, beside)
        return _create_lock(beside, mode)
    except OSError as error:
        raise SettingsError(
            f"The FABRIC_K8S_BUILDER_SOCKET environment variable must name a socket in a writable directory:"
            f" {beside}: {error.strerror}"
        ) from error


def _remove_lock(path: Path, beside: Path) -> None:
    """Remove a lock that a daemon of another user made for itself alone, unless that daemon may be there still."""
    try:
        if _is_listened_on(path):
            raise _taken("a process listens on it")
        beside.unlink()
    except PermissionError as error:
        raise SettingsError(
            f"{beside} belongs to user id {beside.stat().st_uid}, and this k8s-builderd runs as {os.geteuid()}: if no"
            f" daemon of that user is running, remove it and {path}, or give this one another FABRIC_K8S_BUILDER_SOCKET"
        ) from error
    _log.info("lock_replaced", path=str(beside))


def _create_lock(beside: Path, mode: int) -> int:
    descriptor = os.open(beside, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with suppress(PermissionError):  # another user's, which may be used all the same
        os.fchmod(descriptor, mode & 0o666)
    return descriptor


def _is_listened_on(path: Path) -> bool:
    """Say whether a process has this socket open; PermissionError where that cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            return True  # its queue is full
        return True


def _taken(how: str) -> SettingsError:
    return SettingsError(
        f"Another k8s-builderd uses the socket in the FABRIC_K8S_BUILDER_SOCKET environment variable ({how}): stop it,"
        " or give this one another socket"
    )


@contextmanager
def _bound(path: Path, mode: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.setblocking(False)
        try:
            _make_room(path)
            listening.bind(os.fspath(path))
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            try:
                # Nobody can connect before listen(), so nobody can before the mode is what it is to be.
                path.chmod(mode)
                listening.listen(BACKLOG)
            except OSError as error:
                raise _unusable(path, error) from error
            yield listening
        finally:
            path.unlink(missing_ok=True)


def _unusable(path: Path, error: OSError) -> SettingsError:
    return SettingsError(
        "The FABRIC_K8S_BUILDER_SOCKET environment variable must name a socket that can be created:"
        f" {path}: {error.strerror}"
    )


def _make_room(path: Path) -> None:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise SettingsError(f"The FABRIC_K8S_BUILDER_SOCKET environment variable must name a socket; {path} is not one")
    path.unlink()
