"""The service with one route more, that takes what `/v1/recommend` takes by the same checks and gives it back.

python tests/benchmarks/echo_server.py BUNDLE
"""

import json
import sys
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Body
from starlette.responses import Response

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from serve.http.command import places_of_bundle  # noqa: E402
from serve.http.listening import listen  # noqa: E402
from serve.http.server import serve  # noqa: E402
from serve.http.strict_route import StrictRoute  # noqa: E402

from serve.http.app import make_parts  # noqa: E402
from serve.http.schemas import Ask, Limits
from serve.service import Service  # noqa: E402

ECHO = APIRouter(route_class=StrictRoute)


@ECHO.post("/echo")
async def echo(body: Annotated[Ask, Body()]) -> Response:
    return Response(json.dumps(body).encode(), media_type="application/json")


if __name__ == "__main__":
    places = places_of_bundle(Path(sys.argv[1]), None, None)
    service = Service(places.source, places.state, places.runs)
    serve(make_parts(service, Limits()), listen("127.0.0.1", 0), [ECHO])
