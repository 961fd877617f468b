import socket

import pytest

from rayembed.common.errors import ResourceError
from rayembed.serving.deploy import check_port


def test_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"port {port} on 127.0.0.1 is in use; .* --port"):
            check_port("127.0.0.1", port)
