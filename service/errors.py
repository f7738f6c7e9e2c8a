"""Everything the service raises on purpose, outside `service.text`.

Messages are written for whoever has to mend it: the operator for the first group, the client for
the others. How each becomes HTTP stands in one table, `service.api.error_responses`.

ServiceError
├── SettingsError               a setting is missing or wrong; the process ends with 2
├── BindError                   the address cannot be listened on; the process ends with 3
├── RequestError                the client can mend it; names the field where there is one
│   ├── InvalidJsonError        the body is not one JSON object
│   ├── InvalidFieldError       a field has a wrong type or value
│   ├── MissingFieldError       a required field is absent
│   ├── UnknownFieldError       a field that is unknown, or has no effect
│   ├── UnsupportedFieldError   a field that is known, and not supported
│   ├── ContextLengthError      prompt and answer do not fit the model's context
│   ├── ModelNotFoundError      no such model is served here
│   ├── InvalidKeyError         no key, or a wrong one
│   ├── HostNotAllowedError     a server without a key was asked by a name that is not loopback
│   ├── OriginNotAllowedError   a server without a key was asked by another origin's page
│   ├── BodyTooLargeError       more bytes than allowed
│   ├── NotFoundError           a file or a batch that there is not, or that is another caller's
│   ├── ConflictError           what is asked for does not go with how things stand
│   ├── InvalidFormError        the body is no multipart form, or one with faults
│   └── UnsupportedBodyError    not plain JSON: another media type, or compressed
├── UnavailableError            this process, or this variant, does not answer now
│   └── CutOffError             the process stops, and ended a request that was still open
├── FallbackError               a variant could not be loaded as it was; another way is left
├── VariantStateError           the administrator asked for what the variant's state does not allow
├── ClientGoneError             the client left; nobody is there to be told
└── StalledReaderError          the client stopped reading its stream
"""

from __future__ import annotations


class ServiceError(Exception):
    """Root of the service's errors."""


class SettingsError(ServiceError):
    """A setting is missing, wrong, or contradicts another."""


class BindError(ServiceError):
    """The address cannot be listened on."""


class RequestError(ServiceError):
    """The request cannot be answered as asked; the message says what to change."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param  # the field the message is about


class InvalidJsonError(RequestError):
    """The body is not one JSON object."""


class InvalidFieldError(RequestError):
    """A field has a wrong type, or a value outside its bounds."""


class MissingFieldError(RequestError):
    """A required field is absent."""


class UnknownFieldError(RequestError):
    """A field would have no effect, and is refused rather than swallowed."""


class UnsupportedFieldError(RequestError):
    """A field asks for what this server does not do; the answer would not be the one wanted."""


class ContextLengthError(RequestError):
    """Prompt and answer do not fit the model's context."""


class ModelNotFoundError(RequestError):
    """No model of that name is served here."""


class InvalidKeyError(RequestError):
    """The request carries no key, or one that is not valid."""


class HostNotAllowedError(RequestError):
    """A server without a key was asked by a name that others may own."""


class OriginNotAllowedError(RequestError):
    """A page of another origin asked a server without a key."""


class BodyTooLargeError(RequestError):
    """The body has more bytes than allowed."""


class NotFoundError(RequestError):
    """There is no such file or batch, or it is another caller's."""


class ConflictError(RequestError):
    """What is asked for does not go with how things stand."""


class InvalidFormError(RequestError):
    """The body is no multipart form, or one with faults."""


class UnsupportedBodyError(RequestError):
    """The body is not plain JSON."""


class UnavailableError(ServiceError):
    """This process does not answer now."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CutOffError(UnavailableError):
    """This process stops, and its time for open requests is over."""


class VariantStateError(ServiceError):
    """The variant is in a state that does not allow what was asked."""


class ClientGoneError(ServiceError):
    """The client closed the connection before its answer was complete."""


class StalledReaderError(ServiceError):
    """The client keeps its stream open without reading it."""


class FallbackError(ServiceError):
    """A variant could not be loaded as it was tried; the next engine tries another way."""
