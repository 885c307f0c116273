"""Warnings about an iteration: each names its condition, and a remedy that the run's settings have
not taken yet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adrpo_scale.algorithms.base import Algorithm
from adrpo_scale.algorithms.regulariser import ControllerConfig
from adrpo_scale.core.errors import given
from adrpo_scale.engines.base import OptimizerConfig
from adrpo_scale.training.guidance import FINER_REWARD, MORE_DRAWS, MORE_SAMPLES, NOISE
from adrpo_scale.training.limits import LimitsConfig

MANY_DEGENERATE = 0.5
MANY_TRUNCATED = 0.5
LARGE_DIVERGENCE = 1.0  # nats per token, or squared velocity per latent element, whose size is 1
NO_ENTROPY = 0.003  # nats per token: all but one of 3000 tokens are the likeliest one

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """The settings of a run that warnings depend on. domain: its config. controller: of beta0; None
    where it stays."""

    algorithm: Algorithm
    domain: Any
    optimizer: OptimizerConfig
    limits: LimitsConfig
    controller: ControllerConfig | None = None

    @property
    def masks_truncated(self) -> bool:
        return bool(getattr(self.domain, "mask_truncated", False))

    def of_algorithm(self, name: str) -> Any:
        """A setting of the algorithm; None where it has no such setting."""
        return getattr(self.algorithm.config, name, None)

    def of_rollout(self, name: str) -> Any:
        """A setting of [domain.rollout]; None where the domain has no such setting."""
        return getattr(getattr(self.domain, "rollout", None), name, None)


def warnings_of(
    record: Record, settings: Settings, signal: float | None = None
) -> Iterator[tuple[str, str]]:
    """(kind, text) of each warning about an iteration. record: its line of metrics.jsonl. signal:
    of `gradient_signal.Recent`."""
    nothing = why_nothing(record, settings)
    if nothing is not None:
        yield "nothing learned", f"nothing was learned: {nothing}"
    else:
        yield from _of_advantages(record, settings)
        yield from _of_truncation(record, settings)
        yield from _of_signal(record, settings, signal)
    yield from _of_masks(record)
    yield from _of_divergence(record, settings)
    yield from _of_entropy(record, settings)


def why_nothing(record: Record, settings: Settings) -> str | None:
    """Why an iteration taught the policy nothing, with the remedy; None where it did."""
    applied = record["updates"] - record["updates_skipped"]
    if record["updates_skipped"] and not applied:
        size = record["grad_norm"]
        if math.isfinite(size):
            return f"the engine took no step: their mean gradient norm was {size:.3g}"
        return "no gradient was finite: lower optimizer.learning_rate, or look at the rewards"
    if record["reward"] is None:
        return "every sample is masked; see the other warnings"
    cut = record.get("truncated", 0.0)
    if settings.masks_truncated and cut > MANY_TRUNCATED and not applied:
        return (
            f"{cut:.0%} of the completions were cut off at domain.rollout.max_new_tokens = "
            f"{settings.of_rollout('max_new_tokens')}, and domain.mask_truncated = true leaves "
            "them out: raise max_new_tokens, or set mask_truncated = false"
        )
    # Such gradients are rounding errors, which Adam scales up to steps of full length. Only a sum
    # of rewards can be equal where its parts, normalised one by one, are not.
    if record["degenerate_groups"] == 1 and settings.of_algorithm("combine") != "normalise_each":
        return f"no group has two samples of different rewards; {_finer(record)}"
    if not applied:
        return (
            f"{settings.algorithm.config.name} chose none of the {record['samples']} samples; "
            "choose a finer reward, or raise prompts.group_size"
        )
    if record["grad_norm"] == 0:
        return "every gradient was 0; look at the rewards and at the betas in metrics.jsonl"
    return None


def _finer(record: Record) -> str:
    """The remedy for groups of equal rewards."""
    if record.get("entropy", 1.0) < NO_ENTROPY:
        return "their completions are copies, because the policy has no entropy left"
    if not record["reward_std"]:
        every = f"every sample has {record['reward']:.4g}"
        return f"{every}: choose a finer reward, or prompts that are sometimes solved"
    return "choose a finer reward, raise prompts.group_size, or take prompts that differ less"


def _of_advantages(record: Record, settings: Settings) -> Iterator[tuple[str, str]]:
    algorithm, size = settings.algorithm, record["advantage_abs_mean"]
    # Where every sample is masked, that is the fault, and other groups would not fix it.
    if size is None:
        return
    degenerate = record["degenerate_groups"]
    scale, small = settings.of_algorithm("scale"), algorithm.small_advantage
    if degenerate > MANY_DEGENERATE:
        yield (
            "degenerate groups",
            f"{degenerate:.0%} of the groups have equal rewards or fewer than two samples left: "
            f"{algorithm.when_equal}; {_finer(record)}",
        )
    elif size < small:
        known = "" if scale == "none" else f", although algorithm.scale = {scale!r}"
        other = ', or set algorithm.scale = "group_std"' if scale == "none" else ""
        yield (
            "small advantages",
            f"mean |A| is {size:.3g}, below {small}{known}: almost nothing is learned. Give "
            f"rewards on a scale of 0 to 100{other}",
        )


def _of_signal(
    record: Record, settings: Settings, signal: float | None
) -> Iterator[tuple[str, str]]:
    optimizer = settings.optimizer
    if signal is None or signal >= NOISE:
        return
    ways = [MORE_SAMPLES]
    if settings.of_rollout("max_new_tokens") is None:  # tokens have one draw
        ways.append(f"{MORE_DRAWS} (now {optimizer.draws_per_sample})")
    samples = record["samples"] // optimizer.minibatches
    yield (
        "noise",
        f"the gradient is noise: its signal is {max(0.0, signal):.2g} of 1 (mean of "
        "gradient_signal over the last iterations), and the reward has not risen clearly. A step "
        f"of {samples} samples goes nearly anywhere. {'; '.join(ways).capitalize()}; or "
        f"{FINER_REWARD}. The same is seen where a run has come to rest, reward and divergence in "
        "balance",
    )


def _of_truncation(record: Record, settings: Settings) -> Iterator[tuple[str, str]]:
    cut = record.get("truncated", 0.0)
    if cut <= MANY_TRUNCATED:
        return
    longest = settings.of_rollout("max_new_tokens")
    text = f"{cut:.0%} of the completions were cut off: raise domain.rollout.max_new_tokens"
    text += "" if longest is None else f" (now {longest})"
    if settings.masks_truncated:
        text += "; domain.mask_truncated = true leaves all of these out of the loss"
    elif cut < 1:  # otherwise nothing would be left to train on
        text += ", or set domain.mask_truncated = true"
    yield "truncated", text


def _of_masks(record: Record) -> Iterator[tuple[str, str]]:
    unscored = record.get("unscored", 0)
    failed = record["masked"] - unscored
    if failed:
        yield "masked", f"{failed} samples are masked because a reward failed; see logs/"
    if unscored:
        yield (
            "unscored",
            f"{unscored} samples are masked because every reward abstained (None): give each kind "
            "of prompt a reward that scores it",
        )


def _of_divergence(record: Record, settings: Settings) -> Iterator[tuple[str, str]]:
    """Warns of a policy far from the reference, unless [limits] states how far it may go."""
    divergence = record["divergence"] or 0.0
    if divergence <= LARGE_DIVERGENCE or settings.limits.max_divergence is not None:
        return
    hold = _hold(record, settings).capitalize()
    yield (
        "large divergence",
        f"divergence {divergence:.3g} is above {LARGE_DIVERGENCE:g}: the policy has little in "
        f"common with the reference. {hold}; or set limits.max_divergence, at which a run stops",
    )


def _of_entropy(record: Record, settings: Settings) -> Iterator[tuple[str, str]]:
    entropy = record.get("entropy")
    if entropy is None or entropy >= NO_ENTROPY:
        return
    bonus, temperature = settings.of_algorithm("entropy_coef"), settings.of_rollout("temperature")
    more = ["set algorithm.entropy_coef, e.g. 0.01"] if bonus == 0 else []
    more += [f"raise algorithm.entropy_coef (now {bonus:g})"] if bonus else []
    if temperature is not None and temperature < 1:
        more.append(f"raise domain.rollout.temperature (now {temperature:g})")
    yield (
        "no entropy",
        f"entropy {entropy:.2g} nats per token: the samples of a group are copies, and nothing new "
        f"is found. Start from an earlier checkpoint (--init-from RUN@ITERATION): "
        f"{_hold(record, settings)}{''.join(f'; {text}' for text in more)}",
    )


def _hold(record: Record, settings: Settings) -> str:
    """The settings that hold the policy to the reference, with their values."""
    slower = f"lower optimizer.learning_rate (now {settings.optimizer.learning_rate:g})"
    return ", or ".join([slower, *_of_coefficients(record, settings)])


def _of_coefficients(record: Record, settings: Settings) -> Iterator[str]:
    """What raises beta, in [algorithm] and in [regulariser]."""
    algorithm, steered, held = (
        settings.algorithm,
        settings.controller,
        settings.algorithm.regulariser,
    )
    name = next((n for n in ("beta0", "beta") if settings.of_algorithm(n) is not None), None)
    if steered is not None and record["beta0"] >= given(steered.high):
        yield f"raise regulariser.controller.high (now {steered.high:g})"
    elif steered is not None:
        yield f"lower regulariser.controller.target (now {steered.target:g})"
    elif name is not None:
        yield f"raise algorithm.{name} (now {settings.of_algorithm(name):g})"
    if algorithm.beta0_key is None and held is not None and steered is None:
        yield f"raise regulariser.beta0 (now {held.beta0:g})"
    if algorithm.shapes and held is None and name is None:
        yield 'set regulariser.shape = "constant" and regulariser.beta0: nothing holds it yet'
    if held is not None and held.gate.share is not None and held.gate.share < 1:
        yield f"raise regulariser.gate.share (now {held.gate.share:g})"
    yield from _of_floor(record, settings)


def _of_floor(record: Record, settings: Settings) -> Iterator[str]:
    """A floor, where some samples are not held at all."""
    algorithm, held, smallest = (
        settings.algorithm,
        settings.algorithm.regulariser,
        record["beta_min"],
    )
    takes_floor = algorithm.has_advantages or held is not None
    beta0 = settings.of_algorithm("beta0") if held is None else held.beta0
    if smallest is None or smallest > 0 or not takes_floor or not beta0:
        return
    if held is not None and held.floor is not None:
        yield f"raise regulariser.floor (now {held.floor:g})"
    else:
        yield f"set regulariser.floor, because beta falls to {smallest:g}"
