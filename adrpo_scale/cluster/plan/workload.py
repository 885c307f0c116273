"""What a config computes: its domain's models and its rewards'."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from adrpo_scale.cluster.plan.audio_parts import audio_workload
from adrpo_scale.cluster.plan.flow_parts import flow_workload
from adrpo_scale.cluster.plan.parts import NO_WEIGHTS, Frozen, Workload, plain_spec, spec_of
from adrpo_scale.cluster.plan.shapes import config_folder
from adrpo_scale.cluster.plan.text_parts import text_workload
from adrpo_scale.engines.spec import DTYPES, ModelSpec
from adrpo_scale.run.config import RunConfig

_DOMAINS = {"flow": flow_workload, "text": text_workload, "audio": audio_workload}


def workload_of(config: RunConfig) -> Workload:
    """Raises ModelNotFoundError where a model's shape is not known here."""
    frozen, unknown = [], []
    for number, reward in enumerate(config.rewards):
        if reward.kind == "clip" and reward.backend == "transformers":
            frozen.append(_clip(reward, f"rewards.{number}.model"))
        elif reward.kind == "reward_model":
            frozen.append(_reward_model(config, reward, f"rewards.{number}.model"))
        elif reward.kind in ("clip", "function"):
            unknown.append(f"reward {reward.label}: whatever memory and time it takes")
    made = _DOMAINS[config.domain.name](config)
    return replace(made, frozen=(*made.frozen, *frozen), not_counted=(*made.not_counted, *unknown))


def _clip(reward: Any, what: str) -> Frozen:
    from transformers import AutoConfig, CLIPModel

    settings = AutoConfig.from_pretrained(config_folder(reward.model, what), local_files_only=True)
    side = settings.vision_config.image_size

    def embed(model: Any, rows: int) -> Any:
        return model.get_image_features(torch.empty(rows, 3, side, side))

    spec = plain_spec(partial(CLIPModel, settings))
    name = f"reward {reward.label}"
    return Frozen(name, spec, torch.float32, "replicated", "reward", reward.batch, embed)


def _reward_model(config: RunConfig, reward: Any, what: str) -> Frozen:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    settings = AutoConfig.from_pretrained(config_folder(reward.model, what), local_files_only=True)
    longest = config.domain.chat.max_prompt_tokens + config.domain.rollout.max_new_tokens
    length = min(reward.max_tokens, longest)
    classes = AutoModelForSequenceClassification

    def judge(model: Any, rows: int) -> Any:
        ids = torch.zeros(rows, length, dtype=torch.int64)
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    spec = ModelSpec(
        build=partial(classes.from_config, settings),
        weights=NO_WEIGHTS,
        blocks=tuple(classes._model_mapping[type(settings)]._no_split_modules or ()),
    )
    sharded = reward.placement == "sharded"
    dtype = DTYPES[config.engine.dtype if sharded else reward.dtype]
    placement: Any = "sharded" if sharded else "replicated"
    name = f"reward {reward.label}"
    return Frozen(name, spec_of(spec), dtype, placement, "reward", reward.batch, judge)
