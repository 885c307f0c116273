"""A trained reward model: the logit of a sequence classifier on the whole conversation.

It has its own tokenizer and chat template, and its input is messages, never the policy's tokens.
The template's beginning-of-sequence token is the only one (tokenizing the text with special tokens
would add a second). Too long a conversation is cut on the left, where the oldest turns are. These
are the rules of weqweasdas/RM-Gemma-2B.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from adrpo_scale.core.bounds import COUNT, TOKENS
from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.core.settings import REQUIRED, setting
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.engines.planning import EVERY, Price, Rung, halves
from adrpo_scale.engines.spec import DTYPES, ModelSpec
from adrpo_scale.engines.workload import NO_WEIGHTS, Frozen, spec_of
from adrpo_scale.hub.loaders import load_settings, load_weights
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.shapes import config_folder
from adrpo_scale.hub.templates import rendered
from adrpo_scale.hub.weight_files import TRANSFORMERS
from adrpo_scale.hub.weights import SafetensorsFolder, find_model
from adrpo_scale.rewards.base import Reward, RewardConfig

log = logging.getLogger(__name__)

THINKING = re.compile(r"<think>.*?(</think>\s*|\Z)", re.DOTALL)  # also where it has no end
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
Message = dict[str, str]


class RewardModelConfig(RewardConfig):
    kind: str = setting(
        "reward_model", "a sequence classifier with one logit", paper="appendix B.2"
    )
    model: str = setting(
        REQUIRED, "transformers folder or hub id, e.g. weqweasdas/RM-Gemma-2B", min_length=1
    )
    placement: Literal["replicated", "sharded"] = setting(
        "replicated",
        "whole on every rank; or sharded as the policy is, in its precision, gathered when asked",
        effect="rounding",
    )
    dtype: Literal["float32", "bfloat16"] = setting("bfloat16", "replicated: its precision")
    batch: int = setting(16, "conversations at once", effect="rounding", ge=1, le=COUNT)
    max_tokens: int = setting(
        2048,
        "the oldest tokens beyond it, or beyond what the model takes, are cut off",
        ge=2,
        le=TOKENS,
    )
    system: Literal["keep", "merge", "drop"] = setting(
        "merge",
        "a prompt's own system message: kept, put before the first user's, or left out; "
        "domain.chat.system is the policy's alone",
    )
    strip_thinking: bool = setting(False, "reward completions without their <think>…</think>")

    def needs_from_hub(self) -> list[HubNeed]:
        return [HubNeed(self.model, "rewards.model", FILES, raw=self.placement == "sharded")]


class RewardModel(Reward):
    Config: ClassVar[type[RewardModelConfig]] = RewardModelConfig
    judges = ("completions",)

    @classmethod
    def models(
        cls, config: RewardModelConfig, section: str, dtype: torch.dtype, tokens: int
    ) -> Sequence[Frozen]:
        return [classifier(config, section, dtype, tokens)]

    @classmethod
    def rungs(cls, config: RewardModelConfig, section: str) -> list[Rung]:
        found = halves(f"{section}.batch", config.batch, "reward")
        if config.placement == "replicated":
            found.append(Rung((f"{section}.placement=sharded",), EVERY, Price.TRAVEL))
        return found

    def __init__(self, config: RewardModelConfig, device: torch.device) -> None:
        super().__init__(config)
        self.config, self._device = config, device
        (need,) = config.needs_from_hub()
        self._folder = find_model(need)
        self._model_config = self._read_config()
        self._tokenizer = self._read_tokenizer()
        self._weights = SafetensorsFolder(self._folder, "model")
        self._published_pad = self._model_config.get_text_config().pad_token_id
        limit = getattr(self._model_config, "max_position_embeddings", None) or config.max_tokens
        self._max_tokens = min(config.max_tokens, limit)
        self._model: Any = None
        self._cut = False
        if config.placement == "replicated":
            self._model = self._load()

    def _read_config(self) -> Any:
        from transformers import AutoConfig

        if not (self._folder / "config.json").exists():
            raise ModelNotFoundError(
                f"rewards.model = {self.config.model!r}: no config.json in {self._folder}; bring "
                f"the whole folder with `hf download {self.config.model}`"
            )
        config = load_settings(AutoConfig, self._folder)
        if config.num_labels != 1:
            raise ConfigError(
                f"rewards.model = {self.config.model!r} has {config.num_labels} outputs, a reward "
                "model has one; name a sequence classifier with one output"
            )
        return config

    def _read_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = load_settings(AutoTokenizer, self._folder, "tokenizer")
        if not tokenizer.chat_template:
            raise ConfigError(
                f"rewards.model = {self.config.model!r}: its tokenizer has no chat template, so it "
                "cannot be given a conversation; add chat_template.jinja to its folder"
            )
        largest, size = max(tokenizer.get_vocab().values()), self._model_config.vocab_size
        if largest >= size:
            raise ConfigError(
                f"rewards.model = {self.config.model!r}: its tokenizer has token {largest}, the "
                f"model a vocabulary of {size}; bring the tokenizer published with the weights"
            )
        return tokenizer

    def _class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def _load(self) -> nn.Module:
        model = load_weights(
            self._class(),
            self._folder,
            TRANSFORMERS,
            config=self._model_config,
            dtype=DTYPES[self.config.dtype],
        )
        return model.to(self._device).requires_grad_(False).eval()

    def model_spec(self) -> ModelSpec | None:
        if self.config.placement == "replicated":
            return None
        model_class = self._class()._model_mapping[type(self._model_config)]
        return ModelSpec(
            build=lambda: self._class().from_config(self._model_config, trust_remote_code=False),
            weights=self._weights,
            blocks=tuple(model_class._no_split_modules or ()),
        )

    def use(self, model: nn.Module) -> None:
        super().use(model)
        self._model = model.eval()

    @torch.no_grad()
    def __call__(self, artifacts: Sequence[Completion], prompts: Sequence[Prompt]) -> Tensor:
        pairs = zip(artifacts, prompts, strict=True)
        ids = [self.tokens(prompt, completion.text) for completion, prompt in pairs]
        rewards = torch.empty(len(ids))
        by_length = sorted(range(len(ids)), key=lambda k: len(ids[k]))
        for start in range(0, len(ids), self.config.batch):
            places = by_length[start : start + self.config.batch]
            rewards[places] = self._logits([ids[k] for k in places])
        return rewards

    def _logits(self, ids: list[list[int]]) -> Tensor:
        """Rewards of tokenized conversations, float32 on the CPU, one for each.

        The classifier reads its logit at the last token that is not its config's padding token. For
        a model published without a padding token, one is chosen that no conversation ends in: the
        tokenizer's may be the end of every conversation."""
        pad = self._published_pad
        if pad is None:
            pad = min(set(range(len(ids) + 1)) - {row[-1] for row in ids})
        self._model.config.get_text_config().pad_token_id = pad
        width = max(map(len, ids))
        rows = torch.tensor([row + [pad] * (width - len(row)) for row in ids])
        lengths = torch.tensor([len(row) for row in ids])
        mask = (torch.arange(width) < lengths[:, None]).long()
        answer = self._model(
            input_ids=rows.to(self._device), attention_mask=mask.to(self._device), use_cache=False
        )
        return answer.logits[:, 0].float().cpu()

    def tokens(self, prompt: Prompt, completion: str) -> list[int]:
        """The model's input for one sample."""
        if self.config.strip_thinking:
            completion = THINKING.sub("", completion)
        messages = [*prompt.conversation, {"role": "assistant", "content": completion}]
        text = rendered(self._tokenizer, without_system(messages, self.config.system))
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(ids) <= self._max_tokens:
            return ids
        if not self._cut:
            self._cut = True
            log.warning(
                "reward %s: prompt %d and its completion have %d tokens, more than %d; the oldest "
                "are cut off, here and in every such sample",
                self.label,
                prompt.id,
                len(ids),
                self._max_tokens,
            )
        begin = ids[:1] if ids[0] == self._tokenizer.bos_token_id else []
        return begin + ids[len(ids) - self._max_tokens + len(begin) :]


