"""What goes wrong with files and batches, and is nobody's request's fault."""

from __future__ import annotations

from service.errors import ServiceError, UnavailableError


class StorageError(ServiceError):
    """The folder cannot be written to: no room on the device, or no right to."""


class FolderTakenError(UnavailableError):
    """Another server keeps its files and batches in this folder."""
