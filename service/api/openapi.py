"""The document at /openapi.json, made from the list of endpoints and their models.

OpenAPI 3.1, whose schemas are those of JSON Schema as pydantic writes them. What is said of every
answer alike (errors, headers, keys) stands in `components` once and is referred to.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic.json_schema import models_json_schema

from service.api import headers
from service.api.endpoint import Access, ErrorShape
from service.api.error_models import ERROR_MODELS
from service.api.scope import EVENT_STREAM
from service.api.statuses import codes_of, meaning_of, statuses_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import BaseModel

    from service.api.endpoint import Endpoint

Node: TypeAlias = "dict[str, Any]"
Mode: TypeAlias = Literal["validation", "serialization"]

JSON = "application/json"
_REF_TEMPLATE = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"{(\w+)(?::(\w+))?}")  # {name} or {name:path}

DESCRIPTION = """\
Serves GPTQ, AWQ and GGUF checkpoints in the words of OpenAI's API, and of the servers that people
come from. What a schema cannot say stands in docs/api.md."""

TAGS = {
    "OpenAI": "OpenAI's API, as its official clients use it.",
    "llama.cpp": "llama.cpp's API, as editors use it.",
    "Anthropic": "Anthropic's Messages API, as its official clients and agents use it.",
    "Mistral": "Mistral's API for infilling, as editors use it.",
    "TGI": "The API of text-generation-inference.",
    "Tokens": "Texts to tokens and back, and prompts as the model sees them.",
    "Operations": "For supervisors, routers, monitors, and whoever wants to know what this is.",
    "Administration": "Which variants are served, changed while the server runs. It has a key of "
    "its own; without one these paths do not exist.",
}

# The headers that a key may come in; any one of them opens.
_KEY_HEADERS: Node = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}

_SECURITY_SCHEMES: Node = {
    f"{prefix}{name}": {**header, "description": whose}
    for prefix, whose in (
        ("", "The server's key, if it has one."),
        ("admin-", "The administrator's key."),
    )
    for name, header in _KEY_HEADERS.items()
}

_SECURITY: dict[Access, list[Node]] = {
    Access.OPEN: [],
    Access.METRICS: [{name: []} for name in _KEY_HEADERS],
    Access.CALLER: [{name: []} for name in _KEY_HEADERS],
    Access.ADMIN: [{f"admin-{name}": []} for name in _KEY_HEADERS],
}


def openapi_document(
    endpoints: Sequence[Endpoint], *, version: str, tags: Mapping[str, str] = TAGS
) -> Node:
    """Return the document. tags: what is said of each tag that endpoints have.

    Raises ValueError where endpoints collide, or have a tag of which nothing is said.
    """
    return _Document(endpoints, tags).render(version)


class _Document:
    """Puts one document together."""

    def __init__(self, endpoints: Sequence[Endpoint], tags: Mapping[str, str]) -> None:
        self._endpoints = endpoints
        self._tags = {endpoint.tag: tags.get(endpoint.tag) for endpoint in endpoints}
        self._refs, self._schemas = _describe_models(endpoints)
        self._operation_ids: set[str] = set()

    def render(self, version: str) -> Node:
        if unsaid := [tag for tag, description in self._tags.items() if not description]:
            raise ValueError(f"nothing is said of the tags {unsaid}; describe them in TAGS")
        return {
            "openapi": "3.1.0",
            "info": {"title": "Tetrad", "version": version, "description": DESCRIPTION},
            "tags": [{"name": name, "description": text} for name, text in self._tags.items()],
            "paths": self._paths(),
            "components": {
                "schemas": self._schemas,
                "responses": self._error_responses(),
                "headers": _header_components(),
                "parameters": {"x-request-id": _REQUEST_ID},
                "securitySchemes": self._security_schemes(),
            },
        }

    def _security_schemes(self) -> Node:
        """Return the keys that something asks for; without an administrator there is one less."""
        access = {endpoint.access for endpoint in self._endpoints}
        used = {name for one in access for key in _SECURITY[one] for name in key}
        return {name: scheme for name, scheme in _SECURITY_SCHEMES.items() if name in used}

    def _paths(self) -> Node:
        paths: Node = {}
        for endpoint in self._endpoints:
            for path in endpoint.paths:
                item = paths.setdefault(_PARAMETER.sub(r"{\1}", path), {})
                for method in _methods_of(endpoint):
                    if method in item:
                        raise ValueError(f"two endpoints take {method.upper()} {path}")
                    item[method] = self._operation(endpoint, path, method)
        return paths

    def _operation(self, endpoint: Endpoint, path: str, method: str) -> Node:
        summary, _, description = inspect.cleandoc(endpoint.description).partition("\n")
        operation: Node = {
            "operationId": self._operation_id(endpoint, path, method),
            "tags": [endpoint.tag],
            "summary": summary,
            "parameters": [
                *_path_parameters(path),
                *_query_parameters(endpoint),
                _ref("parameters", "x-request-id"),
            ],
            "responses": self._responses(endpoint, has_body=method != "head"),
            "security": _SECURITY[endpoint.access],
        }
        if description := description.strip():
            operation["description"] = description
        if path != endpoint.path:
            operation |= {"deprecated": False, "x-same-as": endpoint.path}
        if endpoint.request is not None:
            schema = self._refs[endpoint.request, "validation"]
            content = {endpoint.request_type: {"schema": schema}}
            operation["requestBody"] = {"required": True, "content": content}
        return operation

    def _operation_id(self, endpoint: Endpoint, path: str, method: str) -> str:
        parts = [] if method != "head" else ["head"]
        parts.append(endpoint.name)
        if path != endpoint.path:
            parts += ["at", re.sub(r"\W+", "_", path).strip("_") or "root"]
        operation_id = "_".join(parts)
        if operation_id in self._operation_ids:
            raise ValueError(f"two operations are called {operation_id}; rename a handler")
        self._operation_ids.add(operation_id)
        return operation_id

    def _responses(self, endpoint: Endpoint, *, has_body: bool) -> Node:
        success: Node = {"description": "The answer.", "headers": _success_headers(endpoint)}
        if endpoint.success != 200:
            success["description"] = meaning_of(endpoint.success)
        if has_body:
            success["content"] = self._answer_content(endpoint)
        responses: Node = {str(endpoint.success): success}
        for status in statuses_of(endpoint):
            other = endpoint.other_answers.get(status)
            if other is not None:
                content = {JSON: {"schema": self._refs[other, "serialization"]}}
                response: Node = {
                    "description": meaning_of(status),
                    "headers": _headers(status, endpoint.errors),
                }
                responses[str(status)] = response | ({"content": content} if has_body else {})
            elif has_body:
                responses[str(status)] = _ref("responses", _error_name(endpoint, status))
            else:
                responses[str(status)] = {
                    "description": meaning_of(status),
                    "headers": _headers(status, endpoint.errors),
                }
        return responses

    def _answer_content(self, endpoint: Endpoint) -> Node:
        """Describe the body of a success: JSON, a stream's events, or text of another kind."""
        content: Node = {}
        shapes: list[Node] = []
        if endpoint.response is not None:
            shapes.append(self._refs[endpoint.response, "serialization"])
        if endpoint.list_response is not None:
            items = self._refs[endpoint.list_response, "serialization"]
            shapes.append({"type": "array", "items": items})
        if shapes:
            content[JSON] = {"schema": shapes[0] if len(shapes) == 1 else {"anyOf": shapes}}
        if endpoint.chunk is not None:
            # Of each event's data, as OpenAI's own document has it.
            content[EVENT_STREAM] = {"schema": self._refs[endpoint.chunk, "serialization"]}
        if not content:
            kind = "object" if endpoint.media_type == JSON else "string"
            content[endpoint.media_type] = {"schema": {"type": kind}}
        return content

    def _error_responses(self) -> Node:
        responses: Node = {}
        for endpoint in self._endpoints:
            schema = self._refs[ERROR_MODELS[endpoint.errors], "serialization"]
            for status in statuses_of(endpoint):
                description = meaning_of(status)
                codes = codes_of(status)
                if codes and endpoint.errors is not ErrorShape.ANTHROPIC:  # which has none
                    description += f" `code`: {', '.join(f'`{code}`' for code in codes)}."
                responses[_error_name(endpoint, status)] = {
                    "description": description,
                    "headers": _headers(status, endpoint.errors),
                    "content": {JSON: {"schema": schema}},
                }
        return dict(sorted(responses.items()))


