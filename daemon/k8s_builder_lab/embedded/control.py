"""The switches of an embedded cluster, on a port of their own so that they answer while the API does not.

All want the bearer token; bodies are JSON; what is optional may be left out.

| request | body | what it does |
| --- | --- | --- |
| `GET /embedded/state` | | see `_state` |
| `GET POST DELETE /embedded/faults` | rules | see faults.py |
| `GET PATCH /embedded/environment` | fields | see environment.py; `extraImages` are added to, the rest is replaced |
| `GET PATCH /embedded/components` | `{"kubelet": false}` | which of them are there; see below |
| `POST /embedded/outage` | `{"seconds": 5}`, `{"on": true}`, `{"on": false}` | no connections; pods live on |
| `POST /embedded/drop` | | drops the open connections |
| `POST /embedded/compact` | | every resourceVersion given so far is too old |
| `POST /embedded/restart` | `{"seconds": 0, "unauthorized": 0, "forbidden": 0.2}` | an outage, a compaction, then \
first 401 and then 403 for so many seconds |
| `POST /embedded/tokens` | `{"tokens": [...]}` | the bearer tokens that are accepted from now on; streams go on |
| `POST /embedded/rights` | `{"without": ["create jobs.batch", "* pods/log"]}` | what is missing; see rights.py |
| `POST /embedded/pods/NAMESPACE/NAME/rotate` | `{"container": ""}` | only what the log gets from now on is served |
| `POST /embedded/pods/NAMESPACE/NAME/evict` | `{"message": ""}` | the kubelet evicts the pod for want of something |

The components, each there (true) or away (false):

- `kube-controller-manager`: without it Jobs get no pods and no conditions, a deleted Job's pod and Secret stay, and
  whatever is deleted with a finalizer (propagationPolicy Orphan or Foreground, a pod that its Job has not counted)
  stays with a deletionTimestamp. It comes back as after a restart.
- `kube-scheduler`: without it new pods stay Pending, without a PodScheduled condition.
- `kubelet`: frozen. No pod starts or ends, no status is written, logs are not answered and open ones bring nothing,
  not even their end. The containers go on, also of a pod that is deleted with grace 0; what they print meanwhile comes
  once the kubelet goes on.

A drain is an Eviction through the API. A node that is lost is a frozen kubelet and a deletion with grace 0. A node
whose clock is off is `nodeClock` of the environment. A namespace is deleted by DELETE: kube-controller-manager empties
it, and it stays while that is away. `kubectl delete job --cascade=orphan` is a DELETE with
propagationPolicy Orphan.
"""

from collections.abc import Callable
from typing import Any

import anyio
import msgspec
from aiohttp import web
from anyio.abc import TaskGroup

from k8s_builder_lab.embedded.api import Api
from k8s_builder_lab.embedded.components import Components
from k8s_builder_lab.embedded.environment import Environment
from k8s_builder_lab.embedded.faults import Faults
from k8s_builder_lab.embedded.images import Image
from k8s_builder_lab.embedded.kubelet import Kubelet
from k8s_builder_lab.embedded.objects import PODS, RESOURCES
from k8s_builder_lab.embedded.rights import Rights
from k8s_builder_lab.embedded.status import ApiError
from k8s_builder_lab.embedded.store import Store
from k8s_builder_lab.embedded.transport import Listener

OUT_OF_MEMORY = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 12Ki."


