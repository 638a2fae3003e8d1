"""Requests and answers under `/v1` as the OpenAPI document shows them. Tests send the one and check the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_COST: Final = {"credits": 1.0, "tokens": 100}
_MODEL: Final = {
    "id": "qwen-image",
    "object": "model",
    "created": 1795305600,
    "owned_by": "farebox",
    "name": "Qwen-Image",
    "licence": "Apache-2.0",
    "tasks": [
        {
            "task": "image.generate",
            "summary": "Make a picture from a text prompt.",
            "state": "ready",
            "reason": None,
            "price": {"tool": "image", "unit": "image", "per_units": 1, "price_version": 1, **_COST},
        }
    ],
}
_IMAGES: Final = {
    "created": 1795305600,
    "data": [
        {"url": "https://api.example.com/api/v1/files/file_01k8z0d1b3c5d7f9g1h3j5k7m9/content?signature=..."}
    ],
    "output_format": "png",
    "size": "1328x1328",
    "cost": _COST,
}

OPENAI_REQUESTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "createImages": {
        "a picture": {
            "model": "qwen-image",
            "prompt": "a lighthouse at dusk, oil on canvas",
            "n": 1,
            "size": "1536x1024",
            "response_format": "url",
        }
    },
    "createSpeech": {
        "a greeting": {
            "model": "qwen3-tts",
            "input": "Good evening, and welcome aboard.",
            "voice": "onyx",
            "instructions": "Slow and solemn.",
            "response_format": "mp3",
        }
    },
}
OPENAI_ANSWERS: Final[Mapping[str, Any]] = {
    "listModels": {"object": "list", "data": [_MODEL]},
    "getModel": _MODEL,
    "createImages": _IMAGES,
    "editImages": _IMAGES,
    "transcribeAudio": {
        "text": "Good evening, and welcome aboard.",
        "usage": {"type": "duration", "seconds": 2.4, "cost": {"credits": 0.01, "tokens": 1}},
    },
}
