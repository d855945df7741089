"""The Kubernetes API over HTTP: routes, verbs, Status bodies. Decides nothing that the store decides."""

import hmac
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import formatdate

import anyio
import msgspec
from aiohttp import web

from k8s_builder_lab.embedded import (
    admission,
    asked,
    faults,
    fields,
    newevents,
    podstatus,
    selectors,
    streams,
    surroundings,
    validation,
)
from k8s_builder_lab.embedded.environment import Environment
from k8s_builder_lab.embedded.fault import Fault, subject
from k8s_builder_lab.embedded.faults import Action, Faults, Verb
from k8s_builder_lab.embedded.kubelet import Kubelet
from k8s_builder_lab.embedded.logs import Reader
from k8s_builder_lab.embedded.node import Node
from k8s_builder_lab.embedded.objects import (
    ACCESS_REVIEWS,
    JOBS,
    NAMESPACES,
    NEW_EVENTS,
    PODS,
    RESOURCES,
    RULES_REVIEWS,
    SUBJECT_REVIEWS,
    Object,
    Resource,
    seconds,
)
from k8s_builder_lab.embedded.rights import Rights, asked_for
from k8s_builder_lab.embedded.status import (
    USER,
    ApiError,
    forbidden,
    method_not_allowed,
    not_found,
    refused_by_admission,
    success,
    too_large_version,
    unauthorized,
    unsupported,
    unsupported_media_type,
)
from k8s_builder_lab.embedded.store import Store
from k8s_builder_lab.embedded.surroundings import READ_ONLY

BODY_LIMIT = 3 * 1024 * 1024
"""The largest request, as by a real API server."""

VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.2+embedded",
    "gitCommit": "",
    "gitTreeState": "",
    "buildDate": "",
    "goVersion": "",
    "compiler": "",
    "platform": "",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """Serves the store and the kubelet's logs to whoever has the token."""

    def __init__(
        self,
        store: Store,
        kubelet: Kubelet,
        node: Node,
        fault_rules: Faults,
        token: str,
        bookmarks: float,
        environment: Environment,
    ) -> None:
        self._store = store
        self._node = node
        self._kubelet = kubelet
        self._faults = fault_rules
        self._bookmarks = bookmarks
        self._environment = environment
        self.tokens = {token}
        self.rights = Rights()
        self.unauthorized_until = 0.0
        self.forbidden_until = 0.0
        self.requests: Counter[str] = Counter()
        self.streams: Counter[str] = Counter()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the API."""
        found = [
            web.get("/version", self._open(VERSION)),
            web.get("/readyz", self._health),
            web.get("/livez", self._health),
            web.get("/healthz", self._health),
            web.post(f"{ACCESS_REVIEWS.path}/{ACCESS_REVIEWS.plural}", self._access_review),
            web.post(f"{RULES_REVIEWS.path}/{RULES_REVIEWS.plural}", self._rules_review),
            web.post(f"{SUBJECT_REVIEWS.path}/{SUBJECT_REVIEWS.plural}", self._handler(SUBJECT_REVIEWS, self._who)),
            web.post("/api/v1/namespaces", self._handler(NAMESPACES, self._create_namespace)),
            web.get("/api/v1/namespaces/{name}", self._handler(NAMESPACES, self._get), allow_head=False),
            web.patch("/api/v1/namespaces/{name}", self._handler(NAMESPACES, self._patch)),
            web.delete("/api/v1/namespaces/{name}", self._handler(NAMESPACES, self._delete_namespace)),
        ]
        for resource in RESOURCES:
            path = f"{resource.path}/namespaces/{{namespace}}/{resource.plural}"
            found += [
                web.get(path, self._handler(resource, self._list_or_watch), allow_head=False),
                web.post(path, self._handler(resource, self._create)),
                web.get(f"{path}/{{name}}", self._handler(resource, self._get), allow_head=False),
                web.delete(f"{path}/{{name}}", self._handler(resource, self._delete)),
                web.patch(f"{path}/{{name}}", self._handler(resource, self._patch)),
                web.patch(f"{path}/{{name}}/status", self._handler(resource, self._patch)),
            ]
        for resource in READ_ONLY:
            path = f"{resource.path}{'/namespaces/{namespace}' if resource.namespaced else ''}/{resource.plural}"
            found += [
                web.get(path, self._handler(resource, self._list_around), allow_head=False),
                web.get(f"{path}/{{name}}", self._handler(resource, self._get_around), allow_head=False),
            ]
        pod = f"{PODS.path}/namespaces/{{namespace}}/pods/{{name}}"
        events = f"{NEW_EVENTS.path}/namespaces/{{namespace}}/events"
        return [
            *found,
            web.post(events, self._handler(NEW_EVENTS, self._create_event)),
            web.get(f"{events}/{{name}}", self._handler(NEW_EVENTS, self._get_event), allow_head=False),
            web.patch(f"{events}/{{name}}", self._handler(NEW_EVENTS, self._patch_event)),
            web.get(f"{pod}/log", self._handler(PODS, self._log), allow_head=False),
            web.post(f"{pod}/eviction", self._handler(PODS, self._evict)),
        ]

    # Around every request

    @web.middleware
    async def translate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn errors into Status bodies, and have the answer say what time it is."""
        response = await self._translated(request, handler)
        if not response.prepared:
            response.headers["Date"] = formatdate(time.time() + self._environment.api_clock, usegmt=True)
        return response

    async def _translated(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            return _refuse(error)
        except web.HTTPMethodNotAllowed:
            return _refuse(method_not_allowed())
        except web.HTTPNotFound:
            return _refuse(ApiError(404, "NotFound", "the server could not find the requested resource", {}))
        except web.HTTPRequestEntityTooLarge:
            return _refuse(ApiError(413, "RequestEntityTooLarge", f"limit is {BODY_LIMIT}"))

    def _authenticate(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not any(
            hmac.compare_digest(token.encode(), known.encode()) for known in self.tokens
        ):
            raise unauthorized()

    def _open(self, body: Object) -> Handler:
        """Return what serves everybody but those who show a token that is not known."""

        async def handle(request: web.Request) -> web.StreamResponse:
            if "Authorization" in request.headers:
                self._authenticate(request)
            return _answer(body)

        return handle

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    async def _access_review(self, request: web.Request) -> web.StreamResponse:
        spec = await self._asked_in_review(request, ACCESS_REVIEWS)
        told = {name: {key: it for key, it in attributes.items() if it} for name, attributes in spec.items()}
        return _reviewed(ACCESS_REVIEWS, told, self.rights.access_review(spec))

    async def _who(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        user = {"username": USER, "groups": ["system:authenticated"]}
        kind = {"kind": resource.kind, "apiVersion": resource.api_version}
        return _answer({**kind, "metadata": {}, "status": {"userInfo": user}}, 201)

    async def _rules_review(self, request: web.Request) -> web.StreamResponse:
        await self._asked_in_review(request, RULES_REVIEWS)
        return _reviewed(RULES_REVIEWS, {}, self.rights.rules_review())

    async def _asked_in_review(self, request: web.Request, resource: Resource) -> Object:
        """Return the `spec` of a review."""
        self._authenticate(request)
        self.requests[f"create {resource.plural}"] += 1
        if anyio.current_time() < self.unauthorized_until:
            raise unauthorized()
        if not self._may("create", resource):
            raise forbidden("create", resource, "", "")
        return (await asked.body(request)).get("spec") or {}

    def _handler(
        self, resource: Resource, work: Callable[[web.Request, Resource, Fault], Awaitable[web.StreamResponse]]
    ) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            self._authenticate(request)
            verb = asked.verb(request)
            name = await asked.name(request)
            self.requests[f"{verb} {resource.qualified if resource is NEW_EVENTS else resource.plural}"] += 1
            if anyio.current_time() < self.unauthorized_until:
                raise unauthorized()
            if anyio.current_time() < self.forbidden_until or not self._may(verb, resource):
                raise forbidden(verb, resource, *subject(request, name))
            fault = Fault(request, resource, verb, name, *self._faults.take(verb, resource.plural, name))
            await fault.before()
            response = await work(request, resource, fault)
            await fault.after()
            return response

        return handle

    def _may(self, verb: Verb, resource: Resource) -> bool:
        right, plural = asked_for(verb, resource)
        return self.rights.allow(right, f"{plural}.{resource.group}" if resource.group else plural)

    # The verbs

    async def _get(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        found = self._store.get(resource, *asked.key(request))
        return _answer(_metadata_of(found) if asked.only_metadata(request) else found)

    async def _create(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        body = await asked.body(request)
        namespace, dry_run = request.match_info["namespace"], asked.dry_run(request)
        fields.check(resource, body, strict=request.query.get("fieldValidation") == "Strict")
        if resource is PODS:
            pod = self._store.create(resource, namespace, body, dry_run=True)
            if why := admission.refusal(self._store, self._environment, namespace, pod):
                raise refused_by_admission(resource, pod["metadata"]["name"], why)
        created = self._store.create(resource, namespace, body, dry_run=dry_run)
        response = _answer(created, 201)
        if resource is JOBS:
            for warning in admission.warnings(self._store, namespace, created):
                quoted = warning.replace("\\", "\\\\").replace('"', '\\"')
                response.headers.add("Warning", f'299 - "{quoted}"')
        return response

    async def _get_around(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        name = request.match_info["name"]
        for found in self._around(request, resource):
            if found["metadata"]["name"] == name:
                return _answer(_metadata_of(found) if asked.only_metadata(request) else found)
        raise not_found(resource, name)

    async def _list_around(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        if asked.is_watch(request):
            raise unsupported(f"a watch of {resource.plural}")
        query = request.query
        matches = selectors.parse(resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        found = [obj for obj in self._around(request, resource) if matches(obj)]
        return _answer(_list(resource, found, self._store.revision, only_metadata=asked.only_metadata(request)))

    def _around(self, request: web.Request, resource: Resource) -> list[Object]:
        return surroundings.every(resource, self._store, self._environment, request.match_info.get("namespace", ""))

    async def _delete(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        options = await asked.deletion(request, resource)
        namespace, name = asked.key(request)
        deleted = self._store.delete(
            resource, namespace, name, grace=options.grace, uid=options.uid, finalizer=options.finalizer
        )
        if resource is PODS or self._store.find(resource, namespace, name, deleted["metadata"]["uid"]) is not None:
            return _answer(deleted)
        return _answer(success(resource, name, deleted["metadata"]["uid"]))

    async def _create_namespace(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        return _answer(self._store.create_namespace(await asked.name(request)), 201)

    async def _delete_namespace(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        return _answer(self._store.delete_namespace(request.match_info["name"]))

    async def _patch(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        patch = await _merge_patch(request)
        namespace, name = asked.key(request)
        status = request.path.endswith("/status")
        before = self._store.get(resource, namespace, name)

        def change(obj: Object) -> None:
            merged = asked.merge(
                obj, {"status": patch.get("status")} if status else {**patch, "status": obj.get("status")}
            )
            kept = {"name", "namespace", "uid", "resourceVersion", "creationTimestamp"} & before["metadata"].keys()
            merged["metadata"] |= {field: before["metadata"][field] for field in kept}
            validation.check_replacement(resource, before, merged)
            obj.clear()
            obj.update({key: value for key, value in merged.items() if value is not None})

        changed = self._store.update(resource, namespace, name, change)
        assert changed is not None
        return _answer(changed)

    async def _create_event(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        body = await asked.body(request)
        return _answer(newevents.create(self._store, request.match_info["namespace"], body), 201)

    async def _get_event(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        return _answer(newevents.get(self._store, *asked.key(request)))

    async def _patch_event(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        return _answer(newevents.patch(self._store, *asked.key(request), await _merge_patch(request)))

    async def _evict(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        options = (await asked.body(request)).get("deleteOptions") or {}
        namespace, name = asked.key(request)
        self._store.get(PODS, namespace, name)
        self._store.update(
            PODS,
            namespace,
            name,
            lambda pod: podstatus.disrupted(pod, "EvictionByEvictionAPI", "Eviction API: evicting", seconds()),
        )
        self._store.delete(PODS, namespace, name, grace=options.get("gracePeriodSeconds"))
        return _answer({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)

    async def _list_or_watch(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        matches = selectors.parse(
            resource, request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
        )
        if asked.is_watch(request):
            self.streams["watch"] += 1
            try:
                return await self._watch(request, resource, matches, fault.action)
            finally:
                self.streams["watch"] -= 1
        version = request.query.get("resourceVersion", "")
        if version not in {"", "0"}:
            wanted = asked.revision(version)
            if wanted > self._store.revision:
                raise too_large_version(wanted, self._store.revision)
            if request.query.get("resourceVersionMatch") == "Exact" and wanted != self._store.revision:
                self._store.changes(wanted)  # refused if it is forgotten
                raise unsupported("a list at a past resourceVersion")
        objects = self._store.select(resource, request.match_info["namespace"], matches)
        return _answer(_list(resource, objects, self._store.revision, only_metadata=asked.only_metadata(request)))

    async def _watch(
        self, request: web.Request, resource: Resource, matches: selectors.Matches, action: Action | None
    ) -> web.StreamResponse:
        namespace = request.match_info["namespace"]
        bookmarks = asked.flag(request, "allowWatchBookmarks")
        version = request.query.get("resourceVersion", "")
        since = self._store.revision if version in {"", "0"} else asked.revision(version)
        if since > self._store.revision:  # a watch from the future is silent until it comes, as measured
            bookmarks = False
        watch = streams.Watch(
            request,
            resource,
            namespace,
            matches,
            action,
            bookmark_interval=self._bookmarks if bookmarks else None,
        )
        timeout = float(request.query.get("timeoutSeconds", 0)) or streams.default_timeout()
        with self._store.subscribe(streams.BUFFER) as changes:
            if version in {"", "0"}:
                first = self._store.select(resource, namespace, matches)
                return await watch.send(first, [], changes, since, timeout)
            try:
                old = self._store.changes(since)
            except ApiError as error:
                return streams.refused(error.body)
            if isinstance(action, faults.Replay):
                old = self._store.before(since, action.events) + old
            return await watch.send([], old, changes, max(since, self._store.revision), timeout)

    async def _log(self, request: web.Request, resource: Resource, fault: Fault) -> web.StreamResponse:
        query = request.query
        for option in ("tailLines", "limitBytes", "stream", "previous"):
            if query.get(option, "false").lower() not in {"false", "", "0", "all"}:
                raise unsupported(f"the log option {option}")
        pod = self._store.get(PODS, *asked.key(request))
        since = asked.since(request, self._node.now())
        log = await self._kubelet.log(pod, query.get("container", ""))
        if log is None:
            return web.Response(status=204)
        reader = Reader(
            log, since=since, timestamps=asked.flag(request, "timestamps"), follow=asked.flag(request, "follow")
        )
        self.streams["log"] += 1
        try:
            return await streams.send_log(request, reader, fault.action, self._node.gate)
        finally:
            self.streams["log"] -= 1
            reader.close()


async def _merge_patch(request: web.Request) -> Object:
    if request.content_type != "application/merge-patch+json":
        raise unsupported_media_type(request.content_type)
    return await asked.body(request)


def _metadata_of(obj: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def _list(resource: Resource, objects: list[Object], revision: int, *, only_metadata: bool) -> Object:
    kind, version = f"{resource.kind}List", resource.api_version
    items = [{key: value for key, value in obj.items() if key not in {"kind", "apiVersion"}} for obj in objects]
    if only_metadata:
        kind, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
        items = [{"metadata": item["metadata"]} for item in items]
    return {"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": str(revision)}, "items": items}


def _reviewed(resource: Resource, spec: Object, status: Object) -> web.Response:
    kind = {"kind": resource.kind, "apiVersion": resource.api_version}
    return _answer({**kind, "metadata": {}, "spec": spec, "status": status}, 201)


def _answer(body: Object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def _refuse(error: ApiError) -> web.Response:
    response = _answer(error.body, error.code)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response
