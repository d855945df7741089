"""What one request meets of the faults that are switched on."""

import anyio
from aiohttp import web

from k8s_builder_lab.embedded import faults, transport
from k8s_builder_lab.embedded.faults import Action, Verb
from k8s_builder_lab.embedded.objects import Resource
from k8s_builder_lab.embedded.status import ApiError, forbidden, unauthorized


class Fault:
    """What one request meets."""

    def __init__(
        self,
        request: web.Request,
        resource: Resource,
        verb: Verb,
        name: str,
        delay: float,
        action: Action | None,
    ) -> None:
        self._request = request
        self._resource = resource
        self._verb = verb
        self._name = name
        self._delay = delay
        self.action = action

    async def before(self) -> None:
        """Misbehave instead of doing the work, or do nothing."""
        await anyio.sleep(self._delay)
        match self.action:
            case faults.Status(code=401, message=""):
                raise unauthorized()
            case faults.Status(code=403, message=""):
                raise forbidden(self._verb, self._resource, *subject(self._request, self._name))
            case faults.Status(code=code, reason=reason, message=message, retry_after=retry_after):
                reason = reason or faults.REASONS.get(code, "")
                raise ApiError(code, reason, message or f"embedded fault {code}", retry_after=retry_after)
            case faults.Gone():
                raise ApiError(410, "Expired", "too old resource version: 1 (2)")
            case faults.Reset(when="before"):
                self._reset()
            case faults.Hang(when="before"):
                await anyio.sleep_forever()

    async def after(self) -> None:
        """Misbehave after the work was done, or do nothing."""
        match self.action:
            case faults.Reset(when="after"):
                self._reset()
            case faults.Hang(when="after"):
                await anyio.sleep_forever()

    def _reset(self) -> None:
        transport.reset(self._request)
        raise web.HTTPBadGateway  # nobody is there to read it


def subject(request: web.Request, name: str) -> tuple[str, str]:
    """Return the namespace and the name by which a 403 calls what a request is about."""
    # What is to be created has no name yet; a namespace is in itself.
    return request.match_info.get("namespace", name), "" if request.method == "POST" else name
