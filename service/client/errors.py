"""What can go wrong between a person and a server; each message says what to do.

ClientError
├── WrongQuestionError   an option, a file or a name is wrong: nothing was asked
├── UnreachableError     nobody answers at the address
├── RefusedError         the server answered that it will not, or cannot
├── BrokenAnswerError    the answer failed or broke off while it came
└── UnwrittenAnswerError the answer came, and could not be put where it was to go
"""

from __future__ import annotations


class ClientError(Exception):
    """Root of what a client meets; the commands end with `exit_code`."""

    exit_code = 1


class WrongQuestionError(ClientError):
    """An option, a file or a name is wrong."""

    exit_code = 2


class UnreachableError(ClientError):
    """Nobody answers at the address."""

    exit_code = 3


class RefusedError(ClientError):
    """The server refused."""

    exit_code = 4

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code  # the server's word for the kind of error, if it has one


class BrokenAnswerError(ClientError):
    """An answer failed, or broke off, while it came."""

    exit_code = 5


class UnwrittenAnswerError(ClientError):
    """An answer came, and could not be put where it was to go."""

    exit_code = 1
