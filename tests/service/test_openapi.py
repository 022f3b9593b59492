"""The description, and answers to requests made from it."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from service.app import create_app
from service.settings import Settings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]

# What is too much is refused before it is read, and so before what else is wrong with it is seen.
REJECTIONS = ["400", "404", "405", "413", "415", "422", "5xx"]
CONFIG = {"checks": {"negative_data_rejection": {"expected-statuses": REJECTIONS}}}


@pytest.fixture(scope="module")
def document():
    return create_app(Settings()).openapi()


def test_every_status_of_predict_is_described(document):
    operation = document["paths"]["/predict"]["post"]
    problems = {"400", "408", "413", "415", "422", "500", "503", "504"}
    assert set(operation["responses"]) == {"200", *problems}
    for status in problems:
        (media_type,) = operation["responses"][status]["content"]
        assert media_type == "application/problem+json"
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "alpha",
        "fdr",
        "policy",
        "explain",
        "members",
        "background",
        "top_k",
    }
    assert set(operation["requestBody"]["content"]) == {
        "image/png",
        "image/jpeg",
        "image/webp",
        "image/bmp",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }


def test_certificate_is_described(document):
    schemas = document["components"]["schemas"]
    certificate = schemas["PredictResponse"]["properties"]["certificate"]
    reference = {"$ref": "#/components/schemas/CertificateInfo"}
    assert certificate["anyOf"] == [reference, {"type": "null"}]
    certificates = schemas["ModelDetails"]["properties"]["certificates"]
    assert certificates["additionalProperties"] == reference


def test_promises_are_described(document):
    schemas = document["components"]["schemas"]
    assert {"alpha", "fdr", "level"} <= set(schemas["Ood"]["required"])
    assert "prediction_set" in schemas["Result"]["required"]
    assert "members" in schemas["PredictResponse"]["required"]
    assert set(schemas["MembersInfo"]["required"]) == {
        "mode",
        "available",
        "differing_rate",
        "confidence",
    }
    sets = schemas["ModelDetails"]["properties"]["prediction_sets"]
    assert sets["anyOf"] == [{"$ref": "#/components/schemas/PredictionSetInfo"}, {"type": "null"}]


def test_there_is_one_shape_of_error(document):
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert document["components"]["schemas"]["Problem"]["required"] == [
        "type",
        "title",
        "status",
        "detail",
        "error",
        "request_id",
    ]


def test_every_reference_leads_somewhere(document):
    def references(node):
        if isinstance(node, dict):
            yield from [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(document))
    assert found
    for reference in found:
        *path, name = reference.removeprefix("#/").split("/")
        assert path == ["components", "schemas"]
        assert name in document["components"]["schemas"]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_requests_made_from_the_description(settings, model, mode):
    config = SchemathesisConfig.from_dict(CONFIG)
    app = create_app(settings, model)
    api = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    operations = [result.ok() for result in api.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/predict", "/models", "/readyz"}
    seen = set()
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.path != "/predict":
            continue

        @hypothesis.settings(
            max_examples=150 if operation.path == "/predict" else 3,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(mode))
        def check(case):
            seen.add(case.call_and_validate(checks=CHECKS).status_code)

        check()
    assert seen & {400, 415, 422}
