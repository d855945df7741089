"""The operator's pod template while the daemon runs: read anew when its file changes, and tried out on the API server.

A mistake in it ends nothing: the last template that could be used stays in use.
"""

from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from k8s_builderd.backoff import delays
from k8s_builderd.fabric import manifests
from k8s_builderd.fabric.names import Token
from k8s_builderd.fabric.package import Chaincode, Image
from k8s_builderd.fabric.plan import Plan, PodSettings
from k8s_builderd.fabric.template import PodTemplate, TemplateError
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import ApiError, Invalid, Refusals
from k8s_builderd.kube.resources import JOBS
from k8s_builderd.kube.review import try_create
from k8s_builderd.settings import PEER_ID, Settings, read_pod_template

LOOK_INTERVAL = 10.0
"""Seconds between two looks at the file while nothing is launched."""

RETRY_FIRST, RETRY_CAP = 1.0, 60.0
"""Seconds between two attempts to ask an API server that does not answer."""

_log = structlog.get_logger("k8s_builderd.podtemplate")

_Signature = tuple[int, ...] | None


class Refused(Exception):
    """Raised when the API server refuses a Job for a mistake in it; its text is the API server's."""


class PodTemplates:
    """The template in use, and what is known of it."""

    def __init__(self, settings: Settings) -> None:
        """Begin with what was read at the start."""
        self._settings = settings
        self._path = settings.pod_template_file
        self._newest = self._in_use = settings.pod_template
        self._accepted: PodTemplate | None = None
        """The last one that the API server has not refused."""
        self._seen: _Signature | object = object()
        self._reading = anyio.Lock()
        self._changed = anyio.Event()
        self._mistake: str | None = None
        self._refusal: str | None = None
        self._remarks: list[str] = []

    @property
    def warning(self) -> str | None:
        """What is wrong with the newest template, or None."""
        return "; ".join(it for it in (self._mistake, self._refusal, *self._remarks) if it) or None

    async def current(self) -> PodTemplate:
        """Return the template to launch with, read anew if its file is another than at the last look."""
        if self._path is not None and _signature(self._path) != self._seen:
            async with self._reading:
                if _signature(self._path) != self._seen:
                    await self._read(self._path)
        return self._in_use

    async def watch(self, interval: float = LOOK_INTERVAL) -> None:
        """Look at the file now and then, so that a mistake is told before a launch, until cancelled."""
        while self._path is not None:
            await self.current()
            await anyio.sleep(interval)

    async def _read(self, path: Path) -> None:
        # In a thread, because YAML takes a millisecond a kilobyte.
        self._seen, found = await anyio.to_thread.run_sync(_load, path)
        if isinstance(found, str):
            if found != self._mistake:
                self._mistake = found
                _log.error("pod_template_wrong", reason=found)
            return
        self._mistake = None
        if found == self._newest:
            return
        self._newest = self._in_use = found
        self._refusal, self._remarks = None, []
        self._changed.set()
        self._changed = anyio.Event()
        _log.info("pod_template_changed", path=str(path), sections=[section.label for section in found.sections])

    # On the API server

    async def try_out(self, api: Api) -> None:
        """Ask the API server about a Job as each kind of launch would make it, at first and at each change.

        Nothing is created by it, and no launch waits for it. Goes on until cancelled.
        """
        while True:
            template, changed = self._newest, self._changed
            if template.common or template.sections or self._settings.pod != PodSettings():
                await self._try(template, api, changed)
            await changed.wait()

    async def _try(self, template: PodTemplate, api: Api, changed: anyio.Event) -> None:
        remarks: dict[str, None] = {}
        for where, plan in samples(template, self._settings):
            try:
                warnings = await _ask(api, plan, changed)
            except Refused as refused:
                if not changed.is_set():
                    self._refuse(template, f"the Kubernetes API refuses a job made with {where}: {refused}")
                return
            if warnings is None or changed.is_set():
                return
            remarks |= dict.fromkeys(f"the Kubernetes API warns of a job made with {where}: {it}" for it in warnings)
        self._accepted = template
        self._remarks = list(remarks)
        for remark in remarks:
            _log.warning("pod_template_warning", reason=remark)
        _log.info("pod_template_accepted")

    def _refuse(self, template: PodTemplate, why: str) -> None:
        if self._accepted is not None:
            self._in_use = self._accepted
            why += ". The template of before stays in use"
        self._refusal = why
        _log.error("pod_template_refused", reason=why)


def samples(template: PodTemplate, settings: Settings) -> list[tuple[str, Plan]]:
    """Return a launch for what all chaincode has in common, and one for each section; and what to call each."""
    launch = settings.for_launch({PEER_ID: "peer0"})
    common = tuple(layer for layer in (template.common,) if layer)
    found = [("the common part", common, "example")]
    found += [
        (f"{section.path} ({section.label})", template.layers(section.example), section.example)
        for section in template.sections
    ]
    plans = []
    for where, layers, label in found:
        chaincode = Chaincode(
            chaincode_id=f"{label}:{'0' * 64}",
            peer_address="peer0:7052",
            client_cert="",
            client_key="",
            root_cert="",
            mspid="Org1MSP",
        )
        image = Image("k8s-builderd/example", "sha256:" + "0" * 64)
        plans.append((where, settings.plan(launch, chaincode, image, Token("0" * 32), layers)))
    return plans


async def _ask(api: Api, plan: Plan, changed: anyio.Event) -> list[str] | None:
    """Return the API server's warnings of a Job; None if it cannot be asked, or the template has changed.

    :raises Refused: if there is a mistake in it.
    """
    pauses = delays(RETRY_FIRST, RETRY_CAP)
    refusals = Refusals()
    told = ""
    while not changed.is_set():
        try:
            return await try_create(api, JOBS, manifests.job(plan, None))
        except ApiError as error:
            if is_mistake(error):
                raise Refused(error.args[0].removeprefix(f"cannot {error.verb} {error.resource}: ")) from error
            now = anyio.current_time()
            last = refusals.last(error, now) or not (error.transient or error.may_pass)
            if told != (words := refusals.words(error, now)):
                told = words
                _log.info("pod_template_untried", reason=words)
            if last:
                return None
            with anyio.move_on_after(error.pause(next(pauses))):
                await changed.wait()
    return None


def is_mistake(error: ApiError) -> bool:
    """Say whether the API server refuses what is in a Job, and not that, or how, it is created now.

    A policy (`denied request`) or a webhook (`denied the request`) may be about the example's image or names, and a
    webhook may know no dry run at all.
    """
    words = str(error.args[0])
    elsewhere = ("denied request", "denied the request", "does not support dry run", "admission webhook")
    return isinstance(error, Invalid) and not any(it in words for it in elsewhere)


def _load(path: Path) -> tuple[_Signature, PodTemplate | str]:
    """Return what tells this state of a file from the next, and the template or what is wrong with it."""
    signature = _signature(path)  # first: a change while it is read is seen at the next look
    try:
        return signature, read_pod_template(path)
    except TemplateError as error:
        return signature, f"{path}: {error}"


def _signature(path: Path) -> _Signature:
    try:
        found = path.stat()  # of the file that links lead to: a ConfigMap changes them
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
