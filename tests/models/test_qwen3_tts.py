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
from deployments.models.contract import TINY_NOTICE, WeightsMissing
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
(models_dir / "results.json").write_text(json.dumps(results))
"""

WELCOME = {
    "text": "Welcome to the API gateway.",
    "voiceDescription": "Warm, energetic narrator with clear pacing.",
    "language": "English",
}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for name in ("speech", "voice"):
        weights.ensure_tiny(registry.entry_for(name), place)
    return place


def speak(models_dir: Path, *calls: dict[str, Any]) -> list[dict[str, Any]]:
    """Run calls in the environment, one after the other in one process."""
    full = [{"application": "speech", "units_milli": 8_000, "input": WELCOME, **call} for call in calls]
    done = subprocess.run(
        [str(PYTHON), "-c", SCRIPT, str(models_dir), json.dumps(full)],
        env=variables(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results: list[dict[str, Any]] = json.loads((models_dir / "results.json").read_text())
    return results


def test_the_published_request_is_spoken_for_no_longer_than_was_paid(models_dir: Path) -> None:
    first, again, other, short, wav = speak(
        models_dir,
        {"input": {**WELCOME, "seed": 7}},
        {"input": {**WELCOME, "seed": 7}, "job": "job_2"},
        {"input": {**WELCOME, "seed": 8}},
        {"units_milli": 1_000},
        {"input": {**WELCOME, "outputFormat": "wav"}},
    )
    samples, rate = soundfile.read(io.BytesIO(Path(first["file"]).read_bytes()))
    assert (rate, samples.ndim, first["type"]) == (24_000, 1, "audio/mpeg")
    assert samples.std() > 0, "it is not silence"
    assert len(samples) / rate == pytest.approx(first["facts"]["durationSeconds"], abs=0.1)
    assert first["facts"]["notice"] == TINY_NOTICE
    assert TINY_NOTICE.encode() in Path(first["file"]).read_bytes()
    assert first["units_milli"] == 2_000, "1.92 seconds are two begun, of the eight that were held"
    assert Path(first["file"]).read_bytes() == Path(again["file"]).read_bytes()
    assert Path(first["file"]).read_bytes() != Path(other["file"]).read_bytes()
    assert short["facts"]["durationSeconds"] <= 1
    assert short["units_milli"] == 1_000
    assert first["steps"] == sorted(first["steps"])
    assert (first["steps"][0], first["steps"][-1]) == (0, 1)
    samples, rate = soundfile.read(wav["file"])
    assert len(samples) == round(wav["facts"]["durationSeconds"] * rate)


def test_a_voice_is_cloned_from_a_recording_with_and_without_its_words(
    models_dir: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, (1, 48_000)).astype("float32")
    recording, brief = tmp_path / "voice.wav", tmp_path / "brief.wav"
    recording.write_bytes(sound.encode(noise, 24_000, "wav", {}))
    brief.write_bytes(sound.encode(noise[:, :12_000], 24_000, "wav", {}))
    ask = {"text": "Good evening.", "language": "English", "seed": 7}
    plain, worded, too_short, nothing = speak(
        models_dir,
        {"application": "voice", "input": ask, "reference": str(recording)},
        {"application": "voice", "input": {**ask, "referenceText": "hello"}, "reference": str(recording)},
        {"application": "voice", "input": ask, "reference": str(brief)},
        {"application": "voice", "input": ask},
    )
    for made in (plain, worded):
        samples, rate = soundfile.read(io.BytesIO(Path(made["file"]).read_bytes()))
        assert rate == 24_000
        assert len(samples) > 12_000
    assert Path(plain["file"]).read_bytes() != Path(worded["file"]).read_bytes()
    assert "shorter than 1 s" in too_short["message"]
    assert "give referenceAudioUrl or referenceAudioFileId" in nothing["message"]


def test_a_cancellation_stops_at_the_next_token_and_leaves_the_model_whole(models_dir: Path) -> None:
    stopped, after, before = speak(
        models_dir, {"stop_at": 3}, {"input": {**WELCOME, "seed": 7}}, {"input": {**WELCOME, "seed": 7}}
    )
    assert (stopped["error"], len(stopped["steps"])) == ("canceled", 3)
    assert Path(after["file"]).read_bytes() == Path(before["file"]).read_bytes()


def test_a_refusal_comes_before_any_computing(models_dir: Path) -> None:
    wrong = [{"text": " "}, {"language": "Klingon"}, {"pitch": 3}, {"outputFormat": "ogg"}]
    for refused in speak(models_dir, *({"input": {**WELCOME, **fields}} for fields in wrong)):
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
    with pytest.raises(WeightsMissing, match="make speech"):
        environments.build_tiny("speech", "deployments.models.nothing:Here", tmp_path, 1)
