"""The folder of a causal language model of transformers: its config and tokenizer, checks of both,
and its `ModelSpec`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.core.types import Prompt
from adrpo_scale.domains import logprobs
from adrpo_scale.domains.chat import ChatConfig, load_tokenizer, without_empty_system
from adrpo_scale.engines.spec import LoraConfig, ModelSpec
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.loaders import load_settings
from adrpo_scale.hub.soundness import loading
from adrpo_scale.hub.weight_files import ADAPTER
from adrpo_scale.hub.weights import SafetensorsFolder, WeightSource

log = logging.getLogger(__name__)

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WEIGHTS = "model"
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
_BESIDE = ["config.json", "generation_config.json", "tokenizer*", "vocab.*", "merges.txt"]
_BESIDE += ["*.jinja", "special_tokens_map.json", "added_tokens.json"]


class LanguageModel:
    """The model in a folder, without its weights: config, tokenizer, ends (the tokens that end a
    completion), pad, and tokens that it must never generate.

    special: those that stand for something else than text. tokenless: ids without a token, which
    pad the vocabulary beyond the tokenizer; a sampled one would vanish from the text. They are
    banned unless `bans_tokenless` is False, as in runs that began without the ban.

    Raises ModelNotFoundError where the folder is incomplete, and ConfigError where its parts do not
    fit each other or rollouts of it are not possible.
    """

    special: tuple[int, ...] = ()
    bans_tokenless = True
    drops_empty_system = True

    def __init__(self, folder: Path, name: str, chat: ChatConfig) -> None:
        self.folder, self.name = folder, name
        self.config = self._read_config()
        self.tokenizer = load_tokenizer(folder, chat, self._template())
        with loading(folder, "config"):
            self.ends = self._read_ends()
            pad = self.tokenizer.pad_token_id
            self.pad = self.ends[0] if pad is None else int(pad)
            self._check()
            self.tokenless = ids_without_token(self.tokenizer, self.config.vocab_size, self.ends)

    @property
    def banned(self) -> tuple[int, ...]:
        """The tokens that it must never generate."""
        return tuple(sorted({*self.special, *(self.tokenless if self.bans_tokenless else ())}))

    def _read_config(self) -> Any:
        """The config of the language model."""
        return read_config(self.folder, self.name)

    def _template(self) -> str | None:
        """A chat template that replaces the tokenizer's own; None: there is none."""
        return None

    def _read_ends(self) -> list[int]:
        """The end tokens of generation_config.json, the model's config and the tokenizer."""
        path = self.folder / "generation_config.json"
        stated = read_json(path) if path.is_file() else {}
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
        if is_stateful(self.config):
            raise ConfigError(
                f"domain.model = {self.name!r} ({self.config.model_type}) has layers with a "
                "recurrent state; rollouts here need attention in every layer: use another model"
            )

    def check_training(self) -> None:
        """Raises ConfigError where the model cannot be trained, though it can be sampled from."""
        dropout = {k: v for k, v in self.config.to_dict().items() if is_dropout(k) and v}
        if dropout:
            raise ConfigError(
                f"{self.folder}/config.json has {dropout}: policy and reference must be the same "
                "function; set it to 0 there"
            )

    def rules(self) -> dict[str, Any]:
        """See `Domain.rules`."""
        return {
            "bans_tokenless": self.bans_tokenless,
            "drops_empty_system": self.drops_empty_system,
        }

    def spoken(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts as the model gets them: by `without_empty_system`, but for a run that began
        with empty system messages."""
        return without_empty_system(prompts) if self.drops_empty_system else list(prompts)

    def keep_rules(self, rules: Mapping[str, Any]) -> None:
        """See `Domain.keep_rules`. Warns where that leaves ids without a token unbanned."""
        self.bans_tokenless = rules.get("bans_tokenless", False)
        self.drops_empty_system = rules.get("drops_empty_system", False)
        if self.tokenless and not self.bans_tokenless:
            runs = logprobs.ranges(self.tokenless)
            log.warning(
                "the run began before ids without a token were banned, and stays without the ban: "
                "%s has %d of them (%s), which vanish from the text where they are sampled. A new "
                "run never samples them",
                self.name,
                len(self.tokenless),
                ", ".join(str(a) if a == b else f"{a}…{b}" for a, b in runs),
            )

    def files(self) -> list[Path]:
        """The files beside the weights on which the model's output depends."""
        found = {path for pattern in _BESIDE for path in self.folder.glob(pattern)}
        return sorted(path for path in found if path.is_file())

    def tied(self) -> dict[str, str]:
        """`tied_names`: some folders store the tied output layer as well, some store it alone."""
        from transformers import AutoModelForCausalLM

        return tied_names(self.config, AutoModelForCausalLM._model_mapping[type(self.config)])

    def spec(self, attention: str, lora: LoraConfig | None = None) -> ModelSpec:
        """The `ModelSpec`. attention: transformers' name of an implementation. lora: None trains
        all parameters."""
        weights = SafetensorsFolder(self.folder, WEIGHTS, self.tied())
        return language_model_spec(self.config, attention, weights, lora, self.banned)


def ids_without_token(tokenizer: Any, size: int, ends: Sequence[int]) -> tuple[int, ...]:
    """Ids below `size` for which the tokenizer has no token, in order; none of `ends`."""
    unnamed = set(range(size)) - {*tokenizer.get_vocab().values(), *ends}
    return tuple(sorted(i for i in unnamed if not _has_token(tokenizer, i)))


def _has_token(tokenizer: Any, token: int) -> bool:
    """A vocabulary's dictionary lists only one of several ids with the same text."""
    try:
        return tokenizer.convert_ids_to_tokens(token) is not None
    except (IndexError, KeyError, OverflowError):  # of tokenizers in Python
        return False


def language_model_spec(
    config: Any,
    attention: str,
    weights: WeightSource,
    lora: LoraConfig | None,
    banned: tuple[int, ...] = (),
) -> ModelSpec:
    """The `ModelSpec` of the causal language model of a transformers config."""
    from transformers import AutoModelForCausalLM

    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    return ModelSpec(
        build=lambda: _build(config, attention, banned),
        weights=weights,
        blocks=tuple(model_class._no_split_modules or ()),
        units=embedding_units,
        tie=lambda model: model.tie_weights(),
        lora=lora,
        lora_targets=LINEAR,
        checkpoint_activations=checkpoint_activations,
    )


def tied_names(config: Any, model_class: Any) -> dict[str, str]:
    """Name of a weight → name of the weight to which the config ties it, of a class of models."""
    if not getattr(config, "tie_word_embeddings", False):
        return {}
    return dict(getattr(model_class, "_tied_weights_keys", None) or {})


def _build(config: Any, attention: str, banned: tuple[int, ...]) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, trust_remote_code=False
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"domain.attention = {attention!r} does not work with this model here ({error}); use "
            '"eager"'
        ) from error
    logprobs.install(model, banned)
    return model


