"""Pictures or texts from a trained run, or from a model as it was published, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from adrpo_scale.domains import omni
from adrpo_scale.domains.base import Domain
from adrpo_scale.engines.base import Engine
from adrpo_scale.run.build import build_domain, build_engine, specs_of
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import overridden, parse_config
from adrpo_scale.run.registry import DOMAINS
from adrpo_scale.training.media import Medium, medium_of
from adrpo_scale.training.rollout import sample_block
from adrpo_scale.training.state import TrainingState

PIPELINE = "model_index.json"  # a diffusers pipeline has it
# Of a plain model: settings that sampling does not use, and that must not be in its way.
_UNUSED: dict[str, dict[str, Any]] = {
    "flow": {},
    "text": {"rollout": {"max_new_tokens": 1}},
    "audio": {"rollout": {"max_new_tokens": 1}},
}
Model = Literal["flow", "text", "audio"]


@dataclass(frozen=True)
class Source:
    """What is sampled from: settings, and the checkpoint, or None of a plain model."""

    config: RunConfig
    reader: Reader | None


def find_source(run_or_model: str, prompts: Path) -> Source:
    """A run (RUN or RUN@iteration), a checkpoint folder, or a model with settings for sampling.

    ConfigError for a folder that is none of them.
    """
    kind = kind_of(run_or_model)
    if kind == "run":
        reader = open_checkpoint(run_or_model)
        return Source(parse_config(reader.manifest.document["config"]), reader)
    return Source(
        parse_config(
            {
                "domain": {"name": kind, "model": run_or_model, "train": "full"} | _UNUSED[kind],
                "algorithm": {"name": "raft"},  # not used: nothing is trained
                "rewards": [{"kind": "function", "path": "not:used"}],
                "prompts": {"train": str(prompts)},
            }
        ),
        None,
    )


def kind_of(name: str) -> Literal["run"] | Model:
    """What a name stands for: a run or checkpoint, or a model, by the domain that samples from it.

    By what lies in the folder; of a hub id, by the files that the hub or its cache lists.
    ConfigError for a folder in which none of these lies.
    """
    folder = _local_folder(name)
    if folder is None:
        return _kind_on_hub(name)
    if (folder / PIPELINE).is_file():
        return "flow"
    if any((folder / name).exists() for name in (MANIFEST, CHECKPOINTS, TRAJECTORY)):
        return "run"
    if (folder / "config.json").is_file():
        # Both a run and a language model have a config.json; only the model's has a type.
        said = _model_type(folder / "config.json")
        return "run" if said is None else _domain_of(said)
    what = "adapters alone" if (folder / "adapter_config.json").is_file() else "none of them"
    raise ConfigError(
        f"{name!r}: expected a run, a checkpoint, a diffusers pipeline or a language model, but "
        f"{folder} holds {what}; to sample from adapters, name their run"
    )


def _local_folder(name: str) -> Path | None:
    """The folder of a run or model; None where the name is a hub id, or of nothing."""
    if name.startswith("demo:"):
        return resolve_path(name)
    for path in (name, name.rpartition("@")[0]):
        folder = Path(path).expanduser()
        if path and folder.is_dir():
            return folder
    return None


def _model_type(config: Path) -> str | None:
    """Of a model's config.json; None for that of a run."""
    try:
        said = json.loads(config.read_text()).get("model_type")
    except ValueError:  # half written: what reads it next has the words for it
        return None
    return said if isinstance(said, str) else None


def _domain_of(model_type: str | None) -> Model:
    return "audio" if model_type in omni.TYPES else "text"


def _kind_on_hub(name: str) -> Model:
    """Asks for the list of files and the model's type alone: a file that is brought would make a
    half model's folder."""
    from huggingface_hub import file_exists, model_info, try_to_load_from_cache

    try:
        pipeline, config = (try_to_load_from_cache(name, f) for f in (PIPELINE, "config.json"))
        if isinstance(pipeline, str):
            return "flow"
        if isinstance(config, str):
            return _domain_of(_model_type(Path(config)))
        if file_exists(name, PIPELINE):
            return "flow"
        return _domain_of((model_info(name).config or {}).get("model_type"))
    except Exception:  # which one differs between the hub's clients
        return "text"  # no such model, or nobody to ask: what loads it has the words for it


def load_policy(
    source: Source, domain: Domain, engine: Engine, weights: Literal["trained", "ema"]
) -> nn.Module:
    """The policy of a checkpoint, or the plain model. CheckpointError if it has no such weights."""
    reader = source.reader
    if reader is None:
        spec = domain.reference_spec() or domain.policy_spec()
        return engine.build_frozen(spec)
    spec, _ = specs_of(domain, source.config, origin_of(reader))
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
    """The verb: joins the process group, and writes the pictures or completions."""
    source = find_source(run_or_model, prompts)
    source = replace(source, config=overridden(source.config, overrides))
    engine = source.config.engine
    with dist.process_group(engine.torch_device(), engine.timeout_seconds):
        kind = cast(Literal["trained", "ema"], weights)
        written = sample_to(source, prompts, to, per_prompt=per_prompt, seed=seed, weights=kind)
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
    prompts = load_asked_as_trained(str(prompts_file), config.prompts.format)
    domain, engine = build_domain(config), build_engine(config)
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