def _describe_models(
    endpoints: Iterable[Endpoint],
) -> tuple[dict[tuple[type[BaseModel], Mode], Node], Node]:
    """Return what refers to each model, and the schemas that are referred to."""
    # A dict, not a set: the document is the same each time.
    wanted = {model: None for endpoint in endpoints for model in _models_of(endpoint)}
    refs, schemas = models_json_schema(list(wanted), ref_template=_REF_TEMPLATE)
    found: dict[tuple[type[BaseModel], Mode], Node] = {
        (model, mode): dict(refs[model, mode]) for model, mode in wanted
    }
    return found, schemas.get("$defs", {})


def _models_of(endpoint: Endpoint) -> Iterator[tuple[type[BaseModel], Mode]]:
    if endpoint.request is not None:
        yield endpoint.request, "validation"
    answers = (endpoint.response, endpoint.list_response, endpoint.chunk)
    for model in (*answers, *endpoint.other_answers.values(), ERROR_MODELS[endpoint.errors]):
        if model is not None:
            yield model, "serialization"


def _methods_of(endpoint: Endpoint) -> tuple[str, ...]:
    return ("get", "head") if endpoint.method == "GET" else (endpoint.method.lower(),)


def _error_name(endpoint: Endpoint, status: int) -> str:
    return f"{endpoint.errors.value}-{status}"


