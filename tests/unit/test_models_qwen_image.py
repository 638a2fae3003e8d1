"""What an `image.generate` input may say. No tensor library is needed to check it."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.models.contract import GenerateRequest, ModelRefused
from deployments.models.fields import MAX_SEED
from deployments.models.qwen_image import (
    FIELDS,
    MAX_PROMPT_CHARS,
    MAX_STEPS,
    MIN_STEPS,
    SIZES,
    TINY_SIZES,
    ImageOrder,
)


def read(job: str = "job_1", /, **fields: Any) -> ImageOrder:
    return ImageOrder.read(GenerateRequest(job, "image.generate", {"prompt": "a fox", **fields}), tiny=False)


def test_the_documented_request_is_enough() -> None:
    order = read(prompt="cinematic fox astronaut", aspectRatio="1:1")
    assert (order.width, order.height, order.steps, order.guidance) == (1328, 1328, 50, 4.0)
    assert order.output_format == "png"


def test_both_profiles_offer_the_same_ratios() -> None:
    assert list(SIZES) == list(TINY_SIZES) == ["1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3"]


@pytest.mark.parametrize("ratio", SIZES)
def test_sizes_are_whole_latent_patches_of_the_ratio_they_name(ratio: str) -> None:
    wide, high = (int(part) for part in ratio.split(":"))
    for width, height in (SIZES[ratio], TINY_SIZES[ratio]):
        assert width % 16 == height % 16 == 0
        assert math.isclose(width / height, wide / high, rel_tol=0.01)
    assert Fraction(*TINY_SIZES[ratio]) == Fraction(wide, high)


def test_without_a_seed_a_second_attempt_makes_the_same_picture() -> None:
    assert read("job_1") == read("job_1")
    assert read("job_1").seed != read("job_2").seed


def test_a_null_is_no_value() -> None:
    assert read(**dict.fromkeys(FIELDS - {"prompt"})) == read()


def test_guidance_works_without_a_negative_prompt() -> None:
    assert read().negative_prompt == " "
    assert read(negativePrompt="  ").negative_prompt == " "
    assert read(negativePrompt=" blur ").negative_prompt == "blur"


def test_guidance_one_is_no_guidance() -> None:
    assert read(guidance=1).negative_prompt is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", " \n"),
        ("prompt", None),
        ("prompt", 7),
        ("prompt", "x" * (MAX_PROMPT_CHARS + 1)),
        ("prompt", "half a pair \ud800"),
        ("negativePrompt", ["blur"]),
        ("aspectRatio", "1:2"),
        ("aspectRatio", ["1:1"]),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("seed", True),
        ("seed", 1.0),
        ("seed", "7"),
        ("steps", 1),  # the scheduler divides zero by zero
        ("steps", MAX_STEPS + 1),
        ("guidance", 0.5),
        ("guidance", float("nan")),
        ("guidance", float("inf")),
        ("guidance", 10**400),
        ("guidance", False),
        ("outputFormat", "gif"),
        ("outputQuality", 80),  # png loses nothing
        ("aspect_ratio", "1:1"),
    ],
)
def test_a_value_that_cannot_be_served_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ModelRefused) as refusal:
        read(**{field: value})
    assert refusal.value.field == field


@pytest.mark.parametrize("quality", [0, 101, True, "80", 80.5])
def test_a_quality_is_a_whole_number_from_1_to_100(quality: object) -> None:
    with pytest.raises(ModelRefused, match="outputQuality"):
        read(outputFormat="jpeg", outputQuality=quality)
    assert read(outputFormat="jpeg", outputQuality=1).output_quality == 1


def test_a_negative_prompt_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(ModelRefused, match="negativePrompt"):
        read(guidance=1, negativePrompt="blur")


words = st.text(st.sampled_from("ab \n\0\ud800"), max_size=4)
junk = st.none() | st.booleans() | st.integers() | st.floats() | words | st.lists(st.integers(), max_size=2)


@given(
    st.fixed_dictionaries(
        {"prompt": words | junk},
        optional={
            "negativePrompt": words | junk,
            "aspectRatio": st.sampled_from(sorted(SIZES)) | junk,
            "seed": st.integers(-1, MAX_SEED + 1) | junk,
            "steps": st.integers(0, MAX_STEPS + 1) | junk,
            "guidance": st.floats(0, 11) | junk,
            "outputFormat": st.sampled_from(["png", "webp", "jpeg", "gif"]) | junk,
            "outputQuality": st.integers(0, 101) | junk,
        },
    ),
    st.booleans(),
)
def test_any_input_is_within_limits_or_refused(fields: dict[str, Any], tiny: bool) -> None:
    try:
        order = ImageOrder.read(GenerateRequest("job_1", "image.generate", fields), tiny=tiny)
    except ModelRefused:
        return
    assert order.prompt.strip()
    assert MIN_STEPS <= order.steps <= MAX_STEPS
    assert 0 <= order.seed <= MAX_SEED
    assert 1 <= order.guidance <= 10
    assert (order.width, order.height) in (TINY_SIZES if tiny else SIZES).values()
