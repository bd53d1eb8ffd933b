"""`bascule demo`: train on a bundled sample, serve it, and open its page."""

from __future__ import annotations

import time
import webbrowser
from argparse import Namespace
from pathlib import Path
from socket import create_connection
from threading import Thread

_LOOK_SECONDS = 0.2  # between two looks at whether the service answers


def demo(options: Namespace) -> None:
    """Train unless the run of the sample holds a bundle, and serve it until a signal comes."""
    from service.http.workers import bind

    # A port that cannot be had is named before the training.
    with bind(options.host, options.port) as (listener,):
        port = listener.getsockname()[1]

    run = Path("runs", options.sample or "demo")
    bundle = run / "bundle"
    if bundle.is_dir():
        print(f"{run} holds a run, which is served; remove it to train again")
    else:
        sample = [f"--sample={options.sample}"] if options.sample else []
        quick = ["--quick"] if options.quick else []
        _run(["train", f"--out={run}", "--overwrite", *sample, *quick])

    host = options.host
    print(f"the page is at http://{host}:{port}; Ctrl-C ends it", flush=True)
    if not options.no_browser:
        Thread(target=_open_page, args=(host, port), daemon=True).start()
    address = [f"--host={host}", f"--port={port}"]
    _run(["serve", f"--bundle={bundle}", *address, "--insecure"])  # of public data


def _run(words: list[str]) -> None:
    """Run another command; its fault ends this one."""
    from bascule.commands import main

    status = main(words)
    if status:
        raise SystemExit(status)


def _open_page(host: str, port: int) -> None:
    """Open the page once the service answers."""
    while True:
        try:
            create_connection((host, port), timeout=1).close()
            break
        except OSError:
            time.sleep(_LOOK_SECONDS)

    webbrowser.open(f"http://{host}:{port}/")
