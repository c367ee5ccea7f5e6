"""A local S3 server (moto, real HTTP) behind a proxy of ours that counts requests and makes them fail on demand."""

import http.client
import logging
import socket
import struct
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

BUCKET = "bucket"
CODES = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "403": (403, "AccessDenied"),
    "404": (404, "NoSuchKey"),
    "expired": (400, "ExpiredToken"),
    "invalid-token": (400, "InvalidToken"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "no-bucket": (404, "NoSuchBucket"),
}
FAULTS = (*CODES, "reset", "reset-in-body", "truncate", "hang", "slow", "wrong-bytes", "garbage")


class Get(NamedTuple):
    """One request for (a part of) an object, as it came."""

    path: str  # /bucket/key
    range: str  # the header, "bytes=0-99"
    sent: int  # bytes of the body


class S3Server:
    """`url` is what AWS_ENDPOINT_URL should be; `gets` are the requests since `clear`."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request otherwise
        self._moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._moto.start()
        self.moto_port = self._moto.get_host_and_port()[1]
        self.gets: list[Get] = []
        self.writes = 0  # PUT, POST and DELETE
        self.latency = 0.0  # seconds before every answer
        self._faults: deque[str] = deque()
        self._writing_faults: deque[str] = deque()
        self._always: Callable[[Get], str | None] = lambda get: None
        self._everywhere: str | None = None
        self._proxy = _Proxy(("127.0.0.1", 0), _Handler)
        self._proxy.owner = self
        self.url = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        self._released = threading.Event()  # ends the hanging answers
        threading.Thread(target=self._proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def inject(self, fault: str, times: int = 1, writing: bool = False) -> None:
        """The next GETs (or PUTs and POSTs) fail so."""
        assert fault in FAULTS
        (self._writing_faults if writing else self._faults).extend([fault] * times)

    def inject_always(self, choose: Callable[[Get], str | None]) -> None:
        """Every GET fails as `choose` says, or not where that is None; until `clear`."""
        self._always = choose

    def inject_everywhere(self, fault: str | None) -> None:
        """Every request of any kind fails so, or none any more; until `clear`."""
        assert fault is None or fault in FAULTS
        self._everywhere = fault

    def empty(self) -> None:
        """No object is left in the bucket."""
        from pipeline.storage import files

        for name in files.listed(f"s3://{BUCKET}"):
            files.remove(f"s3://{BUCKET}/{name}")

    def clear(self) -> None:
        self._released.set()
        self._released = threading.Event()
        self._faults.clear()
        self._writing_faults.clear()
        self._always = lambda get: None
        self._everywhere = None
        self.latency = 0.0
        self.writes = 0
        self.gets.clear()

    def close(self) -> None:
        self.clear()
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()
        if self._moto._server is not None:
            self._moto._server.server_close()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    owner: S3Server

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def log_message(self, *arguments: object) -> None:
        pass

    def _forward(self) -> None:
        owner = self.server.owner
        body = self._body()
        connection = http.client.HTTPConnection("127.0.0.1", owner.moto_port, timeout=30)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "connection")}
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        fault = None
        if self.command == "GET":
            get = Get(self.path.partition("?")[0], self.headers.get("Range", ""), len(data))
            owner.gets.append(get)
            fault = owner._always(get) or (owner._faults.popleft() if owner._faults else None)
        elif self.command != "HEAD":
            owner.writes += 1
            fault = owner._writing_faults.popleft() if owner._writing_faults else None
        if owner.latency:
            time.sleep(owner.latency)
        self._answer(answer, data, owner._everywhere or fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(parts)

    def _answer(self, answer: http.client.HTTPResponse, data: bytes, fault: str | None) -> None:
        released = self.server.owner._released
        status, length = answer.status, len(data)
        if fault in CODES:
            status, code = CODES[fault]
            data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            length = len(data)
        elif fault == "reset":
            self._reset()
            return
        elif fault == "hang":
            released.wait(60)
            self._reset()
            return
        elif fault == "garbage":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            self.close_connection = True
            return
        elif fault == "wrong-bytes":
            data = bytes(255 - byte for byte in data)
        self.send_response(status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        if self.command == "HEAD" and fault not in CODES:
            length = int(answer.getheader("Content-Length") or 0)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("truncate", "reset-in-body"):
            self.wfile.write(data[: length // 2])
            self.wfile.flush()
            self.close_connection = True
            if fault == "reset-in-body":
                self._reset()
        elif fault == "slow":  # about a second for 20 pieces, unless the client leaves
            for start in range(0, length, length // 20 + 1):
                self.wfile.write(data[start : start + length // 20 + 1])
                self.wfile.flush()
                if released.wait(0.05):
                    break
        else:
            self.wfile.write(data)

    def _reset(self) -> None:
        """Close with a TCP reset instead of an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


@pytest.fixture(scope="session")
def s3_session() -> Iterator[S3Server]:
    """The server, with the process's environment pointing at it: sidecars inherit that."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import fsspec.asyn

    from pipeline.storage import remote

    with pytest.MonkeyPatch.context() as environment:
        server = S3Server()
        environment.setenv("AWS_ENDPOINT_URL", server.url)
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        remote.forget_connections()
        files = remote.filesystem("s3://")
        with warnings.catch_warnings():
            files.mkdir(BUCKET)
        yield server
        remote.forget_connections()
        fsspec.asyn.reset_lock()
        server.close()


@pytest.fixture
def s3(s3_session: S3Server) -> Iterator[S3Server]:
    """The server without faults and with its counts at zero."""
    s3_session.clear()
    yield s3_session
    s3_session.clear()
