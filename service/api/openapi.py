"""What OpenAPI cannot tell from the code: bodies that are read by hand, and problem documents."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.api.body import BINARY, FIELD, IMAGES, JSON, MULTIPART
from service.api.problems import MEDIA_TYPE
from service.oip.schemas import InferRequest
from service.schemas import PredictRequest, Problem

_REFERENCE = "#/components/schemas/{model}"
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def reference(model: type[BaseModel]) -> dict[str, str]:
    """Where the document, which `describe` makes, has the model's schema."""
    return {"$ref": _REFERENCE.format(model=model.__name__)}


PREDICT_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        **dict.fromkeys((*IMAGES, BINARY), _BINARY),
        MULTIPART: {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "additionalProperties": False,
                "properties": {
                    FIELD: {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "format": "binary"},
                    }
                },
            }
        },
        JSON: {"schema": reference(PredictRequest)},
    },
}


def parameters(query: type[BaseModel]) -> list[dict[str, Any]]:
    """OpenAPI's query parameters for the fields of a model without nested ones."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.pop("description"),
            "schema": schema,
        }
        for name, schema in query.model_json_schema()["properties"].items()
    ]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of a route that may answer with these errors."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": reference(Problem)}},
        }
        for status in statuses
    }


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
        )
        schemas = document["components"]["schemas"]
        for model in (PredictRequest, InferRequest, Problem):
            schema = model.model_json_schema(ref_template=_REFERENCE)
            schemas |= schema.pop("$defs", {})
            schemas[model.__name__] = schema
        app.openapi_schema = document
    return app.openapi_schema
