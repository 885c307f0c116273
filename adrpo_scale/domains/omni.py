"""The thinker of Qwen2.5-Omni: its language model, its audio tower and its feature extractor.

The policy is transformers' `Qwen2_5OmniThinkerForConditionalGeneration` without its two towers: the
language model and its output layer, under their names in the whole class. The audio tower is a
separate frozen model, whole on every rank and not sharded, so that ranks may encode different
numbers of clips. The vision tower, the talker and token2wav are never built, and their weights are
never read.

The tower encodes one clip per call, so embeddings depend neither on the batch nor on the ranks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.core.pace import safe_point
from adrpo_scale.domains import logprobs
from adrpo_scale.domains.chat import ChatConfig
from adrpo_scale.domains.export_target import Part
from adrpo_scale.domains.language_model import (
    WEIGHTS,
    LanguageModel,
    checkpoint_activations,
    embedding_units,
    read_any_config,
    tied_names,
)
from adrpo_scale.engines.spec import LoraConfig, ModelSpec
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.loaders import load_settings
from adrpo_scale.hub.weights import (
    SafetensorsFolder,
    WeightSource,
    check_coverage,
    check_finite,
    combined_sha256,
)

# The whole name, because the towers have layers of these names too.
ADAPTED = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
TYPES = ("qwen2_5_omni", "qwen2_5_omni_thinker")  # in config.json
PROCESSOR = "Qwen2_5OmniProcessor"
THINKER, WHOLE = (
    "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen2_5OmniForConditionalGeneration",
)
SPEAKERS = "spk_dict.pt"  # the talker's voices; exports copy it, nothing opens it
_AUDIO, _VISION = "model.audio_tower.", "model.visual."
_OTHERS = ("talker.", "token2wav.")  # parts of a full checkpoint that produce speech
_MODALITIES = (
    "audio_token_id",
    "image_token_id",
    "video_token_id",
    "audio_start_token_id",
    "audio_end_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "audio_bos_token_id",
    "audio_eos_token_id",
    "vision_bos_token_id",
    "vision_eos_token_id",
)
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_TEMPLATE = "chat_template.json"  # a processor's template before chat_template.jinja


class Thinker(LanguageModel):
    """A full Qwen2.5-Omni checkpoint, or a folder of its thinker alone.

    config: of the language model. thinker: of the thinker. special: the modality tokens, which mark
    the places of embeddings; a sampled one would have no embedding.
    Raises the errors of `LanguageModel`.
    """

    def __init__(self, folder: Path, name: str, chat: ChatConfig) -> None:
        super().__init__(folder, name, chat)
        self.features = load_features(folder)
        specials = (
            getattr(of, key, None) for of in (self.thinker, self.tokenizer) for key in _MODALITIES
        )
        self.special = tuple(sorted({token for token in specials if isinstance(token, int)}))
        self.audio_token = int(self.thinker.audio_token_id)

    def _read_config(self) -> Any:
        self.thinker = read_thinker_config(self.folder, self.name)
        return self.thinker.text_config

    def _template(self) -> str | None:
        path = self.folder / _TEMPLATE
        if not path.is_file() or (self.folder / "chat_template.jinja").is_file():
            return None
        return str(read_json(path).get("chat_template", ""))

    def files(self) -> list[Path]:
        beside = [self.folder / name for name in (*_PROCESSOR, _TEMPLATE)]
        return sorted({*super().files(), *(path for path in beside if path.is_file())})

    def spec(self, attention: str, lora: LoraConfig | None = None) -> ModelSpec:
        from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Whole

        weights = ThinkerPart(self.folder, tied=tied_names(self.thinker, Whole))
        return thinker_spec(self.thinker, attention, weights, lora, self.banned)

    def part(self) -> Part:
        """The place of the policy in the thinker, and of the thinker in the folder."""
        key = "thinker_config"
        is_alone = key not in read_json(self.folder / "config.json")
        if is_alone:
            return Part(thinker_name, (_AUDIO, _VISION))
        return Part(thinker_name, (_AUDIO, _VISION), key, WHOLE, "thinker", (SPEAKERS,))

    def audio_tokens(self, samples: int) -> int:
        """Number of audio tokens of a clip of `samples` samples at 16 kHz."""
        after_convolution = (frames_of(samples, self.features) - 1) // 2 + 1
        return max(0, (after_convolution - 2) // 2 + 1)


def thinker_spec(
    config: Any,
    attention: str,
    weights: WeightSource,
    lora: LoraConfig | None,
    banned: tuple[int, ...] = (),
) -> ModelSpec:
    """The `ModelSpec` of the language model of a thinker's config."""

    def build() -> nn.Module:
        model = build_thinker(config, attention)
        logprobs.install(model, banned)
        return model

    return ModelSpec(
        build=build,
        weights=weights,
        blocks=("Qwen2_5OmniDecoderLayer",),
        units=embedding_units,
        tie=lambda model: model.tie_weights(),
        lora=lora,
        lora_targets=ADAPTED,
        checkpoint_activations=checkpoint_activations,
    )


