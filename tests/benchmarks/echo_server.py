"""The service with one route more, that takes what `/v1/recommend` takes by the same checks and gives it back.

python tests/benchmarks/echo_server.py BUNDLE
"""

import json
import sys
from pathlib import Path
from typing import Annotated

from fastapi import Body
from starlette.responses import Response

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from serve.http.app import Ask, make_app  # noqa: E402
from serve.http.server import bind, serve  # noqa: E402
from serve.service import open_service  # noqa: E402
from serve.versions import BundleSource  # noqa: E402


async def echo(body: Annotated[Ask, Body()]) -> Response:
    return Response(json.dumps(body).encode(), media_type="application/json")


if __name__ == "__main__":
    bundle = Path(sys.argv[1])
    app = make_app(open_service(BundleSource(bundle), bundle.parent, None, None))
    app.add_api_route("/echo", echo, methods=["POST"])
    serve(app, bind("127.0.0.1", 0))
