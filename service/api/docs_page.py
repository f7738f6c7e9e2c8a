"""The page at /docs: the document of the API for people, rendered here and complete in itself.

Nothing is loaded from elsewhere and no script runs, so it reads the same behind a firewall; what a
browser might load all the same is forbidden to it by the page. All text is escaped.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from service.api.schema_fields import SchemaReader
from service.api.scope import EVENT_STREAM

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from service.api.schema_fields import FieldRow

Node: TypeAlias = "Mapping[str, Any]"

TEMPLATE = files("service.api") / "docs_page.html.jinja"
JSON = "application/json"
EXAMPLE_URL = "http://localhost:8000"
# What values say in an example: by the field's name, else by its type.
EXAMPLES = {"role": "user", "content": "Hello!", "model": "MODEL"}
EXAMPLES_BY_TYPE = {"string": "text", "integer": 1, "number": 1.0, "boolean": True, "object": {}}


def docs_html(document: Node) -> bytes:
    """Return the page of a document that `service.api.openapi` made."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"inline": _inline, "prose": _prose}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(page=_PageReader(document).read()).encode()


@dataclass(frozen=True, slots=True)
class FieldTable:
    """The fields of a body."""

    title: str
    rows: Sequence[FieldRow]
    is_folded: bool


@dataclass(frozen=True, slots=True)
class StatusRow:
    """What comes with one status."""

    status: str
    body: str
    headers: Sequence[str]
    description: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One endpoint, under all its paths."""

    anchor: str
    method: str
    path: str
    other_paths: Sequence[str]
    summary: str
    description: str
    access: str
    tables: Sequence[FieldTable]
    statuses: Sequence[StatusRow]
    example: str


@dataclass(frozen=True, slots=True)
class Section:
    """The endpoints of one tag."""

    anchor: str
    name: str
    description: str
    operations: Sequence[Operation]


@dataclass(frozen=True, slots=True)
class Key:
    """One way to send a key."""

    name: str
    sent_as: str
    description: str


@dataclass(frozen=True, slots=True)
class Page:
    """All that is on the page."""

    title: str
    version: str
    description: str
    keys: Sequence[Key]
    errors: Sequence[FieldTable]
    sections: Sequence[Section]


class _PageReader:
    """Reads a document into what the page shows."""

    def __init__(self, document: Node) -> None:
        self._document = document
        self._schemas = SchemaReader(document["components"]["schemas"])

    def read(self) -> Page:
        info, schemes = self._document["info"], self._document["components"]["securitySchemes"]
        return Page(
            title=info["title"],
            version=info["version"],
            description=info["description"],
            keys=[_key(name, scheme) for name, scheme in schemes.items()],
            errors=self._errors(),
            sections=[
                Section(
                    anchor=f"tag-{re.sub(r'[^a-z0-9]+', '-', tag['name'].lower())}",
                    name=tag["name"],
                    description=tag["description"],
                    operations=list(self._operations(tag["name"])),
                )
                for tag in self._document["tags"]
            ],
        )

    def _errors(self) -> list[FieldTable]:
        """Return the fields of each body that errors have."""
        responses = self._document["components"]["responses"].values()
        bodies = {
            self._name_of(content["schema"]): content["schema"]
            for response in responses
            for content in response["content"].values()
        }
        return [
            FieldTable(name, self._schemas.rows(schema), is_folded=False)
            for name, schema in bodies.items()
        ]

    def _operations(self, tag: str) -> Iterator[Operation]:
        for path, item in self._document["paths"].items():
            for method, operation in item.items():
                # HEAD comes with GET, another path with the first one.
                if tag in operation["tags"] and method != "head" and "x-same-as" not in operation:
                    yield self._operation(path, method, operation)

    def _operation(self, path: str, method: str, operation: Node) -> Operation:
        body = operation.get("requestBody", {}).get("content", {}).get(JSON, {}).get("schema")
        return Operation(
            anchor=operation["operationId"],
            method=method.upper(),
            path=path,
            other_paths=self._other_paths(path, method),
            summary=operation["summary"],
            description=operation.get("description", ""),
            access=_access(operation["security"]),
            tables=list(self._tables(body, operation["responses"])),
            statuses=[
                self._status_row(status, answer)
                for status, answer in operation["responses"].items()
            ],
            example=self._example(path, method, operation, body),
        )

    def _other_paths(self, path: str, method: str) -> list[str]:
        return [
            _plain_path(other)
            for other, item in self._document["paths"].items()
            if _plain_path(item.get(method, {}).get("x-same-as", "")) == path
        ]

    def _tables(self, body: Node | None, responses: Node) -> Iterator[FieldTable]:
        if body is not None:
            yield FieldTable("Fields", self._schemas.rows(body), is_folded=False)
        success = next(answer for status, answer in responses.items() if status.startswith("2"))
        for media_type, content in success.get("content", {}).items():
            title = "Each event" if media_type == EVENT_STREAM else "Answer"
            if rows := self._schemas.rows(content["schema"]):
                yield FieldTable(title, rows, is_folded=True)

    def _status_row(self, status: str, answer: Node) -> StatusRow:
        answer = self._resolve(answer)
        bodies = [
            f"{self._name_of(content['schema'])} ({media_type})"
            for media_type, content in answer.get("content", {}).items()
        ]
        headers = list(answer.get("headers", ()))
        return StatusRow(status, ", ".join(bodies), headers, answer["description"])

    def _name_of(self, schema: Node) -> str:
        """Name a schema: as it is called where it stands, else by its type."""
        if "$ref" in schema:
            return str(schema["$ref"]).rpartition("/")[2]
        if schema.get("type") == "array":
            return f"list of {self._name_of(schema['items'])}"
        if kinds := schema.get("anyOf"):
            return " or ".join(self._name_of(kind) for kind in kinds)
        return self._schemas.type_of(schema)

    def _resolve(self, node: Node) -> Node:
        if "$ref" not in node:
            return node
        *_, kind, name = str(node["$ref"]).split("/")
        found: Node = self._document["components"][kind][name]
        return found

    def _example(self, path: str, method: str, operation: Node, body: Node | None) -> str:
        """Write a call for a shell."""
        url = EXAMPLE_URL + re.sub(r"{\w+}", "MODEL", path)
        lines = [f"curl {shlex.quote(url)}"]
        if method != "get":
            lines[0] = f"curl -X {method.upper()} {shlex.quote(url)}"
        if operation["security"]:
            variable = "TETRAD_ADMIN_KEY" if _is_admins(operation) else "TETRAD_API_KEY"
            lines.append(f'-H "Authorization: Bearer ${variable}"')
        if body is not None:
            sent = json.dumps(self._example_value("", body), ensure_ascii=False)
            lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(sent)}"]
        return " \\\n  ".join(lines)

    def _example_value(self, name: str, schema: Node) -> object:
        """Return what a request would say; of an object only what it must say."""
        schema = self._schemas.resolve(schema)
        if examples := schema.get("examples"):
            return examples[0]
        kind = next(iter(self._schemas.variants(schema)), {})
        values = kind.get("enum") or ([kind["const"]] if "const" in kind else [])
        if name in EXAMPLES and (not values or EXAMPLES[name] in values):
            return EXAMPLES[name]
        if values:
            return values[0]
        if kind.get("type") == "array":
            return [self._example_value(name, kind.get("items", {}))]
        if kind.get("type") == "object":
            fields, required = kind.get("properties", {}), kind.get("required", ())
            return {
                field: self._example_value(field, schema)
                for field, schema in fields.items()
                # What may be left out only sometimes (the model, a turn's content) is said, too.
                if field in required or field in EXAMPLES
            }
        return EXAMPLES_BY_TYPE.get(kind.get("type", ""), "text")


def _plain_path(path: str) -> str:
    """Return a path with the bare names of its parameters, as documents have it."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


def _is_admins(operation: Node) -> bool:
    return any(name.startswith("admin-") for key in operation["security"] for name in key)


def _access(security: Sequence[Node]) -> str:
    if not security:
        return "No key is asked for."
    ways = [name for key in security for name in key]
    return f"Asks for one of the keys: {', '.join(ways)}."


def _key(name: str, scheme: Node) -> Key:
    if scheme["type"] == "http":
        sent_as = f"Authorization: {scheme['scheme'].capitalize()} <key>"
    else:
        sent_as = f"{scheme['name']}: <key>"
    return Key(name, sent_as, scheme["description"])


def _inline(text: str) -> Markup:
    """Escape a text, and set what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _prose(text: str) -> Markup:
    """Set paragraphs, which are parted by empty lines."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    return Markup("\n").join(Markup("<p>{}</p>").format(_inline(part)) for part in paragraphs)
