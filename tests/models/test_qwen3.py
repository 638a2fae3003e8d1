"""The real Qwen3 classes on tiny weights, translating into noise."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.models import registry, weights
from deployments.models.contract import (
    TINY_NOTICE,
    GenerateRequest,
    Media,
    Member,
    ModelCanceled,
    ModelFailed,
    ModelRefused,
    Output,
    Placement,
    Progress,
)
from deployments.models.qwen3 import Qwen3Translator

CPU = Placement("cpu", cpu_threads=1, cpu_offload=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Qwen3Translator:
    models_dir = tmp_path_factory.mktemp("models")
    weights.ensure_tiny(registry.entry_for("translation"), models_dir)
    return Qwen3Translator.load(registry.resolve("translation", "tiny", models_dir), CPU)


def translate(model: Qwen3Translator, is_canceled=lambda: False, seen=None, **fields: Any) -> Media:
    fields = {"text": "Hello, my friend.", "targetLanguage": "French", **fields}
    request = GenerateRequest("job_1", "text.translate", fields, 100_000)
    [made] = model.generate(request, (lambda _: None) if seen is None else seen.append, is_canceled).media
    return made


def test_a_translation_is_a_text_that_is_in_the_answer_too(model: Qwen3Translator) -> None:
    media = translate(model)
    assert media.content_type == "text/plain"
    assert media.data.decode() == media.facts["text"] != ""
    assert "\x00" not in media.facts["text"]
    assert (media.facts["targetLanguage"], media.facts["notice"]) == ("French", TINY_NOTICE)


def test_the_same_text_gives_the_same_translation_and_another_language_another(
    model: Qwen3Translator,
) -> None:
    first, again, other = (
        translate(model, targetLanguage=name).data for name in ("French", "French", "Zulu")
    )
    assert first == again
    assert first != other


def test_the_whole_conversation_reaches_the_model(
    model: Qwen3Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = model._model.generate

    def generate(input_ids: Any, **settings: Any) -> Any:
        asked.append(model._tokenizer.decode(input_ids[0]))
        return original(input_ids=input_ids, **settings)

    monkeypatch.setattr(model._model, "generate", generate)
    translate(model, text="Ignore this.", sourceLanguage="English")
    assert "from English into French" in asked[0]
    assert "<|im_start|>user\nIgnore this.<|im_end|>\n<|im_start|>assistant\n" in asked[0]


def test_a_cancellation_stops_at_the_next_word(model: Qwen3Translator) -> None:
    seen: list[Progress] = []
    with pytest.raises(ModelCanceled):
        translate(model, is_canceled=lambda: len(seen) > 2, seen=seen)
    assert len(seen) == 3


def test_progress_never_falls_and_ends_at_one(model: Qwen3Translator) -> None:
    seen: list[Progress] = []
    translate(model, seen=seen)
    assert [at.fraction for at in seen] == sorted(at.fraction for at in seen)
    assert seen[-1].fraction == 1


@pytest.mark.parametrize(
    "fields", [{"text": " "}, {"targetLanguage": ""}, {"text": "x" * 10_001}, {"tone": "x"}]
)
def test_a_refusal_comes_before_any_computing(model: Qwen3Translator, fields: dict[str, Any]) -> None:
    seen: list[Progress] = []
    with pytest.raises(ModelRefused):
        translate(model, seen=seen, **fields)
    assert seen == []


def test_texts_in_a_batch_are_translated_as_alone(model: Qwen3Translator) -> None:
    requests = [
        GenerateRequest(f"job_{number}", "text.translate", {"text": text, "targetLanguage": "French"})
        for number, text in enumerate(
            ("Hello, my friend.", "Good evening.", "A longer text than the others.")
        )
    ]
    together = model.generate_many([Member(request, lambda _: None, lambda: False) for request in requests])
    single = [model.generate(request, lambda _: None, lambda: False) for request in requests]
    assert [made.media for made in together if isinstance(made, Output)] == [made.media for made in single]


def test_a_translation_that_is_canceled_leaves_the_others_alone(model: Qwen3Translator) -> None:
    request = GenerateRequest("job_1", "text.translate", {"text": "Hello.", "targetLanguage": "French"})
    seen: list[Progress] = []
    gone = Member(request, seen.append, lambda: len(seen) >= 2)
    _, stays = model.generate_many([gone, Member(request, lambda _: None, lambda: False)])
    assert isinstance(stays, Output)
    assert stays.media == model.generate(request, lambda _: None, lambda: False).media
    with pytest.raises(ModelCanceled):
        model.generate_many([gone, gone])


def test_a_translation_that_ends_by_the_texts_own_mark_ends_in_a_batch_too(
    model: Qwen3Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    words = model._tokenizer.encode("Bonjour.")
    filling = [model._tokenizer.pad_token_id]

    def generate(input_ids: Any, max_new_tokens: int, **_: Any) -> Any:
        rows = [words + filling * (max_new_tokens - len(words)), (words * max_new_tokens)[:max_new_tokens]]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    monkeypatch.setattr(model._model, "generate", generate)
    monkeypatch.setattr(model, "_tiny", False)
    request = GenerateRequest("job_1", "text.translate", {"text": "Hello.", "targetLanguage": "French"})
    ended, endless = model.generate_many([Member(request, lambda _: None, lambda: False)] * 2)
    assert isinstance(ended, Output)
    assert ended.media[0].data == b"Bonjour."
    assert isinstance(endless, ModelFailed)
