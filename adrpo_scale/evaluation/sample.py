"""Pictures or texts from a trained run, or from a model as it was published, without training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from adrpo_scale.checkpoint.base import MANIFEST
from adrpo_scale.checkpoint.locate import open_checkpoint, origin_of
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import CHECKPOINTS, TRAJECTORY
from adrpo_scale.core import dist
from adrpo_scale.core.console import console
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.core.types import DrawKey, Prompt
from adrpo_scale.data.formats import guess_format
from adrpo_scale.data.prompt_files import load_prompts
from adrpo_scale.domains.base import Domain, Published
from adrpo_scale.engines.base import Engine, OptimizerConfig
from adrpo_scale.run.build import build_domain, specs_of
from adrpo_scale.run.config import RunConfig, SampleConfig
from adrpo_scale.run.load import overridden, parse_config, parsed
from adrpo_scale.run.registry import DOMAINS, ENGINES
from adrpo_scale.training.media import Medium, medium_of
from adrpo_scale.training.rollout import sample_block
from adrpo_scale.training.state import TrainingState

MARKS = ("model_index.json", "config.json")  # one of them lies in every model that is cached
UNKNOWN = "text"  # the domain of a hub id that nobody recognises: it has the words for it


@dataclass(frozen=True)
class Source:
    """What is sampled from. run, reader: the run's whole config and the checkpoint; None of a plain
    model."""

    config: SampleConfig
    run: RunConfig | None = None
    reader: Reader | None = None


def find_source(run_or_model: str, overrides: Sequence[str] = ()) -> Source:
    """A run (RUN or RUN@iteration), a checkpoint folder, or a model as it was published.

    overrides: of its settings. ConfigError for a folder that is none of them.
    """
    meant = stands_for(run_or_model)
    if meant == "run":
        return run_source(open_checkpoint(run_or_model), overrides)
    return model_source(run_or_model, meant, overrides)


def run_source(reader: Reader, overrides: Sequence[str] = ()) -> Source:
    """A run's checkpoint, with further settings."""
    config = overridden(parse_config(reader.manifest.document["config"]), overrides)
    return Source(config.sampling, config, reader)


def model_source(model: str, domain: str, overrides: Sequence[str] = ()) -> Source:
    """A model as it was published, by the domain that samples from it."""
    section = {"name": domain} | DOMAINS[domain].published(model)
    return Source(overridden(parsed(SampleConfig, {"domain": section}), overrides))


def stands_for(name: str) -> str:
    """What a name stands for: "run" for a run or checkpoint, or a model, by its domain's name.

    By what lies in the folder; of a hub id, by the files that the hub or its cache lists.
    ConfigError for a folder in which none of these lies.
    """
    folder = _local_folder(name)
    if folder is None:
        return _domain_of(_on_hub(name)) or UNKNOWN
    if any((folder / name).exists() for name in (MANIFEST, CHECKPOINTS, TRAJECTORY)):
        return "run"
    found = _domain_of(_in_folder(folder))
    if found is not None:
        return found
    if (folder / "config.json").is_file():
        return "run"  # both a run and a model have one; only the model's has a type
    what = "adapters alone" if (folder / "adapter_config.json").is_file() else "none of them"
    raise ConfigError(
        f"{name!r}: expected a run, a checkpoint, a diffusers pipeline or a language model, but "
        f"{folder} holds {what}; to sample from adapters, name their run"
    )


def _domain_of(model: Published) -> str | None:
    """The domain that recognises a model; of several the last, which is the more special one."""
    return next((name for name in reversed([*DOMAINS]) if DOMAINS[name].recognises(model)), None)


def _local_folder(name: str) -> Path | None:
    """The folder of a run or model; None where the name is a hub id, or of nothing."""
    if name.startswith("demo:"):
        return resolve_path(name)
    for path in (name, name.rpartition("@")[0]):
        folder = Path(path).expanduser()
        if path and folder.is_dir():
            return folder
    return None


def _in_folder(folder: Path) -> Published:
    return Published(
        lambda file: (folder / file).is_file(), lambda: _model_type(folder / "config.json")
    )


def _model_type(config: Path) -> str | None:
    """Of a model's config.json; None for that of a run."""
    try:
        stated = json.loads(config.read_text()).get("model_type")
    except (OSError, ValueError):  # not there, or half written: what reads it has the words for it
        return None
    return stated if isinstance(stated, str) else None


