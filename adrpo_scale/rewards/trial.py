"""A call of a reward on made-up samples, before anything heavy begins.

It refuses what no sample could mend: a coroutine, another number of values, texts in the place of
numbers. An exception is a warning alone, because a reward may need real samples.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

from adrpo_scale.core.errors import RewardError
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.rewards.base import Reward
from adrpo_scale.rewards.calls import NoNumber, checked

SAMPLES = 3  # so that a pair (scores, info) is not taken for one number a sample


def made_up(medium: str, prompts: Sequence[Prompt], size: tuple[int, int]) -> list[Any]:
    """Artifacts of a medium, one for each prompt. size: height and width of pictures."""
    if medium == "pictures":
        generator = np.random.default_rng(0)
        return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in prompts]
    text = "<think>This is made up.</think><answer>1</answer>"
    return [Completion(text, tuple(range(8)), True) for _ in prompts]


def tried(reward: Reward, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> str:
    """Calls a reward on made-up samples; returns a warning, or "". Raises RewardError where its
    answer cannot be read."""
    try:
        scores = checked(reward, artifacts, prompts)
    except RewardError:
        raise
    except NoNumber as error:
        raise RewardError(
            f"reward {reward.label} gave {error} for made-up samples; a number or None is expected "
            "for each sample"
        ) from error
    except (Exception, SystemExit) as error:
        return tried_in_vain(reward.label, f"raised {error!r}{_place(error)}")
    if bool((scores.values_N.isfinite() | scores.abstained_N).any()):
        return ""
    fault = next(filter(None, scores.faults_N), "")
    if reward.is_deserted and not reward.resumes:
        raise RewardError(
            f"reward {reward.label} {fault}; start its server before the run, or correct its "
            "address"
        )
    if fault:
        return tried_in_vain(reward.label, fault)
    return f"reward {reward.label} gave no finite number for made-up samples: it may need real ones"


def tried_in_vain(label: str, how: str) -> str:
    """The warning of a reward whose call on made-up samples failed. how: after its name."""
    return (
        f"reward {label} {how} on made-up samples: it may need real ones; samples on which it "
        "fails are masked"
    )


def _place(error: BaseException) -> str:
    """The line of code that raised, of the last file in the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
