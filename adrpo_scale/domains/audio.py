"""Audio reasoning (paper, section 4.6): the thinker of Qwen2.5-Omni answers questions about clips.

This domain extends the text domain: only prompts and the inputs of the model differ. A prompt whose
metadata names a clip (`audio`, in `audio_folder`) becomes a conversation, by the model's own
template, whose last user message begins with the clip. The template's single audio token is
repeated once per token of the clip, and the model gets the clip's embeddings at these places.
Positions are one-dimensional, because there are no pictures.

Each rank encodes a clip once per iteration that samples from it or trains on it: the G samples, the
policy and the reference share the frozen tower's output. Rows that travel between ranks hold ids
only; the rank that trains on them encodes their clips itself, to the same numbers. Modality tokens
(`<|AUDIO|>`, ...) have probability 0 in rollouts and in the log-probabilities of policy and
reference.

A prompt whose clip is missing, or broken by its header, when a run begins is left out and named. A
clip that turns out to be broken later is sampled from as text, and the loss leaves its samples out.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor, nn

from adrpo_scale.core.bounds import COUNT
from adrpo_scale.core.errors import ClipError, PromptError
from adrpo_scale.core.naming import named
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import DrawKey, Prompt, Rows
from adrpo_scale.data.clip_headers import (
    Clip,
    Header,
    agreed_headers,
    check_packages,
    clip_of,
    warn_of_broken,
    without_broken,
)
from adrpo_scale.data.clips import SAMPLE_RATE, read_clip
from adrpo_scale.domains import omni
from adrpo_scale.domains.base import Mode, Published
from adrpo_scale.domains.chat import check_length, token_ids, without_long
from adrpo_scale.domains.completions import Packed
from adrpo_scale.domains.decoding import audio_inputs
from adrpo_scale.domains.export_target import ExportTarget
from adrpo_scale.domains.heard import example_clip, with_audio
from adrpo_scale.domains.language_model import FILES, WEIGHTS
from adrpo_scale.domains.omni import Thinker, ThinkerPart, encode_clip, load_tower
from adrpo_scale.domains.text import TextDomain
from adrpo_scale.domains.text_config import TextConfig
from adrpo_scale.domains.text_export import chat_target, generate_arguments
from adrpo_scale.engines.planning import RUNNING, Price, Rung
from adrpo_scale.engines.workload import Workload
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weights import SafetensorsFolder

log = logging.getLogger(__name__)
FEW_CLIPS = 64  # MiB; enough for the clips of one iteration


class AudioConfig(TextConfig):
    name: str = setting("audio", "language models that hear")
    train: Literal["full", "lora"] = setting(
        "lora", "all parameters of the language model, or adapters on its layers"
    )
    towers: Literal["frozen"] = setting(
        "frozen", "the audio tower is not trained; the vision tower and the talker are not built"
    )
    clip_megabytes: float = setting(
        1024.0,
        "size of the encoded clips that a rank keeps on its device (10 s are 1.8 MB at 7B); clips "
        "beyond it are encoded again",
        effect="none",
        ge=0,
        le=COUNT,
    )

    def needs_from_hub(self) -> list[HubNeed]:
        return [HubNeed(self.model, "domain.model", (*FILES, omni.SPEAKERS), raw=True)]

    @model_validator(mode="after")
    def _rolls_out_in_process(self) -> AudioConfig:
        if self.backend != "in_process":
            raise ValueError(
                f'backend = "{self.backend}" takes tokens only, so the model would not hear the '
                'clips; set backend = "in_process"'
            )
        return self


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model gets it. ids: its tokens. audio: [tokens, H], the embeddings at its
    audio tokens. fault: why its clip could not be read; the prompt is then text alone."""

    ids: Sequence[int]
    audio: Tensor
    fault: str = ""


