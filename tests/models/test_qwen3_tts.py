"""Qwen3-TTS on tiny weights, in its own environment: each test runs the family there, as a replica does."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from deployments.models import environments, registry, sound, weights
from deployments.models.contract import TINY_NOTICE
from deployments.models.environments import EnvironmentMissing
from kit.settings import environment as variables

pytestmark = pytest.mark.timeout(300)

try:
    PYTHON = environments.python_of("speech")
except EnvironmentMissing:
    pytest.skip("'make speech' was not run, or could not be", allow_module_level=True)

SCRIPT = """
import json, sys
from pathlib import Path
from deployments.models import registry
from deployments.models.contract import AppError, GenerateRequest, InputFile, Placement
models_dir, calls = Path(sys.argv[1]), json.loads(sys.argv[2])
models = {}
results = []
for number, call in enumerate(calls):
    name = call["application"]
    if name not in models:
        entry = registry.entry_for(name)
        family = registry.load_family(entry.family)
        models[name] = family.load(registry.resolve(name, "tiny", models_dir), Placement("cpu", 1, False))
    media = {}
    if reference := call.get("reference"):
        media["referenceAudio"] = InputFile("audio/wav", Path(reference).read_bytes())
    steps = []
    stop_at = call.get("stop_at")
    request = GenerateRequest(call.get("job", "job_1"), entry.tasks[0], call["input"], call["units_milli"], media)
    try:
        output = models[name].generate(
            request, lambda at: steps.append(at.fraction), lambda: stop_at is not None and len(steps) >= stop_at
        )
    except AppError as error:
        results.append({"error": error.code, "message": error.message, "steps": steps})
        continue
    place = models_dir / f"{number}.out"
    place.write_bytes(output.media[0].data)
    results.append({"file": str(place), "type": output.media[0].content_type, "facts": output.media[0].facts,
                    "units_milli": output.units_milli, "steps": steps})
from deployments.models.contract import Member
def members(*texts):
    made = []
    for seed, (text, units) in enumerate(texts):
        said = {"voiceDescription": "Warm.", "outputFormat": "wav", "text": text, "seed": seed}
        request = GenerateRequest("job", "audio.speak", said, units, {})
        made.append(Member(request, lambda _: None, lambda: False))
    return made
shared = members(("Good evening.", 8000), ("A longer text than the first one.", 8000), ("Good night.", 1000))
together = models["speech"].generate_many(shared)
single = [models["speech"].generate(m.request, m.on_progress, m.is_canceled) for m in shared]
left = []
gone = Member(shared[0].request, left.append, lambda: len(left) >= 3)
stayed = models["speech"].generate_many([gone, shared[1]])[1]
for name, outputs in (("together", together), ("alone", single), ("stayed", [stayed])):
    for place, output in enumerate(outputs):
        (models_dir / f"{name}-{place}.wav").write_bytes(output.media[0].data)
