"""The real Qwen-Image family, with moods that a test asks for by the prompt. Replicas import it by its name."""

from __future__ import annotations

import time

from deployments.models.contract import GenerateRequest, Media, Metrics, ModelCanceled, Output, Progress
from deployments.models.qwen_image import QwenImage
from kit.settings import load_settings

LONG_STEPS = 600
STEP_S = 0.05


class Moody:
    """`fail ...` always raises, `quick ...` answers at once, `long-once ...` takes 30 s the first time only."""

    def __init__(self, inner):
        self._inner = inner
        self._marks = load_settings().data_dir / "moods"
        self._marks.mkdir(exist_ok=True)

    @classmethod
    def load(cls, weights, placement):
        return cls(QwenImage.load(weights, placement))

    @staticmethod
    def build_tiny(directory, seed):
        QwenImage.build_tiny(directory, seed)

    def generate(self, request: GenerateRequest, on_progress, is_canceled) -> Output:
        mood = request.input["prompt"].partition(" ")[0]
        if mood == "fail":
            raise RuntimeError("in a bad mood")
        if mood == "long-once":
            mark = self._marks / request.job_id
            if not mark.exists():
                mark.touch()
                for step in range(LONG_STEPS):
                    if is_canceled():
                        (self._marks / f"{request.job_id}.stopped").touch()
                        raise ModelCanceled
                    on_progress(Progress((step + 1) / LONG_STEPS, step + 1, LONG_STEPS))
                    time.sleep(STEP_S)
            return quick()
        if mood == "short-long":  # long enough that a test sees it run
            for step in range(40):
                on_progress(Progress((step + 1) / 40, step + 1, 40))
                time.sleep(STEP_S)
            return quick()
        if mood == "quick":
            return quick()
        return self._inner.generate(request, on_progress, is_canceled)


def quick() -> Output:
    return Output([Media("image/png", b"\x89PNG quick", {})], Metrics(1, 0.0, 1), "Moody")
