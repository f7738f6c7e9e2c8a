"""Whose key a request has, and whether that opens where it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.api.endpoint import Access
from service.api.scope import background_caller, header_values
from service.observation.request_record import NO_CALLER

if TYPE_CHECKING:
    from starlette.types import Scope

    from service.api.access import AccessRule
    from service.team.keys import ApiKeys


class KeyRule:
    """Which key opens which path."""

    def __init__(
        self,
        access_of: AccessRule,
        keys: ApiKeys | None,
        admin_keys: ApiKeys | None = None,
        metrics_keys: ApiKeys | None = None,
    ) -> None:
        """Where `keys` is None, nobody is asked for one but by the other two."""
        self._access_of = access_of
        self._keys = keys
        self._admin_keys = admin_keys
        self._metrics_keys = metrics_keys if keys is None else keys.with_others(metrics_keys)

    def caller_of(self, scope: Scope) -> str:
        """Return the name of the key that a request has; raise InvalidKeyError if it has none."""
        if (caller := background_caller(scope)) is not None:
            return caller  # who had the key when the batch was made
        keys = self._keys_of(self._access_of(scope["path"]))
        if keys is None:
            return NO_CALLER
        return keys.check(
            header_values(scope, b"authorization"),
            header_values(scope, b"x-api-key"),
            header_values(scope, b"api-key"),
        )

    def _keys_of(self, access: Access) -> ApiKeys | None:
        """Return what opens it; None where nobody is asked.

        Without an admin key nothing lies behind it: the caller's is asked for, as anywhere else.
        """
        if access is Access.OPEN:
            return None
        if access is Access.METRICS:
            return self._metrics_keys
        if access is Access.ADMIN and self._admin_keys is not None:
            return self._admin_keys
        return self._keys
