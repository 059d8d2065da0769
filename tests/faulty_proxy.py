"""A server between a client and a store that fails on purpose: every tenth request meets a fault, each kind in turn.

with FaultyProxy("http://127.0.0.1:9000") as proxy: … proxy.url … proxy.faults

Faults: `unavailable` answers 503 and passes nothing on; `slow` passes the request on and waits; `lost` passes it on and
drops the connection without an answer, so that a repeated write meets what it wrote itself; `cut` breaks off in the
middle of the answer; `dropped` drops the connection at once.
"""

import http.client
import itertools
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("unavailable", "slow", "lost", "cut", "dropped")
_OF_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "trailer", "upgrade"}


class FaultyProxy:
    """every: how many requests it takes to a fault; 1 fails all of them. url: where it listens, on the loopback."""

    def __init__(self, upstream: str, kinds: tuple[str, ...] = FAULTS, every: int = 10, slow_s: float = 1.0) -> None:
        self.upstream, self.every, self.slow_s = urlsplit(upstream), every, slow_s
        self.requests, self.faults = 0, Counter[str]()
        self._kinds = itertools.cycle(kinds)
        self._lock = threading.Lock()

    def __enter__(self) -> "FaultyProxy":
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_fault(self) -> str | None:
        """What is to go wrong with the request that has just come."""
        with self._lock:
            self.requests += 1
            if self.requests % self.every:
                return None
            fault = next(self._kinds)
            self.faults[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    proxy: FaultyProxy

    def _serve(self) -> None:
        body = self._body()
        fault = self.proxy.next_fault()
        if fault == "dropped":
            self._drop()
        elif fault == "unavailable":
            self._answer(503, [("Content-Type", "text/plain")], b"the store is busy")
        else:
            status, headers, content = self._pass_on(body)
            if fault == "slow":
                time.sleep(self.proxy.slow_s)
            if fault == "lost":
                self._drop()
            else:
                self._answer(status, headers, content, cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _serve

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        # The host stays the one that the client named: it is part of what a request is signed over.
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_HOP}
        headers["Content-Length"] = str(len(body))
        connection = http.client.HTTPConnection(self.proxy.upstream.netloc, timeout=60)
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False) -> None:
        kept = [(name, value) for name, value in headers if name.lower() not in _OF_ONE_HOP]
        if self.command != "HEAD" and status != 204:  # a HEAD says the length of what it leaves out
            kept = [(name, value) for name, value in kept if name.lower() != "content-length"]
            kept.append(("Content-Length", str(len(content))))
        self.send_response_only(status)
        for name, value in kept:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._drop()

    def _drop(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        # Not only closed: the stream objects of this handler hold the socket open until it ends.
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client went away