class Control:
    """Serves the switches to whoever has the token."""

    def __init__(
        self,
        store: Store,
        kubelet: Kubelet,
        api: Api,
        faults: Faults,
        environment: Environment,
        components: Components,
        token: str,
    ) -> None:
        self._store = store
        self._kubelet = kubelet
        self._api = api
        self._faults = faults
        self._environment = environment
        self._components = components
        self._token = token

    def routes(self, listener: Listener, tg: TaskGroup) -> list[web.RouteDef]:
        """Return the routes; `listener` is the API's, and outages end by themselves in `tg`."""
        self._listener = listener
        self._tg = tg
        self._outage = anyio.CancelScope()
        pod = "/embedded/pods/{namespace}/{name}"
        return [
            web.get("/embedded/state", self._state),
            web.get("/embedded/faults", self._tell_faults),
            web.post("/embedded/faults", self._add_faults),
            web.delete("/embedded/faults", self._clear_faults),
            web.get("/embedded/environment", self._tell_environment),
            web.patch("/embedded/environment", self._change_environment),
            web.get("/embedded/components", self._tell_components),
            web.patch("/embedded/components", self._switch_components),
            web.post("/embedded/outage", self._switch_outage),
            web.post("/embedded/drop", self._drop),
            web.post("/embedded/compact", self._compact),
            web.post("/embedded/restart", self._restart),
            web.post("/embedded/tokens", self._set_tokens),
            web.post("/embedded/rights", self._set_rights),
            web.post(f"{pod}/rotate", self._rotate),
            web.post(f"{pod}/evict", self._evict),
        ]

    @web.middleware
    async def guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        """Want the token; turn errors into text."""
        if request.headers.get("Authorization") != f"Bearer {self._token}":
            return web.Response(status=401, text="the embedded cluster's own token is needed\n")
        try:
            response: web.StreamResponse = await handler(request)
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        except ApiError as error:
            return web.Response(status=error.code, text=f"{error}\n")
        return response

    async def _state(self, request: web.Request) -> web.Response:
        """Tell what is there.

        objects: how many of each kind; processes: ids of the containers' processes; connections: open ones to the
        API; streams: open watches and logs; requests: how many so far by verb and resource (`create jobs`);
        revision: the newest resourceVersion.
        """
        return _answer(
            {
                "objects": {resource.plural: len(self._store.everything(resource)) for resource in RESOURCES},
                "processes": self._kubelet.processes,
                "connections": self._listener.connections,
                "streams": {kind: self._api.streams[kind] for kind in ("watch", "log")},
                "requests": dict(self._api.requests),
                "revision": self._store.revision,
            }
        )

    async def _tell_faults(self, request: web.Request) -> web.Response:
        return _answer(self._faults.told())

    async def _add_faults(self, request: web.Request) -> web.Response:
        self._faults.add(await request.read())
        return _answer(self._faults.told())

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return _answer([])

    async def _tell_environment(self, request: web.Request) -> web.Response:
        return _answer(msgspec.to_builtins(self._environment))

    async def _change_environment(self, request: web.Request) -> web.Response:
        changes = await _body(request)
        wanted = msgspec.convert(msgspec.to_builtins(self._environment) | changes, Environment)
        wanted.extra_images = {
            **self._environment.extra_images,
            **msgspec.convert(changes.get("extraImages") or {}, dict[str, Image]),
        }
        for field in self._environment.__struct_fields__:
            setattr(self._environment, field, getattr(wanted, field))
        return _answer(msgspec.to_builtins(self._environment))

    async def _tell_components(self, request: web.Request) -> web.Response:
        return _answer(self._components.up)

    async def _switch_components(self, request: web.Request) -> web.Response:
        await self._components.switch(await _body(request))
        return _answer(self._components.up)

    async def _switch_outage(self, request: web.Request) -> web.Response:
        body = await _body(request)
        if body.get("on") is False:
            self._outage.cancel()
            await self._listener.open()
        else:
            await self._listener.refuse()
            if "seconds" in body:
                self._end_outage_in(float(body["seconds"]))
        return _answer({})

    def _end_outage_in(self, seconds: float) -> None:
        async def end(scope: anyio.CancelScope) -> None:
            with scope:
                await anyio.sleep(seconds)
                await self._listener.open()

        self._outage.cancel()
        self._outage = anyio.CancelScope()
        self._tg.start_soon(end, self._outage)

    async def _drop(self, request: web.Request) -> web.Response:
        self._listener.drop()
        return _answer({})

    async def _compact(self, request: web.Request) -> web.Response:
        self._store.compact()
        return _answer({})

    async def _restart(self, request: web.Request) -> web.Response:
        body = await _body(request)
        seconds = float(body.get("seconds", 0))
        await self._listener.refuse()
        self._store.compact()
        self._api.unauthorized_until = anyio.current_time() + seconds + float(body.get("unauthorized", 0))
        self._api.forbidden_until = self._api.unauthorized_until + float(body.get("forbidden", 0.2))
        self._end_outage_in(seconds)
        return _answer({})

    async def _set_tokens(self, request: web.Request) -> web.Response:
        self._api.tokens = set(msgspec.convert((await _body(request)).get("tokens"), list[str]))
        return _answer({})

    async def _set_rights(self, request: web.Request) -> web.Response:
        self._api.rights = msgspec.convert(await _body(request), Rights)
        return _answer(msgspec.to_builtins(self._api.rights))

    async def _rotate(self, request: web.Request) -> web.Response:
        log = await self._kubelet.log(self._pod(request), (await _body(request)).get("container", ""))
        if log is not None:
            log.rotate()
        return _answer({})

    async def _evict(self, request: web.Request) -> web.Response:
        message = (await _body(request)).get("message") or OUT_OF_MEMORY
        self._kubelet.pod(self._pod(request)).evict(message)
        return _answer({})

    def _pod(self, request: web.Request) -> dict[str, Any]:
        return self._store.get(PODS, request.match_info["namespace"], request.match_info["name"])


async def _body(request: web.Request) -> dict[str, Any]:
    data = await request.read()
    return msgspec.json.decode(data, type=dict[str, Any]) if data else {}


def _answer(body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
