"""CPU-seconds of the trainer's iteration, relative to the same work written by hand.

    python -m benchmarks.overhead [--rounds 20] [--set section.key=value ...]

One process, one thread, `configs/demo/image_adrpo.toml` with its default logging and without
picture grids. Trainer and bare loop alternate in blocks of iterations; the figure is the median of
their ratio over the rounds. The bare loop is rollout, rewards, forward, backward and step alone: no
seeds per sample, no ids, no collectives, no exchange, no logging.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.data.prompts import build_prompts
from adrpo_scale.engines.adapters import adapters_off
from adrpo_scale.run.build import build_domain, build_engine, build_rewards, build_trainer
from adrpo_scale.run.load import load_config

ITERATIONS_PER_BLOCK = 3


def bare_iteration(config: Any) -> Callable[[], None]:
    """A hand-written iteration with the same models, sizes, steps and loss (eq. 6)."""
    train, _ = build_prompts(config.prompts)
    domain, engine = build_domain(config), build_engine(config)
    (reward, _) = build_rewards(config, engine)
    domain.prepare(train, engine.device, engine.dtype)
    policy = engine.build_policy(domain.policy_spec())
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.learning_rate, weight_decay=0)
    size, per_iteration = config.prompts.group_size, config.prompts.per_iteration
    steps, beta0, place = config.domain.rollout.steps, config.algorithm.beta0, 0

    def velocity(x: torch.Tensor, t: torch.Tensor, condition: tuple[Any, Any]) -> torch.Tensor:
        return -policy(
            hidden_states=x,
            timestep=1000 * (1 - t),
            encoder_hidden_states=condition[0],
            pooled_projections=condition[1],
            return_dict=False,
        )[0]

    def iteration() -> None:
        nonlocal place
        prompts = [train[(place + p) % len(train)] for p in range(per_iteration)]
        place += per_iteration
        prompts_S = [prompt for prompt in prompts for _ in range(size)]
        condition = domain._embeddings.batch([p.text for p in prompts_S], engine.device)
        with torch.no_grad():
            x = torch.randn(len(prompts_S), *domain.latent_shape)
            for k in range(steps):
                x = x + velocity(x, torch.full((len(x),), k / steps), condition) / steps
            decoded = domain._vae.decode(x, return_dict=False)[0]
            pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            images = list(pixels.permute(0, 2, 3, 1).numpy())
        rewards = reward(images, prompts_S).view(per_iteration, size)
        a = (rewards - rewards.mean(1, keepdim=True)).clamp(-1, 1).flatten()
        for _ in range(config.optimizer.updates):
            x0, t = torch.randn_like(x), torch.rand(len(x))
            x_t = x0 + t.view(-1, 1, 1, 1) * (x - x0)
            with torch.no_grad(), adapters_off(policy):
                v_ref = velocity(x_t, t, condition)
            v = velocity(x_t, t, condition)
            fit = (v - (x - x0)).square().flatten(1).mean(1)
            hold = (v - v_ref).square().flatten(1).mean(1)
            (a * fit + (beta0 - a) * hold).mean().backward()
            torch.nn.utils.clip_grad_norm_(trained, config.optimizer.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

    return iteration


def cpu_seconds(iteration: Callable[[], Any]) -> float:
    start = time.process_time()
    for _ in range(ITERATIONS_PER_BLOCK):
        iteration()
    return (time.process_time() - start) / ITERATIONS_PER_BLOCK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    overrides = ["logging.pictures_every=0", "evaluation.every=0", *arguments.overrides]
    config = load_config(Path("configs/demo/image_adrpo.toml"), overrides).config
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, Path(folder))
        bare = bare_iteration(config)
        pairs = []
        for number in range(arguments.rounds + 1):
            pair = cpu_seconds(trainer._iterate), cpu_seconds(bare)
            pairs += [pair] if number else []  # the first round warms up
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    print(
        json.dumps(
            {
                "trainer_cpu_seconds": statistics.median(ours for ours, _ in pairs),
                "bare_cpu_seconds": statistics.median(theirs for _, theirs in pairs),
                "ratio_median": statistics.median(ratios),
                "ratio_min": ratios[0],
                "ratio_max": ratios[-1],
                "rounds": arguments.rounds,
                "torch": torch.__version__,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
