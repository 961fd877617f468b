"""A local S3 server."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

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