def build_thinker(config: Any, attention: str) -> Any:
    """The thinker without its towers. Its `input_features` are embeddings, [tokens, H] of all audio
    tokens of the batch in order. attention: transformers' name of an implementation.

    Raises ConfigError where the model or this machine does not support it.
    """
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    try:
        model = Qwen2_5OmniThinkerForConditionalGeneration._from_config(
            config, attn_implementation=attention
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"domain.attention = {attention!r} does not work with this model here ({error}); use "
            '"eager"'
        ) from error
    del model.model.audio_tower, model.model.visual

    def encoded_already(embeddings: Tensor, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=embeddings)

    model.model.get_audio_features = encoded_already
    return model


def read_thinker_config(folder: Path, name: str) -> Any:
    """A thinker's config. ModelNotFoundError for an incomplete folder, ConfigError for another
    model."""
    config = read_any_config(folder, name)
    thinker = getattr(config, "thinker_config", config)
    if thinker.model_type != "qwen2_5_omni_thinker":
        raise ConfigError(
            f"domain.model = {name!r} is of type {config.model_type!r}; the audio domain trains "
            "the thinker of Qwen2.5-Omni: give a full checkpoint of it or a folder of its thinker, "
            'or use domain.name = "text" for a language model'
        )
    return thinker


# ---- weights -------------------------------------------------------------------------------------


class ThinkerPart(SafetensorsFolder):
    """The weights of one part of a thinker, by the names in the built part: the audio tower, or by
    default everything except the towers.

    folder: a full checkpoint or that of a thinker. Names differ between checkpoints: those of the
    whole model begin with `thinker.`, and before transformers 5 the language model was `model.` and
    the towers had no prefix.
    """

    def __init__(self, folder: Path, part: str = "", tied: Mapping[str, str] | None = None) -> None:
        def of_part(stored: str) -> str | None:
            name = thinker_name(stored)
            if name is None or not name.startswith(part) or (not part and name.startswith(towers)):
                return None
            return name.removeprefix(part)

        towers = (_AUDIO, _VISION)
        super().__init__(folder, WEIGHTS, tied, of_part)
        names = {stored: thinker_name(stored) for stored in self._files.file_of}
        self._used = {
            self._files.file_of[stored]
            for stored, name in names.items()
            if name is not None and not name.startswith(_VISION)
        }

    def sha256(self) -> str:
        """Hash of the files of the language model and the audio tower, for either part: another
        tower gives the policy other embeddings."""
        return combined_sha256([self.folder / name for name in sorted(self._used)], self.folder)


def thinker_name(stored: str) -> str | None:
    """A stored tensor's name in transformers' class; None for one outside of the thinker."""
    if stored.startswith(_OTHERS):
        return None
    name = stored.removeprefix("thinker.")
    name = re.sub(r"^(?=(audio_tower|visual)\.)", "model.", name)
    return re.sub(
        r"^model\.(?!(language_model|audio_tower|visual)\.)", "model.language_model.", name
    )


# ---- clips ---------------------------------------------------------------------------------------


def load_tower(
    folder: Path, config: Any, attention: str, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The frozen audio tower on `device`. config: the thinker's. Raises WeightsError where its
    weights are not in the folder."""
    from accelerate import init_empty_weights
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

    with init_empty_weights(include_buffers=False):
        tower = Qwen2_5OmniAudioEncoder._from_config(
            config.audio_config, attn_implementation=attention
        )
    stored = ThinkerPart(folder, _AUDIO)
    check_coverage(tower.state_dict(), stored.names(), folder)
    tensors = {}
    for name in stored.names():
        tensor = stored.read(name)
        check_finite(name, tensor, folder)
        tensors[name] = tensor.to(device, dtype)
    tower.load_state_dict(tensors, assign=True)
    stored.close()
    tower.to(device)  # its buffers
    return tower.requires_grad_(False).eval()


def load_features(folder: Path) -> Any:
    """Whisper's feature extractor. ModelNotFoundError where the folder has none."""
    from transformers import WhisperFeatureExtractor

    if not any((folder / name).exists() for name in _PROCESSOR):
        raise ModelNotFoundError(
            f"{folder} has no feature extractor ({' or '.join(_PROCESSOR)}), which encodes clips; "
            "copy it from the model that the weights belong to"
        )
    return load_settings(WhisperFeatureExtractor, folder, "feature extractor")


def frames_of(samples: int, features: Any) -> int:
    """Frames of the log-mel spectrogram that the processor's mask keeps."""
    return -(-samples // int(features.hop_length))


@torch.no_grad()
def encode_clip(tower: nn.Module, features: Any, samples: NDArray[np.float32]) -> Tensor:
    """Embeddings [tokens, H] of one clip, on the tower's device and in its precision.

    samples: float32 at 16 kHz, not longer than the extractor's window. The processor would pad them
    with silence to its window of 300 s and mask that; silence of one frame's length gives the same
    frames.
    """
    safe_point()
    frames, hop = frames_of(len(samples), features), int(features.hop_length)
    room = min(int(features.n_samples), frames * hop + int(features.n_fft))
    padded = np.zeros(room, np.float32)
    padded[: len(samples)] = samples
    found = features(
        [padded],
        sampling_rate=features.sampling_rate,
        padding="do_not_pad",
        truncation=False,
        return_tensors="pt",
    )
    first: Any = tower.conv1
    mel = found["input_features"][0, :, :frames].to(first.weight.device)
    lengths = torch.tensor([frames], device=first.weight.device)
    heard: Tensor = tower(mel, feature_lens=lengths).last_hidden_state
    return heard
