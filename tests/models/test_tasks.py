"""From the published request to the file: the surface, the books, the Runner and the real pipelines on tiny weights.

The source picture comes over TLS from a host that only this test's resolver knows.
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import pytest_asyncio
import soundfile
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from deployments.models import registry, sound
from deployments.models.contract import TINY_NOTICE, Metrics, Output
from deployments.models.server import ModelServer
from deployments.runner import Runner
from gateway.app import create_app
from kit.fetch import Fetcher
from kit.settings import Settings
from kit.storage import ObjectStore

pytestmark = pytest.mark.timeout(300)

HOST = "cdn.example.com"
SOURCE = "https://cdn.example.com/input/source.webp"


class Models:
    """Starts the model of an application in this process when it is first called."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        self.servers: dict[str, ModelServer] = {}

    async def generate(self, application, request):
        if application not in self.servers:
            self.servers[application] = await asyncio.to_thread(
                ModelServer, application, "tiny", str(self.models_dir)
            )
        async for event in self.servers[application].generate(request):
            yield event

    async def states(self):
        return {}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest_asyncio.fixture
async def customer(db, fresh_url, tmp_path, customers, models, assert_sound):  # noqa: PLR0917
    """A customer with a client; the Runner works beside."""
    theirs, ours = certificate(tmp_path)
    picture = io.BytesIO()
    Image.radial_gradient("L").resize((320, 180)).convert("RGB").save(picture, "WEBP")

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(picture.getvalue())}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + picture.getvalue())
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=theirs)
    port = listening.sockets[0].getsockname()[1]

    class Near(Fetcher):
        """Goes to the test's own port where the URL names none."""

        async def fetch(self, url, field, *, max_bytes, check):
            return await super().fetch(
                url.replace(HOST, f"{HOST}:{port}"), field, max_bytes=max_bytes, check=check
            )

    async def resolve(host, _port):
        assert host == HOST
        return [ip_address("127.0.0.1")]

    settings = Settings(
        database_url=fresh_url,
        data_dir=tmp_path,
        secret="a secret of this run",
        public_url="http://farebox.test",
    )
    server = LedgerServer(settings)
    objects = ObjectStore("memory://")

    async def call(method, *args):
        return await getattr(server, method)(*args)

    places = {entry.application: 1 for entry in registry.ENTRIES} | dict.fromkeys(registry.PIPELINES, 1)
    fetcher = Near(resolve=resolve, may_connect=lambda _: True, tls=ours)
    runner = asyncio.create_task(Runner(settings, call, models, objects, [], places, fetcher=fetcher).run())
    async with db.transaction() as conn:
        owner = await customers(conn, 10_000)
    app = create_app(settings, local_ledger(server), models, None, objects)
    async with (
        listening,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://farebox.test",
            headers={"x-api-key": owner.secret},
        ) as client,
    ):
        yield client
    runner.cancel()
    await asyncio.wait([runner])
    await assert_sound(db)
    await server.close()


async def result(client: httpx.AsyncClient, task: str, **job_input: object) -> tuple[dict, list[bytes]]:
    """Submit a job, wait for its end, and download what it made."""
    accepted = await client.post("/api/v1/media/jobs", json={"task": task, "input": job_input})
    assert accepted.status_code == 202, accepted.text
    async with asyncio.timeout(240):
        while (job := (await client.get(accepted.json()["urls"]["get"])).json())["finishedAt"] is None:
            await asyncio.sleep(0.1)
    assert job["status"] == "succeeded", job
    files = [await client.get(output["url"]) for output in job["output"]]
    for file, output in zip(files, job["output"], strict=True):
        assert file.headers["content-type"].partition(";")[0] == output["contentType"]
    return job, [file.content for file in files]


async def test_the_published_picture(customer):
    job, [data] = await result(
        customer, "image.generate", prompt="cinematic fox astronaut", aspectRatio="1:1"
    )
    assert Image.open(io.BytesIO(data)).size == (256, 256)
    assert (job["output"][0]["width"], job["cost"]["chargedTokens"]) == (256, 100)


async def test_the_published_edit(customer):
    job, [data] = await result(
        customer,
        "image.edit",
        prompt="turn this scene into a dramatic noir poster",
        sourceImageUrl=SOURCE,
        aspectRatio="9:16",
    )
    assert Image.open(io.BytesIO(data)).size == (144, 256)
    assert job["cost"]["chargedTokens"] == 100


