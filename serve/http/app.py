"""The application: routes, errors and the edge around them, with no state but what it is given."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import HTTPException, RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from serve.errors import BundleError, SchemaError
from serve.http.asking import make_asking
from serve.http.changing import make_changing
from serve.http.crowd import Crowd
from serve.http.edge import Edge
from serve.http.faults import (
    answer_bug,
    answer_damage,
    answer_disk_fault,
    answer_fault,
    answer_invalid,
    answer_overload,
    answer_schema_error,
)
from serve.http.limits import Limits
from serve.http.metrics import Metrics
from serve.http.operating import make_operating
from serve.http.page import make_page
from serve.http.parts import Parts
from serve.http.worker import OverloadError, Worker
from serve.service import Service

_ABOUT = "What would this user want, here and now. Every answer says which version of the bundle gave it."


def make_parts(service: Service, limits: Limits) -> Parts:
    """Make what the routes share; its threads run until they are closed."""
    answering = Worker("bascule-answers", limits.waiting, limits.deadline)
    names = ("bascule-events", "bascule-items", "bascule-forgets")
    telling, stocking, forgetting = (Worker(name, limits.write_waiting, limits.write_deadline) for name in names)
    return Parts(service, limits, Metrics(), answering, telling, stocking, forgetting, Crowd(limits))


def make_app(parts: Parts, more: Sequence[APIRouter] = ()) -> Edge:
    """Put the application together; `more` are routes beside our own."""
    api = FastAPI(
        title="Bascule",
        description=_ABOUT,
        version="1",
        docs_url=None,  # its page would be loaded from a network
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            HTTPException: answer_fault,
            StarletteHTTPException: answer_fault,
            RequestValidationError: answer_invalid,
            SchemaError: answer_schema_error,
            OverloadError: answer_overload,
            OSError: answer_disk_fault,
            BundleError: answer_damage,
            Exception: answer_bug,
        },
    )
    routers = (make_asking(parts), make_changing(parts), make_operating(parts), make_page(), *more)
    api.state.routes = [*api.routes, *(route for router in routers for route in router.routes)]  # api's: /openapi.json
    for router in routers:
        api.include_router(router)
    return Edge(api, parts)