(models_dir / "results.json").write_text(json.dumps(results))
"""

WELCOME = {
    "text": "Welcome to the API gateway.",
    "voiceDescription": "Warm, energetic narrator with clear pacing.",
    "language": "English",
}
GREETING = {"text": "Good evening.", "language": "English", "seed": 7}
WRONG = [{"text": " "}, {"language": "Klingon"}, {"pitch": 3}, {"outputFormat": "aac"}]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for name in ("speech", "voice"):
        weights.ensure_tiny(registry.entry_for(name), place)
    return place


@pytest.fixture(scope="module")
def said(models_dir: Path) -> dict[str, dict[str, Any]]:
    """What came of every call; they run one after the other in one process, since its imports take long."""
    noise = np.random.default_rng(0).normal(0, 0.05, (1, 48_000)).astype("float32")
    recording, brief = models_dir / "voice.wav", models_dir / "brief.wav"
    recording.write_bytes(sound.encode(noise, 24_000, "wav", {}))
    brief.write_bytes(sound.encode(noise[:, :12_000], 24_000, "wav", {}))
    voice = {"application": "voice", "input": GREETING}
    calls: dict[str, dict[str, Any]] = {
        "canceled": {"stop_at": 3},
        "first": {"input": {**WELCOME, "seed": 7}},
        "again": {"input": {**WELCOME, "seed": 7}, "job": "job_2"},
        "other": {"input": {**WELCOME, "seed": 8}},
        "short": {"units_milli": 1_000},
        "wav": {"input": {**WELCOME, "outputFormat": "wav"}},
        "cloned": {**voice, "reference": str(recording)},
        "cloned with words": {
            **voice,
            "input": {**GREETING, "referenceText": "hello"},
            "reference": str(recording),
        },
        "too brief": {**voice, "reference": str(brief)},
        "no recording": voice,
        **{f"wrong {number}": {"input": {**WELCOME, **fields}} for number, fields in enumerate(WRONG)},
    }
    full = [
        {"application": "speech", "units_milli": 8_000, "input": WELCOME, **call} for call in calls.values()
    ]
    done = subprocess.run(
        [str(PYTHON), "-c", SCRIPT, str(models_dir), json.dumps(full)],
        env=variables(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(calls, json.loads((models_dir / "results.json").read_text()), strict=True))


def data(made: dict[str, Any]) -> bytes:
    return Path(made["file"]).read_bytes()


def test_the_published_request_is_spoken(said: dict[str, dict[str, Any]]) -> None:
    made = said["first"]
    samples, rate = soundfile.read(io.BytesIO(data(made)))
    assert (rate, samples.ndim, made["type"]) == (24_000, 1, "audio/mpeg")
    assert samples.std() > 0, "it is not silence"
    assert len(samples) / rate == pytest.approx(made["facts"]["durationSeconds"], abs=0.1)
    assert made["facts"]["notice"] == TINY_NOTICE
    assert TINY_NOTICE.encode() in data(made)
    assert made["steps"] == sorted(made["steps"])
    assert (made["steps"][0], made["steps"][-1]) == (0, 1)
    samples, rate = soundfile.read(said["wav"]["file"])
    assert len(samples) == round(said["wav"]["facts"]["durationSeconds"] * rate)


def test_no_more_is_spoken_than_was_paid_for_and_each_second_begun_counts(
    said: dict[str, dict[str, Any]],
) -> None:
    assert said["first"]["facts"]["durationSeconds"] == 1.92
    assert said["first"]["units_milli"] == 2_000, "of the eight seconds that were held"
    assert said["short"]["facts"]["durationSeconds"] <= 1
    assert said["short"]["units_milli"] == 1_000


def test_the_same_seed_gives_the_same_file_and_another_another(said: dict[str, dict[str, Any]]) -> None:
    assert data(said["first"]) == data(said["again"]), "also after a cancellation"
    assert data(said["first"]) != data(said["other"])


def test_a_voice_is_cloned_from_a_recording_with_and_without_its_words(
    said: dict[str, dict[str, Any]],
) -> None:
    for name in ("cloned", "cloned with words"):
        samples, rate = soundfile.read(io.BytesIO(data(said[name])))
        assert rate == 24_000
        assert samples.std() > 0
    assert data(said["cloned"]) != data(said["cloned with words"])
    assert "shorter than 1 s" in said["too brief"]["message"]
    assert "give referenceAudioUrl or referenceAudioFileId" in said["no recording"]["message"]


def test_a_cancellation_stops_at_the_next_token(said: dict[str, dict[str, Any]]) -> None:
    assert (said["canceled"]["error"], len(said["canceled"]["steps"])) == ("canceled", 3)


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_refusal_comes_before_any_computing(said: dict[str, dict[str, Any]], number: int) -> None:
    refused = said[f"wrong {number}"]
    assert (refused["error"], refused["steps"]) == ("invalid_request", [])


def test_the_main_environment_cannot_load_the_model_and_says_so(models_dir: Path) -> None:
    from deployments.models.contract import Placement
    from deployments.models.qwen3_tts import DesignedVoice

    with pytest.raises(EnvironmentMissing, match="make speech"):
        DesignedVoice.load(
            registry.resolve("speech", "tiny", models_dir), Placement("cpu", 1, cpu_offload=False)
        )


def test_both_environments_agree_on_where_the_weights_lie(models_dir: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from deployments.models import registry\n"
        "print(registry.tiny_directory(registry.entry_for('speech'), Path(sys.argv[1])))"
    )
    told = subprocess.run(
        [str(PYTHON), "-c", script, str(models_dir)],
        env=variables(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(told.stdout.strip()) == registry.tiny_directory(registry.entry_for("speech"), models_dir)


def test_a_broken_builder_is_an_answer_for_the_operator(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissing, match="make speech"):
        environments.build("speech", "deployments.models.nothing:Here", "tiny", str(tmp_path), "1")


def batched(models_dir: Path, name: str) -> np.ndarray[Any, Any]:
    return soundfile.read(models_dir / f"{name}.wav", dtype="float32")[0]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_voice_says_the_same_alone_and_in_a_batch(
    said: dict[str, dict[str, Any]], models_dir: Path, place: int
) -> None:
    assert said
    together, alone = (batched(models_dir, f"{name}-{place}") for name in ("together", "alone"))
    assert together.shape == alone.shape, "also what was paid for ends it at the same token"
    assert np.abs(together - alone).max() < 0.01


def test_a_voice_that_is_canceled_leaves_its_neighbour_alone(
    said: dict[str, dict[str, Any]], models_dir: Path
) -> None:
    assert said
    stayed, alone = batched(models_dir, "stayed-0"), batched(models_dir, "alone-1")
    assert stayed.shape == alone.shape
    assert np.abs(stayed - alone).max() < 0.01
