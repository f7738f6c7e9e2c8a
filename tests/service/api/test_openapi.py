"""The document of the API: whole, valid, and made from the list of endpoints alone."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from docs_pages.api_fields import all_endpoints
from service.api.error_responses import STATUS, UNEXPECTED
from service.api.openapi import TAGS, openapi_document
from tests.service.api.sample_endpoints import ENDPOINTS

DOCUMENT = openapi_document(ENDPOINTS, version="1.2.3")
PATHS = DOCUMENT["paths"]
CHAT = PATHS["/v1/chat/completions"]["post"]


def resolve(node):
    """Follow a reference."""
    if "$ref" not in node:
        return node
    found = DOCUMENT
    for part in node["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def operations():
    return [
        (path, method, operation)
        for path, item in PATHS.items()
        for method, operation in item.items()
    ]


def error_schema(operation, status):
    content = resolve(operation["responses"][str(status)])["content"]
    return content["application/json"]["schema"]["$ref"].rpartition("/")[2]


def test_document_is_valid():
    validator = pytest.importorskip("openapi_spec_validator", reason="needs the extra `dev`")
    validator.OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT


def test_every_path_and_method_is_there_and_head_beside_get():
    for endpoint in ENDPOINTS:
        for path in endpoint.paths:
            item = PATHS[re.sub(r":\w+}", "}", path)]
            assert endpoint.method.lower() in item
            assert ("head" in item) == (endpoint.method == "GET")
    assert len(operations()) == sum(
        len(endpoint.paths) * (2 if endpoint.method == "GET" else 1) for endpoint in ENDPOINTS
    )


def test_operation_ids_are_unique_and_the_first_paths_are_the_handlers_names():
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))
    assert CHAT["operationId"] == "create_chat_completion"
    other = PATHS["/chat/completions"]["post"]
    assert other["operationId"] == "create_chat_completion_at_chat_completions"
    assert other["x-same-as"] == "/v1/chat/completions"
    assert other["deprecated"] is False
    assert PATHS["/ping"]["head"]["operationId"] == "head_ready_at_ping"


def test_another_path_is_described_as_the_first():
    same = {"responses", "requestBody", "security", "summary", "description", "tags"}
    other = PATHS["/chat/completions"]["post"]
    assert {name: CHAT[name] for name in same} == {name: other[name] for name in same}


def test_every_status_of_the_table_of_errors_is_documented_somewhere():
    found = {status for _, _, operation in operations() for status in operation["responses"]}
    assert {str(form.status) for form in (*STATUS.values(), UNEXPECTED)} <= found


def test_generating_endpoint_documents_what_can_go_wrong():
    expected = {"200", "400", "401", "403", "404", "405", "408", "413", "415", "429", "500", "503"}
    assert set(CHAT["responses"]) == expected
    assert set(PATHS["/v1/completions"]["post"]["responses"]) == expected | {"501"}
    assert set(PATHS["/v1/models"]["get"]["responses"]) == {"200", "401", "403", "405", "500"}
    assert set(PATHS["/v1/models/{name}"]["get"]["responses"]) == {
        "200",
        "401",
        "403",
        "404",
        "405",
        "500",
    }
    assert set(PATHS["/health"]["get"]["responses"]) == {"200", "403", "405", "500", "503"}
    assert "409" in PATHS["/admin/models/load"]["post"]["responses"]
    assert "202" in PATHS["/admin/models/load"]["post"]["responses"]


def test_status_says_which_codes_it_comes_with():
    for form in (*STATUS.values(), UNEXPECTED):
        response = DOCUMENT["components"]["responses"][f"openai-{form.status}"]
        assert f"`{form.code}`" in response["description"]


def test_errors_are_in_the_words_of_each_server():
    assert error_schema(CHAT, 429) == "OpenAIError"
    tgi = PATHS["/"]["post"]
    for status in (400, 401, 422, 424, 429, 503):
        assert error_schema(tgi, status) == "TgiError"
    assert error_schema(PATHS["/health"]["get"], 503) == "Readiness"


def test_answers_are_json_events_or_text():
    content = CHAT["responses"]["200"]["content"]
    assert list(content) == ["application/json", "text/event-stream"]
    assert content["text/event-stream"]["schema"]["$ref"].endswith("/Chunk")
    listed = PATHS["/"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert listed["type"] == "array"
    assert list(PATHS["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
    head = PATHS["/v1/models"]["head"]
    assert not any("content" in resolve(answer) for answer in head["responses"].values())


def test_answers_schema_is_that_of_what_is_sent_and_the_requests_that_of_what_is_taken():
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["Answer"]["properties"]["count"]["type"] == "string"
    assert schemas["TgiRequest"]["required"] == ["inputs"]
    assert "stream" in schemas["ChatRequest"]["properties"]


def test_every_reference_leads_somewhere():
    for target in re.findall(r'"\$ref": "([^"]+)"', json.dumps(DOCUMENT)):
        assert resolve({"$ref": target})


def test_each_operation_names_the_keys_that_open_it():
    callers = [{"bearer": []}, {"x-api-key": []}, {"api-key": []}]
    assert CHAT["security"] == callers
    assert PATHS["/ping"]["get"]["security"] == []
    admin = PATHS["/admin/models/load"]["post"]["security"]
    assert [list(one) for one in admin] == [
        ["admin-bearer"],
        ["admin-x-api-key"],
        ["admin-api-key"],
    ]
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert {name for one in (*callers, *admin) for name in one} == set(schemes)


def test_keys_that_nothing_asks_for_are_not_named():
    schemes = openapi_document(ENDPOINTS[:1], version="1")["components"]["securitySchemes"]
    assert set(schemes) == {"bearer", "x-api-key", "api-key"}


def test_headers_stand_beside_the_answers_they_come_with():
    def names(status):
        return set(resolve(CHAT["responses"][status])["headers"])

    assert names("200") >= {"x-request-id", "x-ignored-params", "x-model-revision", "x-kernel"}
    assert names("401") == {"x-request-id", "www-authenticate"}
    assert "retry-after" in names("429") & names("503")


def test_what_was_cut_is_told_where_gaps_are_filled():
    def names(path):
        return set(resolve(PATHS[path]["post"]["responses"]["200"])["headers"])

    assert "x-truncated-prompt" in names("/v1/completions")
    assert "x-truncated-prompt" not in names("/v1/chat/completions")


def test_path_parameters_are_described():
    (name, request_id) = PATHS["/v1/models/{name}"]["get"]["parameters"]
    assert (name["name"], name["in"], name["required"]) == ("name", "path", True)
    assert resolve(request_id)["name"] == "x-request-id"


def test_what_may_stand_in_the_query_is_described():
    asked = dataclasses.replace(ENDPOINTS[0], query={"model": "A served name."})
    document = openapi_document([asked], version="1")
    for operation in document["paths"][asked.path].values():
        (parameter,) = [one for one in operation["parameters"] if one.get("in") == "query"]
        assert (parameter["name"], parameter["required"]) == ("model", False)
        assert parameter["description"] == "A served name."


def test_every_query_that_a_handler_reads_is_described():
    rooms = Path(__file__).parents[3] / "service" / "api"
    source = "".join(path.read_text(encoding="utf-8") for path in rooms.rglob("*.py"))
    read = set(re.findall(r'query_params\.get\("(\w+)"|"(\w+)" in \w+\.query_params', source))
    described = {name for endpoint in all_endpoints() for name in endpoint.query}
    assert {one or other for one, other in read} == described


def test_tags_are_described_in_the_order_of_the_list():
    assert [tag["name"] for tag in DOCUMENT["tags"]] == [
        "OpenAI",
        "Operations",
        "TGI",
        "Administration",
    ]
    assert all(tag["description"] == TAGS[tag["name"]] for tag in DOCUMENT["tags"])


def test_tag_of_which_nothing_is_said_is_refused():
    unsaid = dataclasses.replace(ENDPOINTS[0], tag="Elsewhere")
    with pytest.raises(ValueError, match="Elsewhere"):
        openapi_document([unsaid], version="1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({}, "two endpoints take POST"), ({"path": "/x", "other_paths": ()}, "two operations are")],
)
def test_endpoints_that_collide_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        openapi_document([ENDPOINTS[0], dataclasses.replace(ENDPOINTS[0], **changes)], version="1")


def test_document_is_the_same_each_time():
    again = openapi_document(ENDPOINTS, version="1.2.3")
    assert json.dumps(again) == json.dumps(DOCUMENT)
