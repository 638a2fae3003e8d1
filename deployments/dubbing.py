"""`video.dub`: a film whose speech is in another language, by a pipeline of the other model applications.

split, transcribe, translate, speak, fit, mix, mux. Each line is spoken in a voice cloned from the sound of that very
line, so that several speakers keep their voices. The original's speech cannot be taken out of what is around it (no
model here separates them): the whole original is lowered while somebody speaks, or left out.

Invariants:
- One job, one hold, one charge: the calls of other applications are no jobs and cost nothing of their own.
- A line begins when its original begins and ends before the next one: it is hurried, at last cut off.
- No film is longer than what was paid for; its length in minutes is what is charged.
- What a finished part made is not made again, whoever goes on with the job.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from deployments import footage, soundtrack
from deployments.footage import Film, NoFilm
from deployments.handles import Call, ModelAway, ModelCalls
from deployments.inputs import Inputs
from deployments.models import sound
from deployments.models.contract import GenerateRequest, InputFile, Media, Metrics, ModelRefused, Output
from deployments.models.meter import Meter
from deployments.models.registry import PIPELINES
from deployments.models.subtitles import Subtitle, one_line, srt, vtt
from deployments.pipeline import Made, Make, Pipeline, Report, Tell, in_thread, seed_of
from deployments.script import FASTEST, Line, Placement, lines_of, pace, reference, slots_ms
from deployments.soundtrack import FILM_RATE, SPEECH_RATE, IsStopped, Span, SpeechWriter
from gateway.languages import HEARD
from gateway.leases import ClaimedJob
from gateway.quantities import MILLI, speech_bound_s
from gateway.task_schemas import MAX_SPEECH_CHARS, media_of
from gateway.worlds import tiny_of
from kit.errors import AppError
from kit.fetch import InputRefused
from kit.storage import ObjectStore

T = TypeVar("T")

TASK: Final = "video.dub"
APPLICATION: Final = "dub"
STAGES: Final = {
    "split": 4, "transcribe": 14, "translate": 16, "speak": 52, "fit": 4, "mix": 4, "mux": 6,
}  # fmt: skip
"""The stages in order, each with its percent of the usual work: the models take nearly all of it."""
AT_ONCE: Final = 2
"""Lines of a film translated or spoken at once: the model never waits for us, and other jobs get their turn."""
SOUND_BEYOND_MS: Final = 500
"""Sound that outlasts the pictures by less is the last block of its codec; by more, the film lasts as long as it."""


@dataclass
class NothingToDub(AppError):
    """Nobody speaks in the film. The job fails, and costs nothing."""

    code = "nothing_to_dub"
    status = 400

    @property
    def message(self) -> str:
        return "No speech was found in the film, so there is nothing to dub; nothing was charged."


@dataclass
class StageRefused(AppError):
    """A stage's model cannot do its part; another attempt would end the same."""

    stage: str
    reason: str
    code = "stage_refused"
    status = 400

    @property
    def message(self) -> str:
        return f"The stage {self.stage} could not be done: {self.reason}"


class Dubbing:
    """Dubs films. `patience_s` is how long a part of a stage may take."""

    def __init__(  # its collaborators, each used
        self, ledger: Call, models: ModelCalls, inputs: Inputs, objects: ObjectStore, patience_s: float
    ) -> None:
        self._ledger = ledger
        self._models = models
        self._inputs = inputs
        self._objects = objects
        self._patience_s = patience_s

    async def dub(self, job: ClaimedJob, report: Report) -> Output:
        """Return the dubbed film, its script and its subtitles.

        Raises: NothingToDub, StageRefused; InputRefused for a film that cannot be used; ModelAway when one of the
        models cannot be called now; LeaseLost; TimeoutError; what a model raises.
        """
        with tempfile.TemporaryDirectory(prefix="farebox-dub-") as place:
            pipeline = Pipeline(job, STAGES, self._ledger, self._objects, Path(place), report)
            await pipeline.resume()
            return await _Dub(self, job, pipeline, Path(place)).run()

    async def read(self, job: ClaimedJob) -> InputFile:
        """Fetch a job's film."""
        return (await self._inputs.read(job))["video"]

    async def ask(self, stage: str, application: str, request: GenerateRequest, tell: Tell) -> Output:
        """Return what a model application makes for a stage."""
        try:
            async with (
                asyncio.timeout(self._patience_s),
                aclosing(self._models.generate(application, request)) as events,
            ):
                async for event in events:
                    if isinstance(event, Output):
                        return event
                    tell(event.fraction)
        except ModelRefused as refusal:
            raise StageRefused(stage, refusal.problem) from refusal
        raise ModelAway("the model ended without an output")

    async def work(self, work: Callable[[IsStopped], T]) -> T:
        """Run media work in a thread."""
        async with asyncio.timeout(self._patience_s):
            return await in_thread(work)


