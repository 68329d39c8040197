"""What the service says of itself to programs (OpenAPI 3.1)."""

from typing import Any

from vitcli import __version__

# Of POST /predict: each as `vit predict` has it.
PARAMETERS: dict[str, tuple[str, dict[str, Any]]] = {
    "model": ("Which model, by its name in /models; the first if left out.", {"type": "string"}),
    "top": ("Classes for each image.", {"type": "integer", "minimum": 1}),
    "reject": (
        "Answer unknown to images less familiar than all but this share of the model's own.",
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    ),
    "sets": (
        "Also the set of classes that holds the truth so often.",
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    ),
    "why": ("Also a picture of what spoke for each first class.", {"type": "boolean"}),
}
_TEXT, _NUMBER, _COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_NAME_OR_NULL = {"type": ["string", "null"]}
_OUTPUTS = {"enum": ["classes", "labels"]}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": [*required]}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _named(schema: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{schema}"}


SCHEMAS = {
    "Predictions": _object(
        {
            "schema": {"const": "vit.predict/1"},
            "model": _TEXT,
            "revision": _NAME_OR_NULL,
            "outputs": _OUTPUTS,
            "predictions": _list(_named("Prediction")),
        },
        {"sets": _NUMBER},
    ),
    "Prediction": _object(
        {"path": _TEXT},
        {
            "labels": _list(_object({"label": _TEXT, "probability": _NUMBER, "index": _COUNT})),
            "error": _TEXT,
            "familiarity": _NUMBER,
            "unknown": {"type": "boolean"},
            "set": _list(_TEXT),
            "why": _object({"label": _TEXT, "index": _COUNT, "method": _TEXT}, {"picture": _TEXT, "error": _TEXT}),
        },
    ),
    "Models": _object(
        {
            "schema": {"const": "vit.serve.models/1"},
            "models": _list(_named("Model")),
            "request_bytes": _COUNT,
            "images": _COUNT,
        }
    ),
    "Model": _object(
        {
            "name": _TEXT,
            "revision": _NAME_OR_NULL,
            "outputs": _OUTPUTS,
            "classes": _COUNT,
            "examples": _list(_TEXT),
            "image_size": _list(_COUNT),
            "engine": {"enum": ["onnxruntime", "torch"]},
            "temperature": _NUMBER,
            "explains": {"type": "boolean"},
            "familiarity": {
                "oneOf": [{"type": "null"}, _object({"data": _TEXT, "images": _COUNT, "strange_below": _NUMBER})]
            },
        }
    ),
    "Health": _object({"status": {"const": "ok"}, "waiting": _COUNT}),
    "Error": _object({"error": _TEXT}),
}


def _answer(schema: str, why: str) -> dict[str, Any]:
    return {"description": why, "content": {"application/json": {"schema": _named(schema)}}}


def _get(summary: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": answer}}}


_REFUSALS = {
    "400": "no image in the request, a damaged form, a parameter that this model does not have",
    "401": "a token is needed",
    "403": "asked by a name that is not this server's, or by another site's page",
    "404": "no such model",
    "408": "the request took too long to arrive",
    "413": "too large, or too many images",
    "415": "neither an image nor a form",
    "500": "this server failed",
    "503": "too much to do: try again after Retry-After seconds",
}
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}


def document() -> dict[str, Any]:
    predict = {
        "summary": "Name what is in each image.",
        "description": "A form with one or several files, or one image as the body. JSON as `vit predict --json`.",
        "parameters": [
            {"name": name, "in": "query", "description": what, "schema": schema}
            for name, (what, schema) in PARAMETERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _object({}, {"images": _list(_FILE)})},
                "application/octet-stream": {},
                "image/*": {},
            },
        },
        "responses": {
            "200": _answer("Predictions", "one for each image, in order; those that could not be read have an error"),
            "422": _answer("Predictions", "no image could be read"),
            **{status: _answer("Error", why) for status, why in _REFUSALS.items()},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "vit serve", "version": __version__},
        "paths": {
            "/": _get("The page.", {"description": "HTML", "content": {"text/html": {}}}),
            "/models": _get("The models here.", _answer("Models", "in the order in which they were named")),
            "/health": _get("Whether it runs.", _answer("Health", "it does")),
            "/openapi.json": _get("This.", {"description": "OpenAPI 3.1", "content": {"application/json": {}}}),
            "/predict": {"post": predict},
        },
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }
