"""Asks the hub whether it is there, for `tetrad doctor`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class HubProbe:
    """How the hub answered."""

    endpoint: str
    problem: str | None = None  # why it did not; None where it did
    token: Literal["absent", "valid", "refused"] = "absent"
    clock_lead_s: float | None = None  # of this machine's clock over the hub's


def probe_hub(token: str | None) -> HubProbe:
    """Ask who we are: shows whether the hub answers, knows the token, and what time it has.

    token: None for the one of the hub's client, if there is one (HF_TOKEN, or its login).
    """
    endpoint, token = constants.ENDPOINT, token or get_token()
    try:
        response = get_session().get(
            f"{endpoint}/api/whoami-v2",
            headers=build_hf_headers(token=token or False),
            timeout=TIMEOUT_S,
        )
    except (HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        return HubProbe(endpoint, problem=type(error).__name__)
    if response.status_code >= 500:
        return HubProbe(endpoint, problem=f"it answers {response.status_code}")
    state: Literal["absent", "valid", "refused"] = "absent"
    if token is not None:
        state = "valid" if response.status_code == 200 else "refused"
    return HubProbe(endpoint, token=state, clock_lead_s=_clock_lead_s(response.headers))


def _clock_lead_s(headers: Mapping[str, str]) -> float | None:
    try:
        return time.time() - parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return None