def read_any_config(folder: Path, name: str) -> Any:
    """The config of any model of transformers. ModelNotFoundError where it cannot be read."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        why = "is not a complete model folder of transformers; download it again with `hf download`"
        if (folder / ADAPTER).is_file():
            base = read_json(folder / ADAPTER).get("base_model_name_or_path")
            why = (
                f"holds adapters alone, of the base {base!r}: merge them (docs/guide/weights.md "
                "shows how) and name the result"
            )
        raise ModelNotFoundError(
            f"domain.model = {name!r}: {folder} has no config.json, so it {why}"
        )
    return load_settings(AutoConfig, folder)


def read_config(folder: Path, name: str) -> Any:
    """The config of a causal language model. ModelNotFoundError where it cannot be read,
    ConfigError for another kind of model."""
    from transformers import AutoModelForCausalLM

    config = read_any_config(folder, name)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ConfigError(
            f"domain.model = {name!r} is of type {config.model_type!r}, for which transformers has "
            "no causal language model; the text domain needs one: name another model"
        )
    if not hasattr(config, "vocab_size"):
        raise ConfigError(
            f"domain.model = {name!r} is of type {config.model_type!r}, a composite of a language "
            "model and others; give the folder of its language model alone"
        )
    return config


def is_stateful(config: Any) -> bool:
    """True where a layer keeps a recurrent state: a group cannot share such a cache."""
    from transformers import AutoModelForCausalLM

    layers = set(getattr(config, "layer_types", None) or ())
    is_recurrent = layers - {"full_attention", "sliding_attention", "chunked_attention"}
    # None for the language model of a composite model.
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return bool(is_recurrent) or getattr(model_class, "_is_stateful", False)


def checkpoint_activations(model: Any) -> None:
    """Switches activation checkpointing on; transformers 6 renames the method."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def is_dropout(name: str) -> bool:
    is_used = "classifier" not in name  # belongs to heads that are not built
    return is_used and ("dropout" in name or name.endswith("pdrop"))


def embedding_units(model: Any) -> list[list[nn.Module]]:
    """Embeddings and output layer as sharding units: a common one where they are tied, because two
    units would untie them. In the root's unit they would stay gathered through the whole pass."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight is head.weight:
        return [[embedding, head]]
    return [[embedding], [head]]
