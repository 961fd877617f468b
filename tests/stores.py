"""A local S3 server, and a proxy in front of it that makes requests go wrong."""

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from pyarrow import fs


@dataclass(frozen=True)
class Server:
    """Where the server listens."""

    address: str

    @property
    def variables(self) -> dict[str, str]:
        """What processes need in their environment; the server knows no checksums behind a body."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.address}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "some",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def uri(self, location: str) -> str:
        """URI of a location in the server, for processes without those variables."""
        options = f"endpoint_override={self.address}&scheme=http&region=us-east-1"
        return f"s3://some:secret@{location}?{options}&allow_bucket_creation=true"

    def open(self, location: str) -> tuple[fs.FileSystem, str]:
        """Filesystem and path; the bucket is made."""
        filesystem, path = fs.FileSystem.from_uri(self.uri(location))
        filesystem.create_dir(path.split("/")[0])
        return filesystem, path


@contextlib.contextmanager
def s3_server() -> Iterator[Server]:
    """The server, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, "the server ended"
            time.sleep(0.1)
        yield Server(f"127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


Fault = Literal["refuse", "cut", "lose", "hold"]


@dataclass(frozen=True)
class FaultyServer(Server):
    """A server that passes requests on to another one, or not.

    Attributes:
        seen: method and path of a request -> how often it came.
        held: is set when a request is held.
    """

    seen: Counter[str] = field(default_factory=Counter)
    held: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def faulty_server(behind: Server, fault: Callable[[str, int], Fault | None]) -> Iterator[FaultyServer]:
    """A proxy whose requests are slow, and go wrong as `fault` says.

    Args:
        behind: the server that has the files.
        fault: "PUT /bucket/file?query" and its number among equal ones, from 1 -> what is done to it:
            refuse: status 503; cut: half the answer; lose: done, but no answer; hold: neither, until the end.
    """
    ended = threading.Event()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def pass_on(self) -> None:
            body = b"".join(self.body())
            request = f"{self.command} {self.path}"
            server.seen[request] += 1
            kind = fault(request, server.seen[request])
            time.sleep(0.01)
            if kind == "hold":
                server.held.set()
                ended.wait()
                self.close_connection = True
                return
            if kind == "refuse":
                content = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
                return self.answer(503, [("Content-Type", "application/xml")], content)
            connection = http.client.HTTPConnection(behind.address)
            left_out = ("transfer-encoding", "content-length", "expect")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            content = response.read()
            connection.close()
            if kind == "lose":
                self.close_connection = True
                return
            self.answer(response.status, response.getheaders(), content, cut=kind == "cut")

        def body(self) -> Iterator[bytes]:
            if self.headers.get("Transfer-Encoding") != "chunked":
                yield self.rfile.read(int(self.headers.get("Content-Length", 0)))
                return
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def answer(
            self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = (
                dict(headers).get("Content-Length", len(content)) if self.command == "HEAD" else len(content)
            )
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = cut

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server = FaultyServer(f"127.0.0.1:{proxy.server_address[1]}")
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        ended.set()
        proxy.shutdown()
        proxy.server_close()