async def test_the_published_film(customer):
    job, [data] = await result(
        customer,
        "video.generate",
        prompt="slow cinematic push-in with floating particles",
        sourceImageUrl=SOURCE,
        durationSeconds=6,
        aspectRatio="16:9",
    )
    with av.open(io.BytesIO(data)) as film:
        assert film.duration == 6 * av.time_base
        assert {stream.codec_context.name for stream in film.streams} == {"h264", "aac"}
        assert sum(1 for _ in film.decode(video=0)) == 144
    assert (job["output"][0]["durationSeconds"], job["output"][0]["fromImage"]) == (6, True)
    assert job["cost"]["chargedTokens"] == 600


async def test_music_and_a_sound_effect(customer):
    for task, tokens in (("music.generate", 6), ("sfx.generate", 9)):
        job, [data] = await result(customer, task, prompt="rain", durationSeconds=3, outputFormat="flac")
        samples, rate = soundfile.read(io.BytesIO(data))
        assert len(samples) == 3 * rate
        assert job["cost"]["chargedTokens"] == tokens


async def test_a_transcript_is_charged_by_the_length_of_the_recording(customer):
    job, [sound] = await result(
        customer, "sfx.generate", prompt="a voice", durationSeconds=7, outputFormat="mp3"
    )
    upload = {"file": ("voice.mp3", sound, "audio/mpeg")}
    file_id = (await customer.post("/api/v1/files", files=upload)).json()["id"]
    job, files = await result(customer, "audio.transcribe", audioFileId=file_id, language="en")
    assert [output["contentType"] for output in job["output"]] == [
        "application/json",
        "application/x-subrip",
        "text/vtt",
    ]
    assert files[2].startswith(b"WEBVTT")
    assert (job["cost"]["quotedTokens"], job["cost"]["chargedTokens"]) == (100, 2)


async def test_a_translation_stands_in_the_answer(customer):
    job, [data] = await result(customer, "text.translate", text="Hello.", targetLanguage="French")
    assert job["output"][0]["text"] == data.decode() != ""
    assert job["cost"]["chargedTokens"] == 1


class StandInVoice:
    """Speaks a second of noise: the real family runs in an environment of its own (tests/models/test_qwen3_tts.py)."""

    def generate(self, request, on_progress, is_canceled):
        heard = sound.decode(request.media["referenceAudio"], "referenceAudioUrl", 24_000, 60)
        assert len(heard) >= 24_000
        samples = np.random.default_rng(request.input["seed"]).uniform(-0.3, 0.3, (1, 24_000))
        media = sound.finished(samples, 24_000, request.input["outputFormat"], {})
        return Output([media], Metrics(1, 0.0, 1), "Qwen3-TTS", 1_000)


async def test_a_film_is_dubbed_by_the_tiny_transcription_and_translation(customer, models):
    models.servers["voice"] = ModelServer("voice", "tiny", "", family=StandInVoice())
    _, [film] = await result(customer, "video.generate", prompt="a talk", durationSeconds=2, seed=1)
    upload = {"file": ("talk.mp4", film, "video/mp4")}
    file_id = (await customer.post("/api/v1/files", files=upload)).json()["id"]
    job, files = await result(
        customer,
        "video.dub",
        videoFileId=file_id,
        targetLanguage="French",
        sourceLanguage="English",
        maxMinutes=1,
    )
    assert [stage["state"] for stage in job["stages"]] == ["done"] * 7
    assert job["stage"] is None
    with av.open(io.BytesIO(files[0])) as dubbed, av.open(io.BytesIO(film)) as original:
        assert {stream.codec_context.name for stream in dubbed.streams} == {"h264", "aac"}
        assert dubbed.duration == original.duration
        shown = [[frame.to_ndarray() for frame in each.decode(video=0)] for each in (dubbed, original)]
        assert np.array_equal(*shown)
    facts = job["output"][0]
    assert (facts["notice"], facts["background"]) == (TINY_NOTICE, "lowered")
    assert json.loads(files[1])["lines"]
    assert files[3].startswith(b"WEBVTT")
    assert (job["cost"]["quotedTokens"], job["cost"]["chargedTokens"]) == (200, 7)  # two seconds of a minute


def certificate(place: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's and a client's TLS contexts for the host of the published requests."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = made.public_bytes(serialization.Encoding.PEM)
    (place / "server.pem").write_bytes(private + public)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(place / "server.pem")
    return server, ssl.create_default_context(cadata=public.decode())
