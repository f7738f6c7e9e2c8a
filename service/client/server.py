"""A running server, asked over HTTP: which models it has, and for answers that are streamed.

Leaving the block of an answer closes its connection, at which the server stops generating.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.client.address import stays_on_this_machine
from service.client.answer import AnswerPiece, read_piece
from service.client.errors import (
    BrokenAnswerError,
    ClientError,
    RefusedError,
    UnreachableError,
    WrongQuestionError,
)
from service.client.event_reader import EventReader
from service.client.refusals import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    import httpx2

CONNECT_LIMIT_S = 10
SILENCE_LIMIT_S = 600  # others than Tetrad say nothing while a request waits
MAX_BODY_BYTES = 16 * 1024 * 1024  # of what is read whole: errors, lists of models
CHAT_PATH = "/chat/completions"
COMPLETION_PATH = "/completions"


class Answer:
    """An answer that comes piece by piece."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        ignored = response.headers.get("x-ignored-params", "")
        self.ignored_fields = [name.strip() for name in ignored.split(",") if name.strip()]

    def __iter__(self) -> Iterator[AnswerPiece]:
        """Give the pieces. Raises BrokenAnswerError where the answer does not come to its end."""
        reader, has_ended = EventReader(), False
        for data in self._events(reader):
            if data == "[DONE]":
                return
            piece = read_piece(data)
            has_ended = has_ended or piece.finish_reason is not None
            yield piece
        if not has_ended:
            raise BrokenAnswerError("the connection ended before the answer did")

    def _events(self, reader: EventReader) -> Iterator[str]:
        for piece in self._response.iter_bytes():
            yield from reader.push(piece)
        yield from reader.flush()


class Server:
    """A server of OpenAI's API, and a connection to it."""

    def __init__(self, url: str, key: str | None) -> None:
        """url: the base of its paths, with `/v1`."""
        import httpx2

        self.url = url
        # What is on this machine is asked directly, whichever proxy the environment names, but by
        # the certificates that it trusts (SSL_CERT_FILE). An answer that is compressed would come
        # in lumps.
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(SILENCE_LIMIT_S, connect=CONNECT_LIMIT_S),
            trust_env=not stays_on_this_machine(url),
            verify=httpx2.create_ssl_context() if url.startswith("https:") else True,
            headers={
                "accept-encoding": "identity",
                **({} if key is None else {"authorization": f"Bearer {key}"}),
            },
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def model_names(self) -> list[str]:
        """List what the server serves. Raises ClientError."""
        with self._asked("GET", "/models", None) as response:
            body = _read_whole(response)
        try:
            names = [entry["id"] for entry in json.loads(body)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RefusedError(f"what answers at {self.url} is no OpenAI-style API") from None
        return [name for name in names if isinstance(name, str)]

    def choose_model(self, asked: str | None) -> str:
        """Return the model that is meant: the one that is named, else the only one there is."""
        if asked is not None:
            return asked
        names = self.model_names()
        if not names:
            raise RefusedError(f"the server at {self.url} serves no model now")
        if len(names) > 1:
            raise WrongQuestionError(
                f"the server has several models; name one with --model: {', '.join(names)}"
            )
        return names[0]

    @contextmanager
    def answer(self, path: str, body: Mapping[str, object]) -> Iterator[Answer]:
        """Ask for an answer, for as long as the block runs. Raises ClientError."""
        with self._asked("POST", path, {**body, "stream": True}) as response:
            yield Answer(response)

    @contextmanager
    def _asked(
        self, method: str, path: str, body: Mapping[str, object] | None
    ) -> Iterator[httpx2.Response]:
        import httpx2

        has_begun, content, headers = False, None, {}
        if body is not None:
            # Halves of surrogates (bytes of a command line that are no UTF-8) become "?".
            content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
            headers = {"content-type": "application/json"}
        url = f"{self.url}{path}"
        try:
            with self._client.stream(method, url, content=content, headers=headers) as response:
                has_begun = True
                if response.status_code != httpx2.codes.OK:
                    raise refusal(
                        response.status_code, response.headers, _read_whole(response), self.url
                    )
                yield response
        except httpx2.InvalidURL as error:
            raise WrongQuestionError(f"{self.url} is no address: {error}") from error
        except httpx2.RequestError as error:
            raise self._transport_error(error, has_begun=has_begun) from error

    def _transport_error(self, error: Exception, *, has_begun: bool) -> ClientError:
        import httpx2

        said = str(error) or type(error).__name__
        if has_begun:
            return BrokenAnswerError(f"the connection ended before the answer did: {said}")
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return UnreachableError(
                f"the certificate of {self.url} is not trusted here ({said}); SSL_CERT_FILE names a"
                " file of those that are"
            )
        if "[SSL" in said:
            return UnreachableError(
                f"{self.url} does not speak HTTPS ({said}); begin --url with http:// if it is HTTP"
            )
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return UnreachableError(
                f"nobody answers at {self.url} ({said}); start a server with `tetrad serve`, or"
                " name another with --url"
            )
        advice = "" if self.url.startswith("https:") else "; begin --url with https:// if it is TLS"
        return UnreachableError(
            f"{self.url} does not answer as a server of HTTP would: {said}{advice}"
        )


def _read_whole(response: httpx2.Response) -> bytes:
    body = b""
    for piece in response.iter_bytes():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise RefusedError("the server's answer has no end; is it an OpenAI-style API?")
    return body