def classifier(config: RewardModelConfig, section: str, dtype: torch.dtype, tokens: int) -> Frozen:
    """The reward model of a config, for `plan`: every conversation has `tokens` tokens, or
    `max_tokens` where that is less or `tokens` is 0."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = config_folder(config.model, f"{section}.model")
    settings = load_settings(AutoConfig, folder)
    length = min(config.max_tokens, tokens or config.max_tokens)
    classes = AutoModelForSequenceClassification

    def judge(model: Any, rows: int) -> Any:
        ids = torch.zeros(rows, length, dtype=torch.int64)
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    spec = ModelSpec(
        build=partial(classes.from_config, settings, trust_remote_code=False),
        weights=NO_WEIGHTS,
        blocks=tuple(classes._model_mapping[type(settings)]._no_split_modules or ()),
    )
    used = dtype if config.placement == "sharded" else DTYPES[config.dtype]
    name = f"reward {config.label}"
    return Frozen(name, spec_of(spec), used, config.placement, "reward", config.batch, judge)


def without_system(messages: list[Message], how: str) -> list[Message]:
    """The conversation with its system message kept, merged into the first user's, or dropped."""
    if how == "keep" or messages[0]["role"] != "system":
        return messages
    system, first, *others = messages
    if how == "drop" or first["role"] != "user":
        return [first, *others]
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]