class _Dub:
    """One attempt at one film."""

    def __init__(self, dubbing: Dubbing, job: ClaimedJob, pipeline: Pipeline, directory: Path) -> None:
        self._dubbing = dubbing
        self._job = job
        self._pipeline = pipeline
        self._directory = directory
        self._target: str = job.input["targetLanguage"]
        self._source: str | None = job.input.get("sourceLanguage")
        self._seed: int = job.input.get("seed", seed_of(job.id))
        # The test world's job is done by the tiny models, beside the real ones.
        self._named = tiny_of if job.application == tiny_of(APPLICATION) else str
        self._paid_ms = job.units_milli * 60_000 // MILLI

    async def run(self) -> Output:
        film_part, sound_part = await self._pipeline.stage("split", [self._fetch, self._split])
        film = Film(**film_part.facts["film"])
        # The pictures' length, unless the sound goes on: a talk over one picture.
        length_ms = film.duration_ms
        if sound_part.facts["soundMs"] > length_ms + SOUND_BEYOND_MS:
            length_ms = sound_part.facts["soundMs"]
        [heard] = await self._pipeline.stage("transcribe", [self._transcribe])
        lines = lines_of(json.loads((await self._pipeline.file(heard)).read_bytes()), length_ms)
        if not lines:
            raise NothingToDub
        said = await self._pipeline.stage("translate", [self._translation(each) for each in lines], AT_ONCE)
        texts = [(await self._pipeline.file(part)).read_text("utf-8") for part in said]
        slots = slots_ms(lines, length_ms)
        makes = [self._speech(lines, texts, place, slots[place]) for place in range(len(lines))]
        spoken = await self._pipeline.stage("speak", makes, AT_ONCE)
        speeches = [await self._pipeline.file(part) for part in spoken]
        [fitted] = await self._pipeline.stage("fit", [self._fit(lines, slots, speeches, length_ms)])
        placed = [Placement(**each) for each in fitted.facts["placements"]]
        voice = await self._pipeline.file(fitted)
        [mixed] = await self._pipeline.stage("mix", [self._mix(film, lines, placed, voice, length_ms)])
        facts = self._facts(
            [heard.facts, *(part.facts for part in (*said, *spoken))], lines, placed, length_ms
        )
        [muxed] = await self._pipeline.stage(
            "mux", [self._mux(film, await self._pipeline.file(mixed), facts)]
        )
        data = (await self._pipeline.file(muxed)).read_bytes()
        media = [
            Media("video/mp4", data, {**facts, **muxed.facts}),
            *_script(lines, texts, placed, facts),
        ]
        return Output(media, self._pipeline.metrics(), facts["model"], -(-length_ms * MILLI // 60_000))

    # -- the stages --------------------------------------------------------------------------------------------

    async def _fetch(self, _: Tell) -> Made:
        """Fetch the film: it is kept, so that the rest never depends on where it came from."""
        kind = media_of(self._job.input)["video"][0]
        field = f"input.video{kind}"
        file = await self._dubbing.read(self._job)
        path = self._directory / "fetched"

        def work(stopped: IsStopped) -> Made:
            import av

            meter = Meter("cpu")
            path.write_bytes(file.data)
            try:
                film = footage.survey(path, self._paid_ms, stopped)
            except NoFilm as error:
                raise InputRefused(field, str(error)) from error
            except (av.FFmpegError, ValueError) as error:
                raise InputRefused(field, "is damaged, or of a kind that is not read") from error
            if film is None:
                raise InputRefused(field, "is longer than maxMinutes")
            if not film.has_sound:
                raise NothingToDub
            return Made(file.data, {"film": asdict(film), "field": field}, meter.read())

        return await self._dubbing.work(work)

    async def _split(self, _: Tell) -> Made:
        """Take the sound out of the film, as speech is heard best: mono."""
        [part] = self._pipeline.finished("split")
        source, path = await self._pipeline.file(part), self._directory / "sound.wav"
        film, field = Film(**part.facts["film"]), part.facts["field"]
        most = (self._paid_ms + SOUND_BEYOND_MS) * SPEECH_RATE // 1000

        def work(stopped: IsStopped) -> Made:
            import av

            meter = Meter("cpu")
            try:
                pieces = soundtrack.pieces(source, SPEECH_RATE, film.zero_s, stopped)
                length = soundtrack.write_speech(path, pieces, most)
            except (av.FFmpegError, ValueError) as error:
                raise InputRefused(
                    field, "has a damaged sound track, or one of a kind that is not read"
                ) from error
            if length is None:
                raise InputRefused(field, "has a sound track longer than maxMinutes")
            if not length:
                raise NothingToDub
            return Made(path.read_bytes(), {"soundMs": length * 1000 // SPEECH_RATE}, meter.read())

        return await self._dubbing.work(work)

    async def _transcribe(self, tell: Tell) -> Made:
        code = {} if self._source is None else {"language": HEARD[self._source]}
        media = {"audio": InputFile("audio/wav", await asyncio.to_thread((await self._sound()).read_bytes))}
        output = await self._ask(
            "transcribe", "audio.transcribe", code, self._job.units_milli + MILLI, media, tell
        )
        [whole] = [each for each in output.media if each.content_type == "application/json"]
        segments = json.loads(whole.data)["segments"]
        return _made(json.dumps(segments).encode(), output)

    def _translation(self, line: Line) -> Make:
        async def make(tell: Tell) -> Made:
            order = {"text": line.text, "targetLanguage": self._target}
            if self._source is not None:
                order["sourceLanguage"] = self._source
            output = await self._ask("translate", "text.translate", order, len(line.text) * MILLI, {}, tell)
            return _made(one_line(output.media[0].data.decode()).encode(), output)

        return make

    def _speech(self, lines: Sequence[Line], texts: Sequence[str], place: int, slot_ms: int) -> Make:
        async def make(tell: Tell) -> Made:
            text = texts[place][:MAX_SPEECH_CHARS]
            if not text:
                return Made(
                    b"", {}, Metrics(0, 0.0, 0)
                )  # nothing of this line has a word in the other language
            order = {"text": text, "language": self._target, "seed": self._seed, "outputFormat": "wav"}
            recording = await self._sound()
            voice = await asyncio.to_thread(soundtrack.excerpt, recording, reference(lines, place))
            # No more than could be heard: the rest would be cut off.
            most_s = min(speech_bound_s(text), int(slot_ms * FASTEST / 1000) + 2)
            media = {"referenceAudio": InputFile("audio/wav", voice)}
            output = await self._ask("speak", "voice.clone", order, most_s * MILLI, media, tell, place)
            return _made(output.media[0].data, output)

        return make

    def _fit(
        self, lines: Sequence[Line], slots: Sequence[int], speeches: Sequence[Path], length_ms: int
    ) -> Make:
        """Bring each line's speech to its time, one after the other on one track."""
        path = self._directory / "voice.wav"

        def work(stopped: IsStopped) -> Made:
            meter = Meter("cpu")
            placements = []
            track = SpeechWriter(path, length_ms)
            for line, slot_ms, speech in zip(lines, slots, speeches, strict=True):
                if stopped():
                    raise soundtrack.Stopped
                placements.append(_place(track, line, slot_ms, speech.read_bytes()))
            track.close()
            return Made(
                path.read_bytes(), {"placements": [asdict(each) for each in placements]}, meter.read()
            )

        return lambda _: self._dubbing.work(work)

    def _mix(
        self, film: Film, lines: Sequence[Line], placed: Sequence[Placement], voice: Path, length_ms: int
    ) -> Make:
        spoken = [line.span for line in lines] + [Span(each.start_ms, each.end_ms) for each in placed]

        async def make(_: Tell) -> Made:
            source, path = await self._film(), self._directory / "mixed.m4a"

            def work(stopped: IsStopped) -> Made:
                meter = Meter("cpu")
                under = None
                if self._job.input["keepBackground"]:
                    under = soundtrack.pieces(source, FILM_RATE, film.zero_s, stopped)
                over = soundtrack.pieces(voice, FILM_RATE, 0.0, stopped)
                soundtrack.mix(under, over, spoken, length_ms, path, stopped)
                return Made(path.read_bytes(), {}, meter.read())

            return await self._dubbing.work(work)

        return make

    def _mux(self, film: Film, mixed: Path, facts: dict[str, Any]) -> Make:
        async def make(_: Tell) -> Made:
            source, path = await self._film(), self._directory / "dubbed.mp4"
            field = self._pipeline.finished("split")[0].facts["field"]

            def work(stopped: IsStopped) -> Made:
                import av

                meter = Meter("cpu")
                try:
                    width, height = footage.join(film, source, mixed, path, sound.tags(facts), stopped)
                except (av.FFmpegError, ValueError) as error:
                    raise InputRefused(
                        field, "has damaged pictures, or some of a kind that is not read"
                    ) from error
                shown = {"width": width, "height": height, "sampleRate": FILM_RATE, "channels": 2}
                pictures = {"pictures": "copied" if film.is_playable else "encoded"}
                return Made(path.read_bytes(), shown | pictures, meter.read())

            return await self._dubbing.work(work)

        return make

    # -- what they share ---------------------------------------------------------------------------------------

    async def _ask(  # noqa: PLR0913, PLR0917  # what a call is made of
        self,
        stage: str,
        task: str,
        order: dict[str, Any],
        units_milli: int,
        media: dict[str, InputFile],
        tell: Tell,
        place: int = 0,
    ) -> Output:
        request = GenerateRequest(f"{self._job.id}.{stage}.{place}", task, order, units_milli, media)
        return await self._dubbing.ask(stage, self._named(PIPELINES[APPLICATION][task]), request, tell)

    async def _film(self) -> Path:
        return await self._pipeline.file(self._pipeline.finished("split")[0])

    async def _sound(self) -> Path:
        return await self._pipeline.file(self._pipeline.finished("split")[1])

    def _facts(
        self,
        made: Sequence[dict[str, Any]],
        lines: Sequence[Line],
        placed: Sequence[Placement],
        length_ms: int,
    ) -> dict[str, Any]:
        """Return what is public of the dub as a whole."""
        models = dict.fromkeys(each["model"] for each in made if "model" in each)
        notices = [each["notice"] for each in made if "notice" in each]
        return {
            "model": " + ".join(models),
            **({"notice": notices[0]} if notices else {}),
            "targetLanguage": self._target,
            "sourceLanguage": self._source or "auto",
            "durationSeconds": round(length_ms / 1000, 3),
            "seed": self._seed,
            "background": "lowered" if self._job.input["keepBackground"] else "left out",
            "lines": len(lines),
            "linesCut": sum(each.is_cut for each in placed),
        }


def _made(data: bytes, output: Output) -> Made:
    notice = {key: value for key, value in output.media[0].facts.items() if key == "notice"}
    return Made(data, {"model": output.model, **notice}, output.metrics)


def _place(track: SpeechWriter, line: Line, slot_ms: int, speech: bytes) -> Placement:
    """Write a line's speech to its place; cut off where even the fastest pace does not fit."""
    if not speech:
        return Placement(line.start_ms, line.start_ms, 1.0, is_cut=False)
    samples = soundtrack.read_speech(speech)
    speech_ms = -(-len(samples) * 1000 // SPEECH_RATE)
    tempo = pace(speech_ms, line.end_ms - line.start_ms, slot_ms)
    samples = soundtrack.stretched(samples, tempo)
    most = slot_ms * SPEECH_RATE // 1000
    is_cut = speech_ms / tempo > slot_ms + 1
    if len(samples) > most:
        samples = soundtrack.cut(samples, most)
    track.put(line.start_ms, samples)
    end_ms = line.start_ms + len(samples) * 1000 // SPEECH_RATE
    return Placement(line.start_ms, end_ms, round(tempo, 3), is_cut)


def _script(
    lines: Sequence[Line], texts: Sequence[str], placed: Sequence[Placement], facts: dict[str, Any]
) -> list[Media]:
    """Return the script as JSON, and the translation as subtitles."""
    whole = {
        **facts,
        "lines": [
            {
                "start": line.start_ms / 1000,
                "end": line.end_ms / 1000,
                "text": line.text,
                "translation": text,
                "spokenUntil": place.end_ms / 1000,
                "tempo": place.tempo,
                "cut": place.is_cut,
            }
            for line, text, place in zip(lines, texts, placed, strict=True)
        ],
    }
    shown = [
        Subtitle(line.start_ms, max(line.end_ms, place.end_ms), text)
        for line, text, place in zip(lines, texts, placed, strict=True)
        if text
    ]
    return [
        Media("application/json", json.dumps(whole, ensure_ascii=False).encode(), facts),
        Media("application/x-subrip", srt(shown), facts),
        Media("text/vtt", vtt(shown, facts.get("notice", "")), facts),
    ]
