"""The server of `tubecell demo`: one process, one address, and files that go with it."""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from train.demos.shown_models import ShownModels

GOODBYE = 3  # seconds that open pages have to end when it is stopped
# a browser lets nothing on the page reach another machine, and no other page frame it
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'self'"
)
# before Gradio is imported, which reads them
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


def listening(host: str, port: int) -> socket.socket:
    """Port 0: any that is free. Raises ValueError for an address that cannot be had."""
    if not 0 <= port < 1 << 16:
        raise ValueError(f"--port {port} must be from 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port} cannot be listened on: {error.strerror}; give another") from None


@contextmanager
def temporary_uploads() -> Iterator[Path]:
    """Where uploads lie until the server ends; then the folder is removed, whatever ends it but SIGKILL."""
    with tempfile.TemporaryDirectory(prefix="tubecell-demo-", ignore_cleanup_errors=True) as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def serve(listener: socket.socket, shown: ShownModels, clips: Sequence[Path], longest: float, ready: str) -> None:
    """Prints `ready` and answers, until Ctrl-C, SIGTERM, or a terminal that closes."""
    os.environ.update(QUIET)
    import uvicorn
    from fastapi import FastAPI

    from train.demos.page import mounted, page

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(ready, flush=True)

    for number in (signal.SIGTERM, signal.SIGHUP):  # which would end the process with the uploads on the disk
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: sys.exit(0))
    with suppress(KeyboardInterrupt), temporary_uploads():
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        application = guarded(mounted(app, page(shown, clips, longest)))
        config = uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=GOODBYE)
        Server(config).run(sockets=[listener])


def guarded(app: Any) -> Any:
    """An ASGI application whose answers carry the policy."""

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", ()), *policy]}
            await send(message)

        await app(scope, receive, answer)

    return guard
