"""The folder of a causal language model of transformers: what is in it, what can be wrong with it,
and what an engine builds of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.domains import logprobs
from adrpo_scale.domains.chat import ChatConfig, load_tokenizer
from adrpo_scale.engines.spec import LoraConfig, ModelSpec
from adrpo_scale.hub.weights import SafetensorsFolder, WeightSource

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WEIGHTS = "model"
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
_BESIDE = ["config.json", "generation_config.json", "tokenizer*", "vocab.*", "merges.txt"]
_BESIDE += ["*.jinja", "special_tokens_map.json", "added_tokens.json"]


class LanguageModel:
    """config, tokenizer, ends (tokens that end a completion) and pad of the model in a folder.

    Raises ModelNotFoundError where the folder is not whole, and ConfigError where its parts do not
    fit each other or rollouts of it are not possible. Reads no weights.
    banned: tokens that it shall never say.
    """

    banned: tuple[int, ...] = ()

    def __init__(self, folder: Path, name: str, chat: ChatConfig) -> None:
        self.folder, self.name = folder, name
        self.config = self._read_config()
        self.tokenizer = load_tokenizer(folder, chat, self._template())
        self.ends = self._read_ends()
        pad = self.tokenizer.pad_token_id
        self.pad = self.ends[0] if pad is None else int(pad)
        self._check()

    def _read_config(self) -> Any:
        """Of the language model."""
        return read_config(self.folder, self.name)

    def _template(self) -> str | None:
        """A chat template that goes before the tokenizer's own."""
        return None

    def _read_ends(self) -> list[int]:
        """Of generation_config.json, the model and the tokenizer."""
        path = self.folder / "generation_config.json"
        stated = json.loads(path.read_text()) if path.is_file() else {}
        ends: list[int] = []
        for value in (stated.get("eos_token_id"), self.config.eos_token_id):
            ends += value if isinstance(value, list) else [] if value is None else [value]
        if self.tokenizer.eos_token_id is not None:
            ends.append(self.tokenizer.eos_token_id)
        if not ends:
            raise ConfigError(
                f"{self.folder} names no token that ends a sequence, so none would ever end: set "
                "eos_token_id in generation_config.json"
            )
        return sorted(set(ends))

    def _check(self) -> None:
        largest, size = max(self.tokenizer.get_vocab().values()), self.config.vocab_size
        if largest >= size:
            raise ConfigError(
                f"the tokenizer in {self.folder} has token {largest}, the model a vocabulary of "
                f"{size}: they belong to different models; bring the tokenizer that was published "
                "with the weights"
            )
        dropout = {k: v for k, v in self.config.to_dict().items() if is_dropout(k) and v}
        if dropout:
            raise ConfigError(
                f"{self.folder}/config.json has {dropout}: policy and reference must see the same "
                "function; set it to 0 there"
            )
        if is_stateful(self.config):
            raise ConfigError(
                f"domain.model = {self.name!r} ({self.config.model_type}) keeps a state instead of "
                "a cache of keys and values; rollouts here need attention in every layer"
            )

    def files(self) -> list[Path]:
        """Everything beside the weights that decides what the model says."""
        found = {path for pattern in _BESIDE for path in self.folder.glob(pattern)}
        return sorted(path for path in found if path.is_file())

    def spec(self, attention: str, lora: LoraConfig | None = None) -> ModelSpec:
        """attention: transformers' name of an implementation; lora: None for all parameters."""
        unwanted = ("lm_head.weight",) if self.config.tie_word_embeddings else ()
        # Some folders store what is shared twice.
        weights = SafetensorsFolder(self.folder, WEIGHTS, unwanted)
        return language_model_spec(self.config, attention, weights, lora)


def language_model_spec(
    config: Any, attention: str, weights: WeightSource, lora: LoraConfig | None
) -> ModelSpec:
    """The causal language model of a transformers config, as an engine is to build it."""
    from transformers import AutoModelForCausalLM

    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    return ModelSpec(
        build=lambda: _build(config, attention),
        weights=weights,
        blocks=tuple(model_class._no_split_modules or ()),
        units=embedding_units,
        tie=lambda model: model.tie_weights(),
        lora=lora,
        lora_targets=LINEAR,
        checkpoint_activations=checkpoint_activations,
    )


def _build(config: Any, attention: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"domain.attention = {attention!r} does not go with this model here ({error}); use "
            '"eager"'
        ) from error
    logprobs.install(model)
    return model


def read_any_config(folder: Path, name: str) -> Any:
    """The config of any model of transformers. ModelNotFoundError where the folder is not whole."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"domain.model = {name!r}: {folder} has no config.json, so it is no model folder of "
            "transformers, or half of one; download it again with `hf download`"
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"domain.model = {name!r}: transformers cannot read {folder}/config.json ({error})"
        ) from error


def read_config(folder: Path, name: str) -> Any:
    """The model's config. ModelNotFoundError where the folder is not a whole language model."""
    from transformers import AutoModelForCausalLM

    config = read_any_config(folder, name)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ConfigError(
            f"domain.model = {name!r} is of type {config.model_type!r}, which transformers has no "
            "causal language model for; the text domain trains language models only"
        )
    if not hasattr(config, "vocab_size"):
        raise ConfigError(
            f"domain.model = {name!r} is of type {config.model_type!r}, a composite of a language "
            "model and others; give the folder of its language model alone"
        )
    return config


def is_stateful(config: Any) -> bool:
    """Whether some layer keeps a recurrent state: such a cache cannot be shared by a group."""
    from transformers import AutoModelForCausalLM

    layers = set(getattr(config, "layer_types", None) or ())
    is_recurrent = layers - {"full_attention", "sliding_attention", "chunked_attention"}
    # None: the language model of a composite.
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return bool(is_recurrent) or getattr(model_class, "_is_stateful", False)


def checkpoint_activations(model: Any) -> None:
    """transformers renames it on the way to version 6."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def is_dropout(name: str) -> bool:
    is_used = "classifier" not in name  # of other heads
    return is_used and ("dropout" in name or name.endswith("pdrop"))


def embedding_units(model: Any) -> list[list[nn.Module]]:
    """Embeddings and output layer as sharding units: one if they are tied, or they would come
    apart; in the root's unit they would stay gathered through the whole pass."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight is head.weight:
        return [[embedding, head]]
    return [[embedding], [head]]
