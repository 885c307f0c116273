"""Models that write the completions of an evaluation: a run's checkpoint, or a published language
model (a transformers folder, an export, a hub id), with adapters on top or without.

Completions come from the model's domain, as in the evaluations of a run and in `sample`: the
model's own chat template, one uniform number a token. The numbers are a function of a sample's
`DrawKey` alone, whatever else is in its batch, and however many processes share the work.

Every model of an evaluation is asked alike. The distribution of its tokens is that of the
evaluation, not that of the run. A prompt may be as long as the model takes beside the longest
completion, whatever was the limit in training, and no prompt is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.checkpoint.named import EVALUATED, weights_of
from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError, PromptError
from adrpo_scale.core.paths import usual_path
from adrpo_scale.core.seeding import derive_seed
from adrpo_scale.core.tensor_files import file_sha256
from adrpo_scale.core.types import Completion, DrawKey, Prompt
from adrpo_scale.data.prompt_sets import key_of
from adrpo_scale.domains.chat import ChatConfig
from adrpo_scale.domains.decoding import SamplingConfig
from adrpo_scale.domains.language_model import FILES, read_any_config
from adrpo_scale.domains.text_config import TextConfig
from adrpo_scale.engines.base import Engine
from adrpo_scale.evaluation.fingerprint import fingerprint
from adrpo_scale.evaluation.peft_adapters import Adapters, read_adapters
from adrpo_scale.evaluation.sample import (
    Source,
    domain_of,
    load_policy,
    model_source,
    require_whole_source,
    run_source,
    sampling_engine,
    stands_for,
)
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weights import find_model, revision_of
from adrpo_scale.run.config import SampleConfig
from adrpo_scale.run.load import changed
from adrpo_scale.run.registry import DOMAINS

LONGEST = 1 << 17  # tokens of a prompt, for a model that states no limit
_PLACE = DrawKey(0, 0)  # the sample's own key becomes its id


@dataclass(frozen=True)
class WriterModel:
    """A model by its names: one of run and pipeline. run: RUN, RUN@120, RUN@last, RUN@best.
    weights: of a run, a word of `named.WEIGHTS`. pipeline: a folder or hub id. revision: of the
    pipeline on the hub. lora: a peft folder or hub id, on the pipeline. dtype: float32 or bfloat16;
    None: the run's, or that of the engine's defaults. chat: settings of [domain.chat] in place of
    the run's."""

    run: str | None = None
    pipeline: str | None = None
    weights: str = EVALUATED
    lora: str | None = None
    revision: str | None = None
    dtype: str | None = None
    chat: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return str(self.run if self.pipeline is None else self.pipeline)


class Writer(Protocol):
    """A model that writes. `prepare` and `close` are collective; `write` is not.

    identity: everything that its completions depend on, except prompt, key and the evaluation's
    distribution of tokens, as JSON; collective.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Loads the model. prompts: every prompt that will be asked, at least one; called once,
        before `write`. Raises PromptError for one that is too long."""

    def write(self, prompts: Sequence[Prompt], keys: Sequence[DrawKey]) -> list[Completion | None]:
        """A completion of each prompt; None where the model did not get the whole prompt. keys: of
        the samples. Ranks may call it differently often."""

    def close(self) -> None:
        """Frees the memory of the model."""


def writer_of(model: WriterModel, sampling: SamplingConfig, device: torch.device) -> Writer:
    """The writer of a model; reads configs and headers, no weights. Collective.

    sampling: the distribution of tokens. Raises ConfigError,
    CheckpointError, ModelNotFoundError and WeightsError for what can be told without weights.
    """
    adapters = None if model.lora is None else read_adapters(model.lora, "lora")
    return DomainWriter(model, _source(model, adapters, sampling, device.type), adapters)