class AudioDomain(TextDomain):
    Config: ClassVar[type[TextConfig]] = AudioConfig
    hears: ClassVar[bool] = True

    @classmethod
    def recognises(cls, model: Published) -> bool:
        return model.model_type() in omni.TYPES

    @classmethod
    def weights_in(cls, folder: Path) -> SafetensorsFolder:
        return ThinkerPart(folder)

    @classmethod
    def workload(cls, config: Any, dtype: torch.dtype) -> Workload:
        from adrpo_scale.domains.audio_workload import audio_workload

        return audio_workload(config, dtype)

    @classmethod
    def rungs(cls, config: Any) -> list[Rung]:
        if config.clip_megabytes <= FEW_CLIPS:
            return []
        return [Rung((f"domain.clip_megabytes={FEW_CLIPS}",), RUNNING, Price.AGAIN)]

    config: AudioConfig
    model: Thinker

    def __init__(self, config: AudioConfig) -> None:
        super().__init__(config)
        self._headers: dict[Clip, Header] = {}

    def _read_model(self) -> Thinker:
        return Thinker(self.folder, self.config.model, self.config.chat)

    def export_target(self) -> ExportTarget:
        is_heard = self.config.chat.template == "chat"  # plain prompts are text alone
        return ExportTarget(
            library="transformers",
            model=omni.THINKER,
            component="",
            stem=WEIGHTS,
            task="audio-text-to-text",
            inputs={"clip": torch.from_numpy(example_clip())} if is_heard else {},
            call=generate_arguments(self.config.evaluation, self.model.ends, self.model.banned),
            chat=chat_target(self.tokenizer, self.config.chat, *self._example()),
            processor=omni.PROCESSOR,
            part=self.model.part(),
            # The attention of training may need a GPU.
            build=lambda: omni.build_thinker(self.model.thinker, "sdpa"),
            policy_inputs=self._example_inputs,
        )

    def _example(self) -> tuple[Prompt, Sequence[int]]:
        prompt = Prompt(0, "What can you hear?", {"audio": "example"})
        is_heard = self.config.chat.template == "chat"
        return prompt, self._expanded(prompt, len(example_clip()) if is_heard else None)

    def _example_inputs(self) -> dict[str, Tensor]:
        """The policy's inputs of the example: tokens, and its clip encoded by the tower."""
        _, ids = self._example()
        tokens = {"input_ids": torch.tensor([list(ids)])}
        if self.model.audio_token not in ids:
            return tokens
        cpu, config = torch.device("cpu"), self.model.thinker
        tower = load_tower(self.folder, config, "sdpa", cpu, torch.float32)
        heard = encode_clip(tower, self.model.features, example_clip())
        return tokens | audio_inputs([heard])

    def usable(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts with sound clips that are not too long. Collective: rank 0 reads headers."""
        silent = sum(clip_of(prompt) is None for prompt in prompts)
        if silent:
            log.warning("%d of %d prompts name no clip: they are text", silent, len(prompts))
        check_packages()
        self._headers |= agreed_headers(prompts)
        kept = self.model.spoken(without_broken(prompts, self._headers))
        if self.config.chat.long_prompts == "error":
            return kept  # `prepare` raises the error
        lengths = self._expected_lengths(kept)
        return without_long(self.tokenizer, kept, self.config.chat, lambda p: lengths[p.id])

    def as_before(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """All prompts. Where a clip has gone since, the loss leaves the samples out."""
        check_packages()
        self._headers |= agreed_headers(prompts)
        what = "were there before; the loss leaves their samples out"
        warn_of_broken(prompts, self._headers, what)
        return self.model.spoken(prompts)

    def _expected_lengths(self, prompts: Sequence[Prompt]) -> dict[int, int]:
        """Tokens of each prompt by its id, from the known headers of the clips; no clip is read.
        A prompt whose clip has gone is counted without it."""
        found = {}
        for prompt in prompts:
            clip = clip_of(prompt)
            header = "" if clip is None else self._headers[clip[0], str(clip[1])]
            samples = None if isinstance(header, str) else round(SAMPLE_RATE * header)
            found[prompt.id] = len(self._expanded(prompt, samples))
        return found

    def _prepare_prompts(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._first = prompts[0].id if prompts else 0
        self._encoded: OrderedDict[int, Encoded] = OrderedDict()
        known = self._headers  # those of prompts that `usable` has seen
        unseen = [p for p in prompts if (c := clip_of(p)) and (c[0], str(c[1])) not in known]
        self._headers |= agreed_headers(unseen)
        lengths = self._expected_lengths(prompts)
        for prompt in prompts:
            check_length(prompt, lengths[prompt.id], self.config.chat)

    def prepare(self, prompts: Sequence[Prompt], device: torch.device, dtype: torch.dtype) -> None:
        super().prepare(prompts, device, dtype)
        attention = self.config.attention
        self._tower = load_tower(self.folder, self.model.thinker, attention, device, dtype)
        count = sum(parameter.numel() for parameter in self._tower.parameters())
        log.info(
            "the audio tower (%.1f M parameters) is frozen and whole on every rank; the vision "
            "tower, the talker and token2wav are not built",
            count / 1e6,
        )

    def _tokens(self, prompt_id: int) -> Sequence[int]:
        return self._of(prompt_id).ids

    def _audio(self, prompt_ids: Sequence[int]) -> Sequence[Tensor] | None:
        different = {prompt_id: self._of(prompt_id).audio for prompt_id in prompt_ids}
        return [different[prompt_id] for prompt_id in prompt_ids]

    def _of(self, prompt_id: int) -> Encoded:
        """The encoded prompt, from the cache or encoded now."""
        found = self._encoded.pop(prompt_id, None)
        if found is None:
            found = self._encode(self._prompts[prompt_id])
            self._make_room(found.audio.nbytes)
        self._encoded[prompt_id] = found
        return found

    def _make_room(self, size: int) -> None:
        """Frees the least recently used clips until `size` bytes fit."""
        held = size + sum(each.audio.nbytes for each in self._encoded.values())
        while self._encoded and held > self.config.clip_megabytes * 2**20:
            _, forgotten = self._encoded.popitem(last=False)
            held -= forgotten.audio.nbytes

    def _encode(self, prompt: Prompt) -> Encoded:
        """Reads and encodes a prompt's clip. Where it cannot be read, although its header was sound
        when the run began, the prompt becomes text: an error would end the run for one clip."""
        clip, fault = clip_of(prompt), ""
        if clip is not None:
            try:
                return self._hear(prompt, read_clip(*clip))
            except (ClipError, PromptError) as error:  # PromptError: longer than its header states
                fault = str(error)
                log.warning("%s is left out of the loss: %s", named(prompt), fault)
        ids = self._expanded(prompt, None)
        check_length(prompt, len(ids), self.config.chat)
        width = self.model.config.hidden_size
        return Encoded(ids, torch.empty(0, width, device=self.device, dtype=self.dtype), fault)

    def _hear(self, prompt: Prompt, samples: NDArray[np.float32]) -> Encoded:
        ids = self._expanded(prompt, len(samples))
        check_length(prompt, len(ids), self.config.chat)
        audio = encode_clip(self._tower, self.model.features, samples)
        if ids.count(self.model.audio_token) != len(audio):
            raise RuntimeError(f"prompt {prompt.id}: its tokens have no place for its clip")
        return Encoded(ids, audio)

    def _forget_faults(self) -> None:
        """Lets clips that could not be read be read again: the filesystem may have recovered."""
        sound = {i: each for i, each in self._encoded.items() if not each.fault}
        self._encoded = OrderedDict(sound)

    def _expanded(self, prompt: Prompt, samples: int | None) -> list[int]:
        """Token ids of a prompt. samples: length of its clip at 16 kHz, None without a clip.

        PromptError where the model cannot take the clip, or the text has audio tokens itself."""
        spoken = prompt if samples is None else replace(prompt, messages=with_audio(prompt))
        ids = token_ids(self.tokenizer, spoken, self.config.chat)
        token = self.model.audio_token
        count = 0 if samples is None else self._count(prompt, samples)
        if ids.count(token) != (samples is not None):
            raise PromptError(
                f"{named(prompt)} becomes {ids.count(token)} audio tokens by the chat template, "
                f"expected {int(samples is not None)}: take {self.tokenizer.decode([token])!r} out "
                "of its text, or fix the template"
            )
        return [each for i in ids for each in ([token] * count if i == token else [i])]

    def _count(self, prompt: Prompt, samples: int) -> int:
        """Audio tokens of a clip. PromptError where it is too short for one token, or longer than
        the model's window."""
        count, window = self.model.audio_tokens(samples), int(self.model.features.n_samples)
        if samples > window or count == 0:
            raise PromptError(
                f"{named(prompt)}: its clip has {samples / SAMPLE_RATE:.2f} s; {self.config.model} "
                f"takes clips of at least one token and at most {window / SAMPLE_RATE:g} s; cut it "
                "into parts or take it out (clips are never cut here)"
            )
        return count

    # ---- clips that turn out to be broken --------------------------------------------------------

    def sample(
        self,
        policy: nn.Module,
        prompts_N: Sequence[Prompt],
        sample_ids_N: Tensor,
        key: DrawKey,
        mode: Mode = "rollout",
    ) -> Rows:
        self._forget_faults()
        rows = super().sample(policy, prompts_N, sample_ids_N, key, mode)
        heard = [int(not self._of(prompt.id).fault) for prompt in prompts_N]
        column = torch.tensor(heard, dtype=torch.int64, device=self.device)
        return replace(rows, tensors={**rows.tensors, "heard": column})

    def is_sound(self, rows: Rows) -> Tensor:
        return super().is_sound(rows) & rows.tensors["heard"].bool().cpu()

    def receive(self, rows: Rows) -> Rows:
        """The rows; `heard` is 0 for a clip that another rank has read and this one cannot."""
        self._forget_faults()
        heard = rows.tensors["heard"].clone()
        for place, prompt_id in enumerate(rows.prompt_ids_N.tolist()):
            if self._of(prompt_id).fault:
                heard[place] = 0
        return replace(rows, tensors={**rows.tensors, "heard": heard})

    def row_metrics(self, rows: Rows) -> dict[str, Tensor]:
        return super().row_metrics(rows) | {"unheard": 1 - rows.tensors["heard"].cpu().double()}

    def _packed(self, rows: Rows) -> Packed:
        heard = rows.tensors["heard"].tolist()
        for prompt_id, was_heard in zip(rows.prompt_ids_N.tolist(), heard, strict=True):
            fault = self._of(prompt_id).fault
            if was_heard and fault:  # without its clip, the row would train on another prompt
                raise ClipError(
                    f"{fault}. This rank has just heard it: check the filesystem of its folder"
                )
        return super()._packed(rows)
