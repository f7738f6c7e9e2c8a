"""Whose key a path asks for, told from the list of endpoints.

By `scope["path"]` and nothing else. What is not on the list asks for a key, too: a path that was
forgotten is closed, and who has no key cannot find out which paths there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from service.api.endpoint import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from service.api.endpoint import Endpoint

AccessRule: TypeAlias = "Callable[[str], Access]"

ADMIN_PATHS = "/admin/"  # what begins so is the administrator's, whether it exists or not


def access_rule(endpoints: Iterable[Endpoint]) -> AccessRule:
    """Return what tells a path's access. Where two endpoints share a path, the stricter one counts.

    Raises ValueError for an endpoint whose access cannot be told by comparing its path.
    """
    listed: dict[str, Access] = {}
    for endpoint in endpoints:
        for path in endpoint.paths:
            _require_comparable(path, endpoint.access)
            listed[path] = max(endpoint.access, listed.get(path, Access.OPEN), key=_STRICTNESS)
    return access_by_path(listed)


def access_by_path(listed: Mapping[str, Access]) -> AccessRule:
    """Return what tells a path's access from those that are listed."""

    def access_of(path: str) -> Access:
        if path.startswith(ADMIN_PATHS):
            return Access.ADMIN
        return listed.get(path, Access.CALLER)

    return access_of


def _require_comparable(path: str, access: Access) -> None:
    """Refuse declarations that `access_of` would not keep to."""
    if "{" in path and access is not Access.CALLER and not path.startswith(ADMIN_PATHS):
        raise ValueError(f"{path} has a parameter, so its access can only be {Access.CALLER}")
    if path.startswith(ADMIN_PATHS) and access is not Access.ADMIN:
        raise ValueError(f"{path} lies under {ADMIN_PATHS}, so its access can only be ADMIN")


_STRICTNESS = list(Access).index