class DomainWriter:
    """The writer of a domain whose medium is completions; see `Writer`."""

    def __init__(self, model: WriterModel, source: Source, adapters: Adapters | None) -> None:
        self._model, self._source, self._adapters = model, source, adapters
        self._domain = domain_of(source)
        self._own: dict[str, Prompt] = {}
        self._held = ExitStack()
        self._policy: Any = None

    @property
    def identity(self) -> Mapping[str, Any]:
        config, reader = self._source.config, self._source.reader
        asked = {
            "domain": config.domain.name,
            "chat": _chat_of(config.domain.chat),
            "dtype": config.engine.dtype,
            "attention": config.domain.attention,
            "sha256": dist.run_on_main(lambda: fingerprint(_plain(self._source))),
        }
        if reader is not None:
            run = reader.folder.resolve().parents[1].name
            named = {"run": run, "iteration": reader.iteration}
            return {**named, "weights": weights_of(reader, self._model.weights), **asked}
        found = {"pipeline": self._model.pipeline, "revision": revision_of(self._domain.folder)}
        if self._adapters is not None:
            found["lora"] = self._adapters.sha256()
        return {**found, **asked}

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        require_whole_source(self._source)
        by_key = {key_of(prompt): prompt for prompt in prompts}
        # Prompts of several sets share their ids, and a domain tells prompts apart by them.
        self._own = {key: replace(p, id=n) for n, (key, p) in enumerate(by_key.items())}
        engine = sampling_engine(self._source.config)
        usable = self._domain.usable([*self._own.values()])
        try:
            self._domain.prepare(usable, engine.device, engine.dtype)
        except PromptError as error:
            raise PromptError(
                f"{self._model.name}: {error} (max_prompt_tokens is here what the model's "
                "positions leave beside the longest completion: lower sampling.max_new_tokens)"
            ) from error
        self._policy = self._loaded(engine)
        self._held.enter_context(engine.sampling(self._policy))

    def _loaded(self, engine: Engine) -> Any:
        if self._adapters is None:
            return load_policy(self._source, self._domain, engine, self._model.weights)
        policy = engine.build_policy(self._adapters.on(self._domain.policy_spec()))
        self._adapters.fill(engine)
        return policy.eval()

    def write(self, prompts: Sequence[Prompt], keys: Sequence[DrawKey]) -> list[Completion | None]:
        own = [self._own[key_of(prompt)] for prompt in prompts]
        ids = [derive_seed(key.seed, key.iteration, key.update, key.draw) for key in keys]
        ids_N = torch.tensor(ids, dtype=torch.int64)
        rows = self._domain.sample(self._policy, own, ids_N, _PLACE, "evaluation")
        sound = self._domain.is_sound(rows).tolist()
        pairs = zip(self._domain.artifacts(rows), sound, strict=True)
        return [completion if is_sound else None for completion, is_sound in pairs]

    def close(self) -> None:
        self._held.close()
        self._policy = None


def _plain(source: Source) -> Source:
    """The source without a template's file, whose place would decide the order of its files."""
    left_out = ("template_file", "system", "thinking")
    values = [("template", "plain"), *((name, "null") for name in left_out)]
    config = changed(source.config, [(f"domain.chat.{name}", value) for name, value in values])
    return replace(source, config=config)


def _chat_of(chat: ChatConfig) -> dict[str, Any]:
    """The settings as JSON, with the hash of a template's file in place of its path."""
    file = chat.template_file
    digest = None if file is None else file_sha256(usual_path(file))
    return {**chat.model_dump(mode="json"), "template_file": digest}


def _source(
    model: WriterModel, adapters: Adapters | None, sampling: SamplingConfig, device: str
) -> Source:
    """The model, with the settings of the evaluation in place of its own."""
    if model.pipeline is None:
        source = run_source(open_checkpoint(str(model.run)))
    else:
        folder = _folder(model)
        source = model_source(folder, _domain_of(folder))
    name, config = source.config.domain.name, source.config
    if not isinstance(config.domain, TextConfig):
        what = f'{DOMAINS[name].medium}: judge it in a file with benchmark = "images"'
        raise ConfigError(
            f"{model.name!r} is of the domain {name!r}, which makes {what}"
            if DOMAINS[name].medium == "pictures"
            else f"{model.name!r} is of the domain {name!r}; expected a language model of `text`, "
            "or of a domain whose config extends `TextConfig`"
        )
    chat = dict(model.chat or {})
    if adapters is not None and adapters.template is not None and "template" not in chat:
        chat.setdefault("template_file", str(adapters.template))
    values: dict[str, Any] = {
        **{f"domain.evaluation.{k}": v for k, v in sampling.model_dump(mode="json").items()},
        **{f"domain.chat.{key}": value for key, value in chat.items()},
        "domain.chat.long_prompts": "error",
        "engine.device": device,
    }
    if "max_prompt_tokens" not in chat:
        values["domain.chat.max_prompt_tokens"] = _room(config, sampling)
    if adapters is not None:
        values["domain.train"] = "lora"
        values["domain.lora"] = adapters.lora.model_dump(mode="json")
    if model.dtype is not None:
        values["engine.dtype"] = model.dtype
    return replace(source, config=changed(config, values.items()))


def _folder(model: WriterModel) -> str:
    """The name of a published model's folder, or its hub id where no revision is stated."""
    name = str(model.pipeline)
    if model.revision is None:
        return name
    if not HubNeed(name).is_hub_id:
        raise ConfigError(
            f"revision = {model.revision!r} goes with a hub id, and pipeline = {name!r} is none: "
            "leave it out"
        )
    need = HubNeed(name, "pipeline", FILES, raw=True, revision=model.revision)
    return str(find_model(need))


def _domain_of(name: str) -> str:
    """The domain of a published model. Raises ConfigError for a run."""
    meant: str = dist.run_on_main(lambda: stands_for(name))
    if meant == "run":
        raise ConfigError(
            f"pipeline = {name!r} is a run: name it as run = …, which takes its weights as its own "
            "evaluation does"
        )
    return meant


def _room(config: SampleConfig, sampling: SamplingConfig) -> int:
    """Tokens that a prompt may have."""
    domain = config.domain
    folder: Path = find_model(domain.needs_from_hub()[0])
    model = read_any_config(folder, domain.model).get_text_config()
    limit = getattr(model, "max_position_embeddings", None) or LONGEST  # GPT-2 has another key
    return max(1, min(LONGEST, limit - max(sampling.max_new_tokens, domain.rollout.max_new_tokens)))