def _on_hub(name: str) -> Published:
    """Asks for the list of files and the model's type alone: a file that is brought would make a
    half model's folder. What lies in the cache is looked at first."""
    from huggingface_hub import file_exists, model_info, try_to_load_from_cache

    def asked(question: Callable[..., Any], *given: Any) -> Any:
        with suppress(Exception):  # no such model, or nobody to ask: which one differs by client
            return question(*given)
        return None

    def cached(file: str) -> Path | None:
        found = asked(try_to_load_from_cache, name, file)
        return Path(found) if isinstance(found, str) else None

    is_here = any(cached(file) for file in MARKS)

    @cache
    def model_type() -> str | None:
        config = cached("config.json")
        if is_here:
            return None if config is None else _model_type(config)
        info = asked(model_info, name)
        return None if info is None else (info.config or {}).get("model_type")

    def has(file: str) -> bool:
        return cached(file) is not None if is_here else bool(asked(file_exists, name, file))

    return Published(has, model_type)


def sampling_engine(config: SampleConfig) -> Engine:
    """Nothing is trained, so neither the optimizer nor the seed is used."""
    return ENGINES[config.engine.name](config.engine, OptimizerConfig(), 0)  # type: ignore[call-arg]


def load_policy(
    source: Source, domain: Domain, engine: Engine, weights: Literal["trained", "ema"]
) -> nn.Module:
    """The policy of a checkpoint, or the plain model. CheckpointError if it has no such weights."""
    reader = source.reader
    if reader is None:
        spec = domain.reference_spec() or domain.policy_spec()
        return engine.build_frozen(spec)
    assert source.run is not None
    spec, _ = specs_of(domain, source.run, origin_of(reader))
    policy = engine.build_policy(spec)
    part = "policy" if weights == "trained" else "ema"
    TrainingState(engine, None).load(part, engine.trained_slices(), reader)
    engine.publish()
    return policy.eval()


def sample(
    run_or_model: str,
    prompts: Path,
    to: Path,
    per_prompt: int,
    seed: int,
    weights: str,
    overrides: Sequence[str],
) -> None:
    """The command: joins the process group, and writes the pictures or completions."""
    source = find_source(run_or_model, overrides)
    engine = source.config.engine
    with dist.process_group(engine.torch_device(), engine.timeout_seconds):
        chosen = cast(Literal["trained", "ema"], weights)
        written = sample_to(source, prompts, to, per_prompt=per_prompt, seed=seed, weights=chosen)
        if dist.is_main():
            _report(written, to, medium_of(DOMAINS[source.config.domain.name]))


def sample_to(
    source: Source,
    prompts_file: Path,
    to: Path,
    *,
    per_prompt: int,
    seed: int,
    weights: Literal["trained", "ema"],
) -> list[Path]:
    """Writes PROMPT-SAMPLE.png files, grid.png and samples.jsonl into `to`, or completions.jsonl;
    returns the paths of the pictures, or of that file, on rank 0. Collective."""
    config = source.config
    trained = source.run.prompts.format if source.run is not None else "auto"
    prompts = load_asked_as_trained(str(prompts_file), trained)
    domain, engine = build_domain(config), sampling_engine(config)
    prompts = domain.usable(prompts)
    domain.prepare(prompts, engine.device, engine.dtype)
    policy = load_policy(source, domain, engine, weights)
    with engine.sampling(policy):
        rows = sample_block(
            domain,
            policy,
            prompts,
            per_prompt,
            DrawKey(seed, 0),
            config.domain.rollout_chunk,
            mode="evaluation",
        )
    artifacts = dict(zip(rows.sample_ids_N.tolist(), domain.artifacts(rows), strict=True))
    to.mkdir(parents=True, exist_ok=True)
    return medium_of(domain).write(prompts, artifacts, per_prompt, to)


def load_asked_as_trained(file: str, trained: str) -> list[Prompt]:
    """The prompts of a file; where these are questions about clips, in the run's own wording."""
    is_reworded = trained == "avqa_think" and guess_format(resolve_path(file)) == "avqa"
    return load_prompts(file, trained if is_reworded else "auto")


def _report(written: Sequence[Path], to: Path, medium: Medium) -> None:
    for line in medium.summary(written, to):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
