"""A model of the program `run`: what client/k8s_builder_client/session.py does, without a socket and a process."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio

from k8s_builder_client.reconnect import LONGEST_DELAY, LONGEST_DELAY_AT_START, Reconnect
from k8s_builderd.errors import ClientGone, ProtocolError
from k8s_builderd.fabric.plan import TICKS

if TYPE_CHECKING:
    from tests.simulation.peer import Process

CONNECT_TIMEOUT = 30.0
STOP_TIMEOUT = 2.5
BUFFER = 8
"""Frames that a connection takes while its client reads none."""

Frame = tuple[str, Any, Any]


class Connection:
    """Both ends of one connection; the daemon's methods are those of `gateway.connection.Connection`."""

    def __init__(self, client: "Client") -> None:
        self.client = client
        self.debug = False
        self.stage = "run"
        self.pid = client.number
        self.frames: deque[Frame] = deque()
        self.open = True
        """Whether the client has its end open."""
        self.served = True
        """Whether the daemon has its end open."""
        self.stop_sent = False
        self._heard: Callable[[ClientGone | ProtocolError | None], None] | None = None
        self._changed = anyio.Event()

    # The daemon's end

    async def say(self, text: str) -> None:
        await self._send(("say", text, None))

    async def say_debug(self, text: str) -> None:
        if self.debug:
            await self._send(("say", text, None))

    async def log(self, cursor: str, lines: bytes = b"") -> None:
        await self._send(("log", cursor, lines))

    async def exit(self, code: int) -> None:
        await self._send(("exit", code, None))

    def give_sign(self) -> None:
        """Tell the client that somebody is there."""
        self.frames.append(("sign", None, None))
        self.client.wake()

    def listen(self, heard: Callable[[ClientGone | ProtocolError | None], None]) -> None:
        self._heard = heard
        self._tell_word()

    def stop_listening(self) -> None:
        self._heard = None

    def _tell_word(self) -> None:
        if self._heard is not None and (self.stop_sent or not self.open):
            heard, self._heard = self._heard, None
            heard(None if self.stop_sent else ClientGone())

    async def _send(self, frame: Frame) -> None:
        await anyio.lowlevel.checkpoint()
        while self.open and len(self.frames) >= BUFFER:
            await self._changed.wait()
        if not self.open:
            raise ClientGone
        self.frames.append(frame)
        self.client.wake()

    def close(self) -> None:
        """Close the daemon's end; what was sent before still arrives."""
        self.served = False
        self.client.wake()

    # The client's end

    def take(self) -> Frame | None:
        frame = self.frames.popleft() if self.frames else None
        self._pulse()
        return frame

    def send_stop(self) -> None:
        self.stop_sent = True
        self._pulse()

    def hang_up(self) -> None:
        self.open = False
        self._pulse()

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
        self._tell_word()