def _ref(kind: str, name: str) -> Node:
    return {"$ref": f"#/components/{kind}/{name}"}


def _path_parameters(path: str) -> list[Node]:
    parameters: list[Node] = []
    for name, kind in _PARAMETER.findall(path):
        schema = {"type": "string", "minLength": 1}
        parameter: Node = {"name": name, "in": "path", "required": True, "schema": schema}
        if kind == "path":
            parameter["description"] = "May hold slashes, percent-encoded or not."
        parameters.append(parameter)
    return parameters


def _query_parameters(endpoint: Endpoint) -> list[Node]:
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": {"type": "string"},
            "description": description,
        }
        for name, description in endpoint.query.items()
    ]


_REQUEST_ID: Node = {
    "name": "x-request-id",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "A name for the request, which comes back with the answer: 1 to 128 of "
    "`A-Za-z0-9._:/+=@-`. Another one is not taken.",
}


def _success_headers(endpoint: Endpoint) -> Node:
    names = _id_names(endpoint.errors)
    if endpoint.request is not None:
        names += headers.IGNORED
    if endpoint.access is Access.CALLER:
        names += headers.ORIGIN
    if endpoint.infills:
        names += headers.TRUNCATED
    return {name: _ref("headers", name) for name in names}


def _id_names(shape: ErrorShape) -> list[str]:
    return [name.decode() for name in headers.id_headers(shape)]


def _headers(status: int, shape: ErrorShape) -> Node:
    names = (*_id_names(shape), *headers.WITH_STATUS.get(status, ()))
    return {name: _ref("headers", name) for name in names}


def _header_components() -> Node:
    described = {
        **headers.ALWAYS,
        **headers.ANTHROPIC,
        **headers.IGNORED,
        **headers.ORIGIN,
        **headers.TRUNCATED,
    }
    for of_status in headers.WITH_STATUS.values():
        described |= of_status
    return {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in described.items()
    }
