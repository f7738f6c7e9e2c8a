"""Two ends of one TCP connection: other than a socket pair's, they know of resets and counts."""

from __future__ import annotations

import socket


def make_tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends: who connected, and who accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs
