"""`bascule demo`: train on the bundled sample, serve it, and open its page."""

from __future__ import annotations

import time
import webbrowser
from argparse import Namespace
from pathlib import Path
from socket import create_connection
from threading import Thread

_RUN = Path("runs") / "demo"
_BUNDLE = _RUN / "bundle"
_LOOK_SECONDS = 0.2  # between two looks at whether the service answers
_MAX_LOOKS = 300


def demo(options: Namespace) -> None:
    """Train unless `runs/demo` holds a bundle, and serve it until a signal comes."""
    from service.http.workers import bind

    # A port that cannot be had is named before the training.
    with bind(options.host, options.port) as (listener,):
        port = listener.getsockname()[1]

    if _BUNDLE.is_dir():
        print(f"{_RUN} holds a run, which is served; remove it to train again")
    else:
        _train(options.quick)

    print(f"the page is at http://{options.host}:{port}; Ctrl-C ends it", flush=True)
    if not options.no_browser:
        address = (options.host, port)
        Thread(target=_open_page, args=address, daemon=True).start()
    words = [f"--bundle={_BUNDLE}", f"--host={options.host}", f"--port={port}"]
    _run(["serve", *words])


def _train(is_quick: bool) -> None:
    words = ["train", f"--out={_RUN}", "--overwrite"]
    if is_quick:
        words.append("--quick")
    _run(words)


def _run(words: list[str]) -> None:
    """Run another command; its fault ends this one."""
    from bascule.commands import main

    status = main(words)
    if status:
        raise SystemExit(status)


def _open_page(host: str, port: int) -> None:
    """Open the page once the service answers."""
    for _ in range(_MAX_LOOKS):
        try:
            create_connection((host, port), timeout=1).close()
        except OSError:
            time.sleep(_LOOK_SECONDS)
            continue
        webbrowser.open(f"http://{host}:{port}/")
        return
