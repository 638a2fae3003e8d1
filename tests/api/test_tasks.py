"""The tasks over the real books: the published requests, their quotes, and what is refused before anything is held."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.catalog import load_catalog
from gateway.ports import ModelState
from gateway.quantities import speech_bound_s
from gateway.task_schemas import INPUTS, MEDIA, task_input

JOBS = "/api/v1/media/jobs"
SOURCE = "https://cdn.example.com/input/source.webp"
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "image.generate": ({"prompt": "cinematic fox astronaut", "aspectRatio": "1:1"}, 100),
    "image.edit": (
        {
            "prompt": "turn this scene into a dramatic noir poster",
            "sourceImageUrl": SOURCE,
            "aspectRatio": "9:16",
        },
        100,
    ),
    "video.generate": (
        {
            "prompt": "slow cinematic push-in with floating particles",
            "sourceImageUrl": SOURCE,
            "durationSeconds": 6,
            "aspectRatio": "16:9",
        },
        600,
    ),
    "audio.speak": (
        {
            "text": "Welcome to the API gateway.",
            "voiceDescription": "Warm, energetic narrator with clear pacing.",
            "language": "English",
        },
        8,
    ),
}
OTHERS: dict[str, tuple[dict[str, Any], int]] = {
    "voice.clone": ({"text": "Good evening.", "referenceAudioUrl": "https://cdn.example.com/me.mp3"}, 10),
    "music.generate": ({"prompt": "calm piano", "durationSeconds": 40}, 80),
    "sfx.generate": ({"prompt": "a hammer hits wood", "durationSeconds": 4}, 12),
    "audio.transcribe": ({"audioUrl": "https://cdn.example.com/talk.mp3", "maxMinutes": 3}, 30),
    "video.dub": (
        {
            "videoUrl": "https://cdn.example.com/talk.mp4",
            "targetLanguage": "French",
            "sourceLanguage": "English",
            "maxMinutes": 3,
        },
        600,
    ),
    "text.translate": ({"text": "x" * 101, "targetLanguage": "French"}, 2),
    "chat.complete": ({"messages": [{"role": "user", "content": "Hello"}], "maxTokens": 9}, 5),
}
TASKS = PUBLISHED | OTHERS


def test_every_task_has_an_input_and_is_on_sale():
    assert set(load_catalog().tasks) == set(INPUTS) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
async def test_a_request_is_accepted_and_its_quote_held(customer, db, assert_sound, task):
    job_input, tokens = TASKS[task]
    owner = await customer(60_000)
    answer = await owner.client.post(JOBS, json={"task": task, "input": job_input})
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert (body["status"], body["cost"]["quotedTokens"], body["cost"]["heldTokens"]) == (
        "queued",
        tokens,
        tokens,
    )
    assert await owner.tokens() == 60_000 - tokens
    shown = (await owner.client.get(f"{JOBS}/{body['jobId']}")).json()
    assert job_input.items() <= shown["input"].items()
    await assert_sound(db)


@pytest.mark.parametrize(
    ("task", "change", "field"),
    [
        ("image.edit", {"sourceImageUrl": None}, "input"),
        ("image.edit", {"sourceImageFileId": "file_1"}, "input"),
        ("image.edit", {"sourceImageUrl": "ftp://cdn.example.com/a"}, "input.sourceImageUrl"),
        ("image.edit", {"sourceImageUrl": "https://user:secret@cdn.example.com/a"}, "input.sourceImageUrl"),
        ("image.edit", {"sourceImageUrl": "https://cdn.example.com/a b"}, "input.sourceImageUrl"),
        ("image.edit", {"sourceImageUrl": "https://[::1"}, "input.sourceImageUrl"),
        ("image.edit", {"sourceImageUrl": "https:///a"}, "input.sourceImageUrl"),
        ("image.edit", {"sourceImageUrl": "https://a.example/" + "x" * 2048}, "input.sourceImageUrl"),
        ("image.edit", {"sourceImageUrl": "https://a.example:99999/"}, "input.sourceImageUrl"),
        ("image.edit", {"sourceImageUrl": 7}, "input.sourceImageUrl"),
        ("image.edit", {"prompt": " "}, "input.prompt"),
        ("image.edit", {"aspectRatio": "5:4"}, "input.aspectRatio"),
        ("video.generate", {"durationSeconds": 0}, "input.durationSeconds"),
        ("video.generate", {"durationSeconds": 21}, "input.durationSeconds"),
        ("video.generate", {"durationSeconds": "6"}, "input.durationSeconds"),
        ("video.generate", {"durationSeconds": 6.5}, "input.durationSeconds"),
        ("video.generate", {"sound": "yes"}, "input.sound"),
        ("video.generate", {"fps": 30}, "input.fps"),
        ("audio.speak", {"text": ""}, "input.text"),
        ("audio.speak", {"text": "x" * 4001}, "input.text"),
        ("audio.speak", {"language": "Klingon"}, "input.language"),
        ("audio.speak", {"outputFormat": "aac"}, "input.outputFormat"),
        ("image.generate", {"outputQuality": 80}, "input.outputQuality"),
        ("image.generate", {"outputFormat": "webp", "outputQuality": 0}, "input.outputQuality"),
        ("video.generate", {"outputFormat": "avi"}, "input.outputFormat"),
        ("voice.clone", {"referenceAudioUrl": None}, "input"),
        ("music.generate", {"durationSeconds": 241}, "input.durationSeconds"),
        ("sfx.generate", {"durationSeconds": 48}, "input.durationSeconds"),
        ("audio.transcribe", {"maxMinutes": 0}, "input.maxMinutes"),
        ("audio.transcribe", {"language": "tlh"}, "input.language"),
        ("video.dub", {"videoUrl": None}, "input"),
        ("video.dub", {"targetLanguage": "Auto"}, "input.targetLanguage"),
        ("video.dub", {"targetLanguage": "Klingon"}, "input.targetLanguage"),
        ("video.dub", {"sourceLanguage": "en"}, "input.sourceLanguage"),
        ("video.dub", {"keepBackground": "yes"}, "input.keepBackground"),
        ("video.dub", {"maxMinutes": 31}, "input.maxMinutes"),
        ("text.translate", {"targetLanguage": "Fr\nench"}, "input.targetLanguage"),
        ("text.translate", {"targetLanguage": None}, "input.targetLanguage"),
        ("text.translate", {"text": "x" * 10_001}, "input.text"),
    ],
)
async def test_400_names_the_field_and_holds_nothing(customer, task, change, field):
    owner = await customer(1_000)
    job_input = {name: value for name, value in {**TASKS[task][0], **change}.items() if value is not None}
    answer = await owner.client.post(JOBS, json={"task": task, "input": job_input})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), answer.text
    assert [fault["field"] for fault in answer.json()["details"]] == [field]
    assert await owner.tokens() == 1_000


async def test_an_uploaded_file_is_an_input_and_a_strangers_is_not(customer):
    owner, stranger = await customer(1_000), await customer(1_000)
    upload = {"file": ("fox.png", b"\x89PNG\r\n\x1a\nfox", "image/png")}
    file_id = (await owner.client.post("/api/v1/files", files=upload)).json()["id"]
    ask = {"task": "image.edit", "input": {"prompt": "noir", "sourceImageFileId": file_id}}
    assert (await owner.client.post(JOBS, json=ask)).status_code == 202
    refused = await stranger.client.post(JOBS, json=ask)
    assert (refused.status_code, refused.json()["error"]) == (404, "not_found")
    assert await stranger.tokens() == 1_000


async def test_503_for_a_task_whose_model_was_given_up_and_nothing_else(customer, models):
    reason = "The speech environment is not installed; the operator makes it with 'make speech'."
    models.known = {
        "image": ModelState("image", "ready", None),
        "speech": ModelState("speech", "unavailable", reason, failed=True),
    }
    owner = await customer(1_000)
    refused = await owner.client.post(
        JOBS, json={"task": "audio.speak", "input": PUBLISHED["audio.speak"][0]}
    )
    assert (refused.status_code, refused.json()["error"]) == (503, "unavailable")
    assert refused.json()["message"] == f"audio.speak is not available: {reason}"
    assert int(refused.headers["retry-after"]) > 0
    assert await owner.tokens() == 1_000
    other = await owner.client.post(JOBS, json={"task": "image.generate", "input": {"prompt": "a fox"}})
    assert other.status_code == 202


async def test_a_job_waits_for_a_model_that_is_only_away(customer, models):
    models.known = {"video": ModelState("video", "unavailable", "not deployed")}
    owner = await customer(1_000)
    answer = await owner.client.post(JOBS, json={"task": "video.generate", "input": {"prompt": "a fox"}})
    assert answer.status_code == 202


async def test_a_film_may_cost_no_more_than_the_caller_agreed_to(customer):
    owner = await customer(1_000)
    ask = {"task": "video.generate", "input": PUBLISHED["video.generate"][0], "creditsToConsume": 5.99}
    refused = await owner.client.post(JOBS, json=ask)
    assert (refused.status_code, refused.json()["cost_tokens"]) == (409, 600)
    assert await owner.tokens() == 1_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("a", 4), ("Welcome to the API gateway.", 8), ("你好世界", 5), ("1984", 7), ("x" * 4000, 603)],
)
def test_the_bound_of_speech_grows_with_what_takes_long_to_say(text, seconds):
    assert speech_bound_s(text) == seconds


def test_media_names_are_those_of_fields():
    fields = {field.alias for model in INPUTS.values() for field in model.model_fields.values()}
    for name in MEDIA:
        assert {f"{name}Url", f"{name}FileId"} <= fields


def test_defaults_are_filled_in_for_the_model():
    filled = task_input("video.generate", {"prompt": "a fox"})
    assert filled == {
        "prompt": "a fox",
        "durationSeconds": 5,
        "aspectRatio": "16:9",
        "sound": True,
        "outputFormat": "mp4",
    }
