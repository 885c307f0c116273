"""The audio domain on a tiny thinker, beside transformers' own."""

from __future__ import annotations

import torch
from transformers import (
    Qwen2_5OmniProcessor,
)

from adrpo_scale.algorithms.terms import LikelihoodTerms
from adrpo_scale.core.types import DrawKey
from adrpo_scale.data.clip_headers import clip_of
from adrpo_scale.data.clips import read_clip
from adrpo_scale.data.prompts import build_prompts
from adrpo_scale.domains.heard import with_audio
from adrpo_scale.run.build import (
    build_domain,
    build_engine,
    build_reference,
)
from tests.support.tiny_audio import (
    WORDS,
    audio_config,
)

TEMPERATURE = 0.8
KEY = DrawKey(0, 3)
CHOSEN = (0, 0, 1, 2, 2, 3)  # of one length: the clips of 0 and 2
AUDIO = WORDS.index("<|AUDIO|>")
# The tokens of modalities, and the ids of the vocabulary that the tokenizer has no token for.
BANNED = [*range(3, 10), *range(len(WORDS), 72)]


class Parts:
    """A domain with its policy, rows that it sampled, and transformers' own model."""

    def __init__(self, folder, *overrides):
        overrides = [f"domain.rollout.temperature={TEMPERATURE}", *overrides]
        self.config = audio_config(folder, overrides)
        self.domain, self.engine = build_domain(self.config), build_engine(self.config)
        prompts, _ = build_prompts(self.config.prompts)
        self.prompts = self.domain.usable(prompts)
        self.domain.prepare(self.prompts, self.engine.device, self.engine.dtype)
        self.policy = self.engine.build_policy(self.domain.policy_spec())
        spec = self.domain.reference_spec()
        self.reference, _ = build_reference(spec, self.engine, self.policy)
        self.processor = Qwen2_5OmniProcessor.from_pretrained(folder)
        self.rows = self.sample()

    def sample(self, mode="rollout", chosen=CHOSEN):
        ids = torch.arange(len(chosen))
        return self.domain.sample(self.policy, [self.prompts[i] for i in chosen], ids, KEY, mode)

    def terms(self, rows=None, wanted=LikelihoodTerms):
        rows = self.rows if rows is None else rows
        return self.domain.terms(self.policy, self.reference, rows, rows.sample_ids_N, KEY, wanted)

    def processed(self, prompts):
        """What transformers' processor makes of prompts, in one batch."""
        texts = [
            self.processor.apply_chat_template(with_audio(p), add_generation_prompt=True)
            for p in prompts
        ]
        clips = [read_clip(*clip_of(p)) for p in prompts]
        return self.processor(text=texts, audio=clips, return_tensors="pt", padding=True)

    def by_transformers(self, model):
        """(log-probability [L], entropy [L]) of each row by transformers' own model and processor:
        one row at a time, its clip encoded for it alone."""
        found = []
        for n, prompt_id in enumerate(self.rows.prompt_ids_N.tolist()):
            given = self.processed([self.prompts[prompt_id]])
            completion = self.rows.tensors["completion"][n, : self.rows.tensors["lengths"][n]]
            given["input_ids"] = torch.cat([given["input_ids"], completion[None]], 1)
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            logits = model(**given).logits[0, -len(completion) - 1 : -1].clone()
            logits[:, BANNED] = -torch.inf
            logp = (logits / TEMPERATURE).log_softmax(-1)
            entropy = torch.distributions.Categorical(logits=logits / TEMPERATURE).entropy()
            found.append((logp.gather(1, completion[:, None])[:, 0], entropy))
        return found


def shaken(model):
    """Away from the reference, or every divergence is 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.Generator().manual_seed(len(name))
                parameter += 0.03 * torch.randn(parameter.shape, generator=noise)