class Client:
    """One `run`, from its start by a peer to its exit code."""

    def __init__(self, process: "Process", chaincode_id: str, number: int) -> None:
        self.process = process
        self.site = process.site
        self.world = process.world
        self.chaincode_id = chaincode_id
        self.number = number
        self.token = f"{self.world.random.getrandbits(128):032x}"
        self.certificate = f"certificate {number}" if self.site.tls else ""
        self.key = (chaincode_id, self.site.msp_id, self.site.address, self.site.peer_id)
        self.started_at = self.world.now
        self.started_ticks = int(self.world.now * TICKS)
        self.cursor = ""
        self.words: list[tuple[float, str]] = []
        self.lines: list[bytes] = []
        self.code: int | None = None
        self.killed = False
        self.ended_at: float | None = None
        self.frozen = False
        self.stopped_at: float | None = None
        self.asked_at: float | None = None
        """When its request has reached a daemon for the first time."""
        self.daemons: list[Any] = []
        """Those that its request has reached."""
        self.knocked_at = self.world.now
        """When it has last been connected, or has tried to be."""
        self.jobs: set[str] = set()
        """The uids of all Jobs that its cursors have named."""
        self.connection: Connection | None = None
        self.exited = anyio.Event()
        self._stop_deadline: float | None = None
        self._reconnect = Reconnect(self.world.now, CONNECT_TIMEOUT)
        self._wake = anyio.Event()
        self.world.sim.spawn(self._live)

    @property
    def alive(self) -> bool:
        return self.ended_at is None

    @property
    def knocks(self) -> float:
        """When it has last claimed its run."""
        connected = self.alive and self.connection is not None and self.connection.served
        return self.world.now if connected else self.knocked_at

    def said(self, part: str) -> bool:
        """Say whether it has been told something."""
        return any(part in text for _, text in self.words)

    def wake(self) -> None:
        self._wake.set()

    # Signals

    def terminate(self) -> None:
        """Get SIGTERM, or see the end of the peer."""
        if self.alive and self.stopped_at is None:
            self.stopped_at = self.world.now
            self.wake()

    def kill(self) -> None:
        """Get SIGKILL."""
        if self.alive:
            self.killed = True
            self._end(137)
            self.wake()

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        self.wake()

    def cut_off(self) -> None:
        """Have its connection break; it comes back."""
        self._lost()
        self.wake()

    # Its life

    async def _live(self) -> None:
        while self.alive:
            if not self.frozen:
                self._step()
            if self.alive:
                with anyio.move_on_after(self._pause()):
                    await self._wake.wait()
                self._wake = anyio.Event()

    def _step(self) -> None:
        now = self.world.now
        if self.stopped_at is not None and self._stop_deadline is None:
            self._stop(now)
        if self.alive and self.connection is None and now >= self._reconnect.retry_at:
            self._connect(now)
        self._deliver(now)
        if self.alive:
            self._keep_time(now)

    def _pause(self) -> float | None:
        if self.frozen:
            return None
        times = [self._stop_deadline] if self._stop_deadline is not None else []
        if self.connection is None:
            times.append(self._reconnect.retry_at)
            if self._stop_deadline is None:
                times.append(self._reconnect.tell_at)
                if not self.cursor:
                    times.append(self._reconnect.deadline)
        return max(min(times) - self.world.now, 0.001) if times else None

    def _stop(self, now: float) -> None:
        self._stop_deadline = now + STOP_TIMEOUT
        if self.connection is None and self.asked_at is None:
            self._say("Stopped before anything was started")
            self._end(0)
            return
        self._say("Stopping the chaincode")
        self._reconnect.retry_at = now
        if self.connection is not None:
            self.connection.send_stop()

    def _connect(self, now: float) -> None:
        daemon = self.site.daemon
        if daemon is None or not daemon.listening:
            self._reconnect.failed(now, "Connection refused", "", self._longest(), self._spread())
            return
        self.knocked_at = now
        self._reconnect.connected(now, "the daemon does not answer", "")
        self.connection = Connection(self)
        self.asked_at = now if self.asked_at is None else self.asked_at
        self.daemons.append(daemon)
        daemon.accept(self.connection)
        if self.stopped_at is not None:
            self.connection.send_stop()

    def _deliver(self, now: float) -> None:
        while self.alive and self.connection is not None:
            frame = self.connection.take()
            if frame is None:
                if not self.connection.served:
                    self._lost()
                return
            self._reconnect.end(now)
            match frame:
                case "sign", _, _:
                    pass
                case "say", text, _:
                    self._say(text)
                case "log", cursor, lines:
                    self.cursor = cursor
                    self.jobs.update(cursor.split())
                    self.lines += lines.splitlines()
                case _, code, _:
                    self._end(code)

    def _keep_time(self, now: float) -> None:
        away = self._reconnect
        if self._stop_deadline is not None:
            if now >= self._stop_deadline:
                self._say("The stop was not answered in time")
                self._end(1)
        elif self.connection is not None:
            return
        elif not self.cursor and now >= away.deadline:
            self._say("Could not reach k8s-builderd")
            self._end(1)
        else:
            away.tell(now)

    def _lost(self) -> None:
        if self.connection is not None:
            self.knocked_at = self.world.now
            self.connection.hang_up()
            self.connection = None
        self._reconnect.lost(self.world.now, "closed", "", self._longest(), self._spread())

    def _longest(self) -> float:
        if self._stop_deadline is not None:
            return 0.1
        return LONGEST_DELAY if self.cursor else LONGEST_DELAY_AT_START

    def _spread(self) -> float:
        return self.world.random.random()

    def _say(self, text: str) -> None:
        self.words.append((self.world.now, text))
        self.world.note(f"run {self.number}: {text}")

    def _end(self, code: int) -> None:
        if self.connection is not None:
            self.knocked_at = self.world.now
            self.connection.hang_up()
            self.connection = None
        self.code = code
        self.ended_at = self.world.now
        self.world.note(f"run {self.number} {'is killed' if self.killed else f'exits with {code}'}")
        self.exited.set()
        self.world.client_ended(self)
