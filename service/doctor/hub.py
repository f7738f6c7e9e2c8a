"""The hub: whether it answers, and what it makes of the token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.doctor.finding import Finding, fix, ok, warning

if TYPE_CHECKING:
    from loaders.repository.hub import HubProbe

NOT_ASKED = "not asked: local_files_only is set"


def check_hub(answer: HubProbe | None) -> Finding:
    """answer: None where downloads are off."""
    if answer is None:
        return ok("hub", NOT_ASKED)
    if answer.problem is not None:
        found = f"{answer.endpoint} does not answer ({answer.problem}); what is cached can be used"
        return warning("hub", found, "check the network and HF_ENDPOINT, or --local-files-only")
    return ok("hub", f"{answer.endpoint} answers")


def check_token(answer: HubProbe | None) -> Finding:
    """Look at what the hub said of the token."""
    if answer is None or answer.problem is not None:
        return ok("token", NOT_ASKED if answer is None else "not asked: the hub does not answer")
    if answer.token == "refused":
        found = f"{answer.endpoint} refuses the token"
        return fix("token", found, "set TETRAD_HUB_TOKEN or HF_TOKEN to a valid one, or unset it")
    if answer.token == "absent":
        return warning("token", "none: only public repositories can be read", "export HF_TOKEN=…")
    return ok("token", "the hub knows it")
