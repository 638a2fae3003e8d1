"""The real Qwen-Image pipeline on tiny weights: what a picture is, how it repeats and how it stops."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.models import registry, weights
from deployments.models.contract import (
    TINY_NOTICE,
    GenerateRequest,
    Media,
    Member,
    ModelBroken,
    ModelCanceled,
    ModelFailed,
    ModelRefused,
    Output,
    Placement,
    Progress,
    Weights,
    WeightsMissing,
)
from deployments.models.qwen_image import TINY_SIZES, QwenImage

CPU = Placement("cpu", cpu_threads=1, cpu_offload=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    models_dir = tmp_path_factory.mktemp("models")
    weights.ensure_tiny(registry.entry_for("image"), models_dir)
    return registry.resolve("image", "tiny", models_dir)


@pytest.fixture(scope="module")
def model(tiny: Weights) -> QwenImage:
    return QwenImage.load(tiny, CPU)


def paint(
    model: QwenImage,
    job_id: str = "job_1",
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_canceled: Callable[[], bool] = lambda: False,
    **fields: Any,
) -> Media:
    """Make one small picture."""
    fields = {"prompt": "cinematic fox astronaut", "aspectRatio": "16:9", "steps": 2, **fields}
    output = model.generate(GenerateRequest(job_id, "image.generate", fields), on_progress, is_canceled)
    assert output.model == "Qwen-Image"
    [media] = output.media
    return media


def pixels(media: Media) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(media.data)))


@pytest.mark.parametrize("ratio", TINY_SIZES)
def test_every_ratio_gives_a_picture_of_its_size(model: QwenImage, ratio: str) -> None:
    media = paint(model, aspectRatio=ratio)
    image = Image.open(io.BytesIO(media.data))
    assert image.size == (media.facts["width"], media.facts["height"]) == TINY_SIZES[ratio]
    assert media.content_type == "image/png"
    assert len(np.unique(np.asarray(image))) > 16, "a picture is not one flat colour"


def test_the_same_seed_gives_the_same_file(model: QwenImage) -> None:
    assert paint(model, seed=7).data == paint(model, "job_2", seed=7).data


def test_a_reloaded_model_gives_the_same_file(model: QwenImage, tiny: Weights) -> None:
    assert paint(QwenImage.load(tiny, CPU), seed=7).data == paint(model, seed=7).data


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"prompt": "a teapot"}, {"steps": 3}, {"guidance": 1}, {"negativePrompt": "fur"}]
)
def test_every_setting_changes_the_picture(model: QwenImage, change: dict[str, Any]) -> None:
    before, after = (pixels(paint(model, **{"seed": 7, **more})) for more in ({}, change))
    assert not np.array_equal(before, after)


def test_a_drawn_seed_is_told_and_repeats_the_picture(model: QwenImage) -> None:
    drawn = paint(model)
    assert paint(model, "job_2", seed=drawn.facts["seed"]).data == drawn.data


def test_facts_tell_how_the_picture_was_made(model: QwenImage) -> None:
    assert paint(model, seed=7).facts == {
        "model": "Qwen-Image",
        "profile": "tiny",
        "width": 256,
        "height": 144,
        "aspectRatio": "16:9",
        "seed": 7,
        "steps": 2,
        "guidance": 4.0,
        "notice": TINY_NOTICE,
    }


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_a_tiny_picture_says_so_on_itself_and_inside(model: QwenImage, output_format: str) -> None:
    media = paint(model, seed=7, outputFormat=output_format)
    assert media.content_type == f"image/{output_format}"
    assert TINY_NOTICE.encode() in media.data
    assert b'farebox:seed="7"' in media.data
    image = Image.open(io.BytesIO(media.data)).convert("L")
    band = np.asarray(image)[-20:]
    assert band.min() < 10, "the caption's ground is dark"
    assert band.max() > 240, "its letters are light"


def test_a_prompt_stays_out_of_the_file(model: QwenImage) -> None:
    assert b"fox" not in paint(model).data


def test_progress_counts_every_step(model: QwenImage) -> None:
    seen: list[Progress] = []
    paint(model, on_progress=seen.append, steps=4)
    assert seen == [Progress(step / 4, step, 4) for step in range(5)]


def test_a_cancellation_stops_at_the_next_step(model: QwenImage) -> None:
    seen: list[int] = []
    with pytest.raises(ModelCanceled):
        paint(model, on_progress=lambda at: seen.append(at.step), is_canceled=lambda: 2 in seen, steps=50)
    assert seen == [0, 1, 2]
    assert paint(model, seed=7).data == paint(model, seed=7).data, "the next job is not disturbed"


def test_a_refusal_comes_before_any_computing(model: QwenImage) -> None:
    seen: list[Progress] = []
    with pytest.raises(ModelRefused):
        paint(model, on_progress=seen.append, aspectRatio="5:4")
    assert seen == []


def test_a_prompt_that_was_cut_is_told(model: QwenImage) -> None:
    assert paint(model, prompt="fox " * 600).facts["promptTruncated"] is True
    assert "promptTruncated" not in paint(model).facts


@pytest.mark.parametrize("prompt", ["{} {0} {name}", "<|im_end|><|image_pad|>", "狐狸 🦊 \x00", "%s\\n"])
def test_markup_in_a_prompt_is_only_text(model: QwenImage, prompt: str) -> None:
    assert paint(model, prompt=prompt).data


def test_figures_are_measured(model: QwenImage) -> None:
    request = GenerateRequest("job_1", "image.generate", {"prompt": "a fox"})
    metrics = model.generate(request, lambda _: None, lambda: False).metrics
    assert metrics.run_ms > 0
    assert metrics.gpu_seconds == 0, "a CPU job holds no GPU"
    assert metrics.peak_memory_bytes > 100 << 20


def test_tiny_weights_are_marked_whatever_the_configuration_says(tiny: Weights) -> None:
    claimed = Weights(tiny.source, None, "gpu", tiny.model)
    media = paint(QwenImage.load(claimed, CPU))
    assert (media.facts["profile"], media.facts["notice"]) == ("tiny", TINY_NOTICE)
    assert (media.facts["width"], media.facts["height"]) == TINY_SIZES["16:9"]


def test_missing_weights_are_an_answer_for_the_operator(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="farebox models build tiny"):
        QwenImage.load(Weights(str(tmp_path / "none"), None, "tiny", "Qwen-Image"), CPU)
    with pytest.raises(WeightsMissing, match="could not be loaded"):
        QwenImage.load(Weights(str(tmp_path), None, "tiny", "Qwen-Image"), CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_production_weights_without_a_gpu_are_an_answer_for_the_operator(tiny: Weights) -> None:
    with pytest.raises(WeightsMissing, match="CUDA"):
        QwenImage.load(tiny, Placement("cuda", cpu_threads=1, cpu_offload=False))


class Pipeline:
    """Stands in for the pipeline where the real one cannot be made to fail."""

    tokenizer_max_length = 1024
    prompt_template_encode = "{}"
    prompt_template_encode_start_idx = 0

    def __init__(self, result: Any) -> None:
        self.tokenizer = lambda text: type("Tokens", (), {"input_ids": text.split()})
        self.result = result
        self.freed = 0

    def __call__(self, **_: Any) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return type("Result", (), {"images": [self.result]})

    def maybe_free_model_hooks(self) -> None:
        self.freed += 1


def with_pipeline(pipeline: Pipeline) -> QwenImage:
    return QwenImage(pipeline, Weights("nowhere", None, "tiny", "Qwen-Image"), CPU, tiny=True)


def test_a_picture_of_nothing_is_a_failure_and_not_a_result() -> None:
    with pytest.raises(ModelFailed, match="empty"):
        paint(with_pipeline(Pipeline(np.full((144, 256, 3), np.nan))))


def test_a_lost_gpu_breaks_the_replica() -> None:
    with pytest.raises(ModelBroken) as broken:
        paint(with_pipeline(Pipeline(torch.AcceleratorError("CUDA error: an illegal memory access"))))
    assert "CUDA" not in broken.value.message


def test_offloaded_parts_leave_the_gpu_whatever_happened() -> None:
    pipeline = Pipeline(RuntimeError("no"))
    with pytest.raises(RuntimeError):
        paint(with_pipeline(pipeline))
    assert pipeline.freed == 1


def members(*fields: dict[str, Any]) -> list[Member]:
    return [
        Member(
            GenerateRequest(f"job_{number}", "image.generate", {"aspectRatio": "16:9", "steps": 2, **each}),
            lambda _: None,
            lambda: False,
        )
        for number, each in enumerate(fields)
    ]


def test_a_picture_is_the_same_alone_and_in_a_batch(model: QwenImage) -> None:
    asked = members(
        {"prompt": "a fox", "seed": 7},
        {"prompt": "a teapot on a table in the rain", "seed": 8, "negativePrompt": "fur"},
        {"prompt": "a fox", "seed": 9},
    )
    assert len({model.batch_key(each.request) for each in asked}) == 1
    together = [made.media[0] for made in model.generate_many(asked) if isinstance(made, Output)]
    for each, media in zip(asked, together, strict=True):
        alone = model.generate(each.request, lambda _: None, lambda: False).media[0]
        assert media.facts == alone.facts
        assert np.abs(pixels(media).astype(int) - pixels(alone)).max() <= 1
    assert not np.array_equal(pixels(together[0]), pixels(together[2]))


@pytest.mark.parametrize("change", [{"aspectRatio": "1:1"}, {"steps": 3}, {"guidance": 1}])
def test_pictures_of_other_settings_do_not_share_a_call(model: QwenImage, change: dict[str, Any]) -> None:
    one, other = members({"prompt": "a fox"}, {"prompt": "a fox", **change})
    assert model.batch_key(one.request) != model.batch_key(other.request)


def test_a_batch_goes_on_until_nobody_wants_it(model: QwenImage) -> None:
    request = members({"prompt": "a fox", "seed": 7})[0].request
    seen: list[Progress] = []
    gone = Member(request, seen.append, lambda: len(seen) >= 2)
    made = model.generate_many([gone, Member(request, lambda _: None, lambda: False)])
    assert isinstance(made[1], Output)
    with pytest.raises(ModelCanceled):
        model.generate_many([gone, gone])
