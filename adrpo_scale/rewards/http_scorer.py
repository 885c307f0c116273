"""A scorer of one's own behind HTTP: `kind = "http"`.

It is sent {"model": ..., "samples": [...]} by POST, at most `batch` samples at once. A sample has
`prompt`, `row` (the keys of the prompt's row that `row_keys` names), and `completion` or `image`, a
data URL with a PNG. It answers {"scores": [...]}: one number a sample in order, or null, which
abstains.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from adrpo_scale.core.bounds import COUNT
from adrpo_scale.core.json_files import parse_object
from adrpo_scale.core.posting import Again, checked_address, shown_answer
from adrpo_scale.core.settings import REQUIRED, setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.rewards.asked import Asked, AskedConfig, Question, data_url, seen
from adrpo_scale.rewards.verdicts import Verdict, key_of


class HttpScorerConfig(AskedConfig):
    kind: str = setting("http", "a scorer of your own that is sent samples by POST")
    url: str = setting(REQUIRED, "its whole address", min_length=1, effect="none")
    model: str = setting(
        "", "sent as `model`: another name is another scorer, another address is not"
    )
    row_keys: list[str] = setting([], "keys of the prompt's row that are sent with each sample")
    batch: int = setting(8, "samples of one request", effect="none", ge=1, le=COUNT)


class HttpScorer(Asked):
    """The numbers that a server gives samples."""

    Config: ClassVar[type[HttpScorerConfig]] = HttpScorerConfig

    def __init__(self, config: HttpScorerConfig, device: Any) -> None:
        self.config = config
        label = f"reward {config.label}"
        url = checked_address(config.url, f"{label}: url", f"the variable that {label}.key names")
        super().__init__(config, url, "the server's own log", config.batch)

    def question(self, artifact: Any, prompt: Prompt) -> Question:
        row = {key: prompt.metadata.get(key) for key in self.config.row_keys}
        if isinstance(artifact, np.ndarray):
            about = {"picture": seen(artifact)}
        else:
            about = {"completion": str(artifact)}
        key = key_of(["http", self.config.model, prompt.text, row, about])
        return Question(key, (prompt.text, row, artifact))

    def body(self, questions: Sequence[Question]) -> bytes:
        samples = []
        for text, row, artifact in (one.content for one in questions):
            sample = {"prompt": text, "row": row}
            if isinstance(artifact, np.ndarray):
                samples.append(sample | {"image": data_url(artifact)})
            else:
                samples.append(sample | {"completion": str(artifact)})
        return json.dumps({"model": self.config.model, "samples": samples}).encode()

    def read(self, response: bytes, count: int) -> list[Verdict]:
        try:
            scores = parse_object(response, strict=True)["scores"]
        except (ValueError, KeyError):
            scores = None
        is_list = isinstance(scores, list) and all(
            one is None or (isinstance(one, int | float) and not isinstance(one, bool))
            for one in scores
        )
        if not is_list or len(scores) != count:
            raise Again(
                f'expected {{"scores": [...]}} with {count} numbers or null, and it answered '
                f"{shown_answer(response)!r}"
            )
        return [Verdict(None if one is None else float(one)) for one in scores]
