"""The HTTP application: its routes over a service."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from threading import Event

from fastapi import FastAPI, Request, Response
from starlette.responses import FileResponse

from service.faults import FAULTS
from service.http import admin, routes, schemas
from service.http.access import KEYS, Access
from service.http.errors import HANDLERS
from service.http.metrics import Metrics
from service.http.middleware import RequestMiddleware, Worker
from service.http.writing import ENCODER
from service.service import Service

_ABOUT = (
    "What would this user want, here and now. "
    "Every answer says which version of the bundle gave it."
)
_DEADLINE = 1.0  # seconds of a short call
_ANYBODY = Access()
_PAGES = {
    "/": "page.html",
    "/docs": "page.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
}


@dataclass(frozen=True)
class AppState:
    """The state that the routes of one server share."""

    service: Service
    metrics: Metrics
    answers: Worker
    access: Access
    leaving: Event = field(default_factory=Event)  # set once the server is about to end

    async def refresh(self) -> None:
        """Take the service's own counts into the metrics; the server does so every second."""
        service = self.service
        impressions = service.impressions
        reload = service.last_reload
        gauges = {
            "waiting": self.answers.n_waiting,
            "impressions_waiting": impressions.n_waiting,
            "last_reload_timestamp_seconds": service.current.loaded_at,
        }
        if reload is not None:
            gauges["last_reload_timestamp_seconds"] = reload["time"]
            gauges["last_reload_success"] = reload["is_loaded"]

        self.metrics.refresh(gauges, impressions.n_lost, self.find_faults())

    def find_faults(self) -> dict[str, str]:
        """Name what fails in the service, and in the file of keys."""
        faults = self.service.find_faults()
        keys = self.access.keys
        if keys is not None and keys.fault is not None:
            faults[KEYS] = keys.fault
        return faults

    def close(self) -> None:
        """Finish the calls that wait, and release threads and files."""
        self.answers.close()
        self.service.close()


def make_app(service: Service, access: Access = _ANYBODY) -> FastAPI:
    """Make the application.

    Args:
        service: answers; the application closes it with its state.
        access: decides which routes there are, and who may call them.
    """
    app = FastAPI(
        title="Bascule",
        description=_ABOUT,
        version="1",
        openapi_url=None,  # it would be written anew each time
        docs_url=None,  # its page would be loaded from a network
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,  # the middleware looks at it
        generate_unique_id_function=lambda route: route.name,
        exception_handlers=HANDLERS,
    )
    metrics = Metrics(service.measure, service.beside, (*FAULTS, KEYS))
    worker = Worker(_DEADLINE)
    app.state.shared = AppState(service, metrics, worker, access)
    app.add_middleware(RequestMiddleware, metrics=metrics, worker=worker, access=access)

    app.include_router(routes.router)
    app.include_router(admin.operating)
    if not access.read_only:
        app.include_router(admin.changing)
    if access.keys is not None or access.token is not None:
        app.include_router(admin.reloading)
    for path, name in _PAGES.items():
        app.add_route(path, partial(_send_page, name), methods=["GET"])

    @cache
    def write() -> str:
        ids = service.current.catalogue.item_ids.ids
        return ENCODER.encode(schemas.describe(app.openapi(), ids))

    def document(_: Request) -> Response:
        return Response(write(), media_type="application/json")

    app.add_route("/openapi.json", document, methods=["GET"])
    return app


def _send_page(name: str, _: Request) -> Response:
    return FileResponse(Path(__file__).with_name(name))
