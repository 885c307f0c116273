"""The same rows through the CPU and the GPU: terms, loss, gradients, the step, and sampling.

A rollout is made on the CPU; both trainers then do the first update of iteration 0 with exactly its
rows, by the trainer's own code, in float32. TF32 of convolutions, which torch allows by default, is
off but for one figure.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from adrpo_scale.algorithms.terms import LikelihoodTerms
from adrpo_scale.core.types import Credit, DrawKey, Rows
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import load_config
from adrpo_scale.training.iteration import Tally
from adrpo_scale.training.rollout import nothing, sample_block
from adrpo_scale.training.stopwatch import Stopwatch
from adrpo_scale.training.trainer import Trainer
from tests.gpu.steps.base import Case
from tests.gpu.steps.processes import TASKS


@dataclass
class Measured:
    """Of one update: the numbers of each row or token, the loss, the gradients before the step and
    their norm, and the trained weights after it; all on the CPU."""

    terms: list[Tensor] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    loss: float = 0.0
    norm: float = 0.0
    weights: dict[str, Tensor] = field(default_factory=dict)


def run(case: Case, task: str) -> None:
    torch.backends.cudnn.allow_tf32 = False
    cpu, gpu = _trainer(case, task, "cpu"), _trainer(case, task, case.device)
    rewarded = cpu.rollouts.of(0, Stopwatch(cpu.engine.device))
    credit = cpu.algorithm.credit(rewarded.rewards)
    there = replace(rewarded, rows=_moved(rewarded.rows, gpu.engine.device))
    batches = [t._exchange(r, credit)[0] for t, r in ((cpu, rewarded), (gpu, there))]
    case.note(rows=len(rewarded.rows), terms_with_tf32=_with_tf32(cpu, gpu, batches))
    mine, theirs = (
        _update(t, b, credit, rewarded.prompts_P) for t, b in zip((cpu, gpu), batches, strict=True)
    )
    _compare(case, mine, theirs)
    _compare_samples(case, cpu, gpu, rewarded.prompts_P)


def _trainer(case: Case, task: str, device: str) -> Trainer:
    settings = [f"engine.device={device}", "evaluation.every=0", "logging.pictures_every=0"]
    settings += case.size([], ["prompts.per_iteration=4", "prompts.group_size=8"])
    config = load_config(TASKS[task], settings).config
    folder = case.folder / f"{device}-{len(list(case.folder.iterdir()))}"
    folder.mkdir()
    return build_trainer(config, folder)


def _moved(rows: Rows, device: torch.device) -> Rows:
    return replace(rows, tensors={name: t.to(device) for name, t in rows.tensors.items()})


def _numbers(terms: Any) -> Tensor:
    """Log-probabilities of tokens, or errors of rows."""
    found = terms.logp_K if isinstance(terms, LikelihoodTerms) else terms.supervised()
    return found.detach().float().cpu()


def _with_tf32(cpu: Trainer, gpu: Trainer, batches: list[Any]) -> float:
    """The largest difference of a term where convolutions may use TF32, as torch ships."""
    found = []
    torch.backends.cudnn.allow_tf32 = True
    for trainer, batch in zip((cpu, gpu), batches, strict=True):
        key, micro = DrawKey(trainer.seed, 0), batch[0]
        with torch.no_grad():
            terms = trainer.domain.terms(
                trainer.policy, None, micro.rows, micro.noise_ids_N, key, trainer.algorithm.terms
            )
        found.append(_numbers(terms))
    torch.backends.cudnn.allow_tf32 = False
    return float((found[0] - found[1]).abs().max())


def _update(trainer: Trainer, batch: Any, credit: Credit, prompts_P: Any) -> Measured:
    """The trainer's own update, watched at its calls of the domain and the engine."""
    seen, tally = Measured(), Tally()
    terms, step = trainer.domain.terms, trainer.engine.step

    def watched_terms(*args: Any, **more: Any) -> Any:
        found = terms(*args, **more)
        seen.terms.append(_numbers(found))
        return found

    def watched_step(rate: float) -> Any:
        named = trainer.policy.named_parameters()
        seen.gradients = {n: p.grad.cpu().clone() for n, p in named if p.grad is not None}
        result = step(rate)
        seen.norm = result.grad_norm
        return result

    with (
        mock.patch.object(trainer.domain, "terms", watched_terms),
        mock.patch.object(trainer.engine, "step", watched_step),
    ):
        measured = trainer._measured(credit, 0)
        trainer._update(batch, 0, measured, tally, prompts_P, nothing)
    seen.loss = tally.record()["loss"]
    seen.weights = {n: t.cpu().clone() for n, t in trainer.engine.trained_slices().items()}
    return seen


def _compare(case: Case, cpu: Measured, gpu: Measured) -> None:
    terms = max(float((a - b).abs().max()) for a, b in zip(cpu.terms, gpu.terms, strict=True))
    case.check("terms differ by less than 1e-4", terms < 1e-4, terms)
    loss = abs(cpu.loss - gpu.loss)
    case.check("the loss differs by less than 1e-5", loss < 1e-5, loss)
    a, b = (torch.cat([g.flatten().double() for g in m.gradients.values()]) for m in (cpu, gpu))
    same = cpu.gradients.keys() == gpu.gradients.keys()
    case.check("the same parameters have gradients", same and len(a) > 0, len(cpu.gradients))
    cosine = float(torch.nn.functional.cosine_similarity(a, b, 0))
    case.check("the cosine of the gradients is above .9999", cosine > 0.9999, cosine)
    norm = abs(cpu.norm - gpu.norm) / max(cpu.norm, 1e-12)
    case.check("their norm differs by less than 1e-4", norm < 1e-4, norm)
    off = max(float((cpu.weights[n] - gpu.weights[n]).abs().max()) for n in cpu.weights)
    case.note(loss=cpu.loss, grad_norm=cpu.norm, weights_after_step=off)


def _compare_samples(case: Case, cpu: Trainer, gpu: Trainer, prompts_P: Any) -> None:
    """Both sample again, after their step, with equal draws."""
    for mode in cpu.domain.evaluations:
        one, two = (_sampled(t, prompts_P, mode) for t in (cpu, gpu))
        for name in ("completion", "x1"):
            if name not in one.tensors:
                continue
            a, b = one.tensors[name], two.tensors[name].cpu()
            if name == "completion":
                share = float((a == b).double().mean())
                case.check(f"{mode}: over 99 % of tokens are equal", share > 0.99, share)
            else:
                off = float((a - b).norm() / a.norm())
                case.check(f"{mode}: pictures differ by less than 1e-3", off < 1e-3, off)


def _sampled(trainer: Trainer, prompts_P: Any, mode: Any) -> Rows:
    key, chunk = DrawKey(trainer.seed, 1), trainer.rollouts.chunk
    with trainer.engine.sampling(trainer.policy):
        return sample_block(
            trainer.domain, trainer.policy, prompts_P, trainer.group_size, key, chunk, mode=mode
        )
