"""Where a server writes and listens: its folders, their disk, local sockets, the port."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from typing import TYPE_CHECKING

from engine.transport.sockets import ClientSockets
from service.doctor.finding import Finding, fix, ok, warning
from service.doctor.machine import gb

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCARCE_DISK_BYTES = 5_000_000_000  # less than most variants
MOVE_CACHE = "TETRAD_CACHE_DIR=/path/on/a/larger/disk tetrad serve …"


def check_folder(
    name: str,
    folder: Path,
    write: Callable[[Path], None],
    *,
    variable: str = "TETRAD_CACHE_DIR",
    is_needed: bool = True,
) -> Finding:
    """write: makes a file in the folder and removes it, or raises OSError.

    variable: sets another folder. is_needed: whether a server without it lacks what was asked for.
    """
    is_there = folder.is_dir()
    try:
        write(folder)
    except OSError as error:
        found = f"{folder} cannot be written: {error.strerror}"
        command = f"sudo chown -R $(id -u) {folder}, or set {variable}"
        return (fix if is_needed else warning)(name, found, command)
    return ok(name, f"{folder} can be {'written' if is_there else 'made'}")


def write_and_remove(folder: Path) -> None:
    """Write a small file into a folder, which is made if need be; remove what was made."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor.") as file:
            file.write(b"tetrad doctor")
            file.flush()
    finally:
        for made in missing:
            with contextlib.suppress(OSError):  # somebody else has begun to use it
                made.rmdir()


def check_disk(folder: Path, free: int, needed: int | None) -> Finding:
    """needed: by what must be downloaded; None where that is not known."""
    found = f"{gb(free)} free for {folder}"
    if needed is not None and needed > free:
        return fix("disk", f"{found}, the download needs {gb(needed)}", MOVE_CACHE)
    if needed is None and free < SCARCE_DISK_BYTES:
        return warning("disk", f"{found}: less than most variants", MOVE_CACHE)
    return ok("disk", found if not needed else f"{found}, the download needs {gb(needed)}")


def check_sockets(open_sockets: Callable[[], str]) -> Finding:
    """open_sockets: opens a pair as for an engine, and closes it; returns their folder."""
    try:
        folder = open_sockets()
    except OSError as error:
        command = "TMPDIR=/tmp tetrad serve …"
        return fix("sockets", f"local sockets cannot be made: {error.strerror}", command)
    usual = tempfile.gettempdir()
    if not folder.startswith(usual):
        found = f"{usual} is too long a path for sockets; {folder} is used"
        return warning("sockets", found, "TMPDIR=/tmp tetrad serve …")
    return ok("sockets", f"can be made in {usual}")


def open_sockets() -> str:
    """Open a pair of sockets as for an engine, and close it; return their folder."""
    sockets = ClientSockets()
    sockets.close()
    return str(sockets.folder)


def check_port(host: str, port: int, bind: Callable[[str, int], None]) -> Finding:
    """bind: listens there for a moment, or raises OSError."""
    if port == 0:
        return ok("port", "0: any free one is taken")
    try:
        bind(host, port)
    except PermissionError:
        found = f"{host}:{port} needs more rights"
        return fix("port", found, f"tetrad serve --port {port + 8000}")
    except OSError as error:
        found = f"{host}:{port} cannot be listened on: {error.strerror}"
        return fix("port", found, f"tetrad serve --port {port % 65535 + 1}")
    if port < 1024:
        return warning("port", f"{host}:{port} is free, but asks for rights", "--port 8000")
    return ok("port", f"{host}:{port} is free")


def bind_for_a_moment(host: str, port: int) -> None:
    """Listen, and stop. Raises OSError."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1)
