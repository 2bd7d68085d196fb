"""What the service offers, as an OpenAPI 3.1 document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fed_diffmic import __version__
from fed_diffmic.inference.predictor import NOTICE

PROBLEMS = {
    "400": "a query that is not allowed, or no image",
    "401": "no token, or another",
    "408": "the image came too slowly",
    "413": "the image is too large",
    "415": "another content type",
    "422": "the image cannot be read; `error` says why",
    "503": "as many are waiting as may",
    "504": "the answer took longer than it may",
}


def _answer(classes: Sequence[str]) -> dict[str, Any]:
    """The schema of what is said of an image."""
    shares = {
        "type": "object",
        "properties": {name: {"type": "number", "minimum": 0, "maximum": 1} for name in classes},
        "required": list(classes),
    }
    return {
        "type": "object",
        "properties": {
            "classes": {"type": "array", "items": {"type": "string"}},
            "decided": {"description": "the class that the run's rule decides; of several labels: a list"},
            "probabilities": shares,
            "set": {"description": "classes that the prediction set holds; of several labels: what is said of each"},
            "uncertainty": {"type": "object", "description": "of this image, by measure: those shown to find errors"},
            "referred": {"type": "boolean", "description": "whether a person shall decide (--refer)"},
            "sure": {"type": "array", "items": {"type": "string"}, "description": "what that is worth, in sentences"},
            "tests": {"type": "object", "description": "the numbers behind these sentences"},
            "prior": {**shares, "description": "share of the training images that have each class"},
            "model": {"type": "object"},
            "look": {
                "type": "object",
                "description": "with look=1: pixels as the network saw them, saliency, regions",
            },
            "notice": {"type": "string"},
        },
        "required": ["classes", "decided", "probabilities", "prior", "model", "notice"],
    }


def openapi(classes: Sequence[str], most_bytes: int, token: bool) -> dict[str, Any]:
    """The document of a service.

    Args:
        classes: of its model.
        most_bytes: of an image.
        token: whether one is asked for.
    """
    binary = {"schema": {"type": "string", "format": "binary", "maxLength": most_bytes}}
    answers: dict[str, Any] = {
        code: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/error"}}}}
        for code, text in PROBLEMS.items()
    }
    predict = {
        "summary": "What the model says of one image",
        "parameters": [
            {"name": "look", "in": "query", "schema": {"type": "string", "enum": ["0", "1"]}},
            {"name": "class", "in": "query", "schema": {"type": "string", "enum": list(classes)}},
        ],
        "requestBody": {
            "required": True,
            "content": dict.fromkeys(("image/png", "image/jpeg", "application/octet-stream"), binary),
        },
        "responses": {
            "200": {"description": "the answer", "content": {"application/json": {"schema": _answer(classes)}}},
            **answers,
        },
    }  # fmt: skip

    def get(text: str) -> dict[str, Any]:
        return {"get": {"summary": text, "responses": {"200": {"description": text}}}}

    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "fed_diffmic", "version": __version__, "description": NOTICE},
        "paths": {
            "/v1/predict": {"post": predict},
            "/v1/model": get("The model card"),
            "/health": get("Whether one more would be taken"),
            "/metrics": get("Counts for Prometheus"),
        },
        "components": {
            "schemas": {
                "error": {
                    "type": "object",
                    "properties": {"error": {"type": "string"}, "message": {"type": "string"}},
                    "required": ["error", "message"],
                }
            }
        },
    }
    if token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document
