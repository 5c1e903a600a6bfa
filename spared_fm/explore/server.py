"""Serve the application on this machine."""

from __future__ import annotations

import socket
import threading
import webbrowser
from typing import TYPE_CHECKING

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

HOST = "127.0.0.1"
PORT = 8765


def serve(store: str | Path, *, port: int = PORT, browser: bool = True) -> None:
    """Show a store until interrupted.

    Parameters
    ----------
    store
        The store's folder or URL.
    port
        Port on 127.0.0.1; 0 takes a free one.
    browser
        Open the page.

    Raises
    ------
    InputError
        There is no store, or the port is taken.
    """
    import uvicorn

    from spared_fm.explore.app import create_app

    app = create_app(store)
    # asyncio sends small pieces at once (TCP_NODELAY) only where a socket says that it is TCP; else each answer waits 40 ms
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()  # who comes before the first request can be answered waits
    except (OSError, OverflowError) as error:
        listening.close()
        raise InputError(
            f"port {port} of {HOST} can't be had ({error}); give another --port, or 0 for a free one"
        ) from error
    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    print(f"{store} is shown at {address} (Ctrl+C ends it)", flush=True)
    if browser:
        threading.Timer(0.5, webbrowser.open, (address,)).start()
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listening])
