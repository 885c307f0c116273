"""The command `sample`: pictures or completions of a run's checkpoint or a published model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from adrpo_scale.checkpoint.base import MANIFEST
from adrpo_scale.checkpoint.locate import open_checkpoint, origin_of
from adrpo_scale.checkpoint.named import EVALUATED, set_of, stated_weights
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import CHECKPOINTS, TRAJECTORY
from adrpo_scale.checkpoint.whole import require_whole
from adrpo_scale.core import dist
from adrpo_scale.core.console import say
from adrpo_scale.core.errors import (
    ConfigError,
    DamagedFileError,
    PromptError,
    given,
)
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.paths import make_output_folder, resolve_path, usual_path
from adrpo_scale.core.types import DrawKey, Prompt
from adrpo_scale.data.formats import guess_format
from adrpo_scale.data.prompt_files import load_prompts
from adrpo_scale.data.prompts import PromptsConfig
from adrpo_scale.domains.base import Domain, Published
from adrpo_scale.engines.base import Engine, OptimizerConfig
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.run.build import build_domain, specs_of
from adrpo_scale.run.compare import require_base
from adrpo_scale.run.config import RunConfig, SampleConfig
from adrpo_scale.run.cut_prompts import report_cut
from adrpo_scale.run.load import overridden, parse_config, parsed
from adrpo_scale.run.registry import DOMAINS, ENGINES
from adrpo_scale.run.soundness import check_models
from adrpo_scale.training.media import SAMPLES, Medium, medium_of
from adrpo_scale.training.rollout import chunk_count, sample_block
from adrpo_scale.training.state import TrainingState

MARKS = ("model_index.json", "config.json")  # every cached model has one of them
MANY = 100  # prompts, from which on `sample` names --limit
UNKNOWN = "text"  # the domain of a hub id that no domain recognises; its checks name the fault


@dataclass(frozen=True)
class Source:
    """The origin of samples. run, reader: the run's complete config and its checkpoint; None for a
    published model."""

    config: SampleConfig
    run: RunConfig | None = None
    reader: Reader | None = None


def find_source(run_or_model: str, overrides: Sequence[str] = ()) -> Source:
    """The source of a name: RUN, RUN@iteration, a checkpoint folder, or a published model.

    overrides: settings as "section.key=value". Raises ConfigError for any other folder.
    """
    meant = stands_for(run_or_model)
    if meant == "run":
        return run_source(open_checkpoint(run_or_model), overrides)
    return model_source(run_or_model, meant, overrides)


def run_source(reader: Reader, overrides: Sequence[str] = ()) -> Source:
    """The source of a run's checkpoint; overrides: further settings."""
    config = overridden(parse_config(reader.manifest.document["config"]), overrides)
    return Source(config.sampling, config, reader)


def model_source(model: str, domain: str, overrides: Sequence[str] = ()) -> Source:
    """The source of a published model; domain: the name of the domain that samples from it."""
    section = {"name": domain} | DOMAINS[domain].published(model)
    return Source(overridden(parsed(SampleConfig, {"domain": section}), overrides))


def stands_for(name: str) -> str:
    """The kind of source that a name stands for: "run" for a run or checkpoint; for a model, the
    name of its domain.

    A folder is judged by its files, a hub id by the files that the hub or its cache lists. Raises
    ConfigError for a folder that is neither a run, nor a checkpoint, nor a model.
    """
    folder = _local_folder(name)
    if folder is None:
        return _domain_of(_on_hub(name)) or UNKNOWN
    if any(os.path.lexists(folder / name) for name in (MANIFEST, CHECKPOINTS, TRAJECTORY)):
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
    """The domain that recognises a model; the last of several, which is the most specific."""
    return next((name for name in reversed([*DOMAINS]) if DOMAINS[name].recognises(model)), None)


def _local_folder(name: str) -> Path | None:
    """The folder of a run or model; None where no such folder exists, as for a hub id."""
    if name.startswith("demo:"):
        return resolve_path(name)
    for path in (name, name.rpartition("@")[0]):
        folder = usual_path(path)
        if path and folder.is_dir():
            return folder
    return None


def _in_folder(folder: Path) -> Published:
    return Published(
        lambda file: (folder / file).is_file(), lambda: _model_type(folder / "config.json")
    )


def _model_type(config: Path) -> str | None:
    """`model_type` in a model's config.json; None for a run's config.json."""
    try:
        stated = read_json(config).get("model_type")
    except DamagedFileError:  # missing or incomplete: the code that reads it names the fault
        return None
    return stated if isinstance(stated, str) else None


def _on_hub(name: str) -> Published:
    """A hub id as a model: by its cached files, or by the hub's list of files and model type. No
    file is downloaded: a single one would look like a cached model."""
    from huggingface_hub import file_exists, model_info, try_to_load_from_cache

    def asked(question: Callable[..., Any], *given: Any) -> Any:
        with suppress(Exception):  # no such model, or no network: the exception differs by client
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
    """An engine for sampling: its optimizer and seed are placeholders, because nothing is
    trained."""
    return ENGINES[config.engine.name](config.engine, OptimizerConfig(), 0)  # type: ignore[call-arg]


def domain_of(source: Source) -> Domain:
    """The domain of a source. Collective. Raises WeightsError where a library would load another
    model from a published model's folder, CheckpointError where adapters are of another base."""
    domain = build_domain(source.config, source.reader)
    if source.reader is None:
        needs = source.config.domain.needs_from_hub()
        dist.run_on_main(lambda: check_models(needs, domain))
    else:
        dist.run_on_main(lambda: require_base(given(source.reader), domain))
    return domain


def require_whole_source(source: Source) -> None:
    """Raises CheckpointError where a file that the samples would come from is damaged: those of a
    run's checkpoint, and of the one that its base was rebased to. Collective."""
    if source.reader is None:
        return
    require_whole(source.reader)
    origin = origin_of(source.reader) if given(source.run).rebase_reference else None
    if origin is not None:
        require_whole(origin)


def load_policy(
    source: Source, domain: Domain, engine: Engine, weights: str = EVALUATED
) -> nn.Module:
    """The policy of a checkpoint, or the published model. weights: a word of `named.WEIGHTS`.
    Raises CheckpointError where the checkpoint has no such weights."""
    reader = source.reader
    if reader is None:
        spec = domain.reference_spec() or domain.policy_spec()
        return engine.build_frozen(spec)
    spec, _ = specs_of(domain, given(source.run), origin_of(reader))
    policy = engine.build_policy(spec)
    TrainingState(engine, None).load(set_of(reader, weights), engine.trained_slices(), reader)
    engine.publish()
    return policy.eval()


def sample(
    run_or_model: str,
    prompts: Path,
    to: Path,
    per_prompt: int,
    seed: int,
    weights: str,
    limit: int | None,
    overrides: Sequence[str],
    overwrite: bool = False,
) -> None:
    """Runs the command: joins the process group, and writes the pictures or completions."""
    source = find_source(run_or_model, overrides)
    engine = source.config.engine
    with dist.process_group(engine.torch_device(), engine.timeout_seconds):
        written = sample_to(
            source,
            prompts,
            to,
            per_prompt=per_prompt,
            seed=seed,
            weights=weights,
            limit=limit,
            overwrite=overwrite,
        )
        if dist.is_main():
            _report(written, to, medium_of(DOMAINS[source.config.domain.name]))


def sample_to(
    source: Source,
    prompts_file: Path,
    to: Path,
    *,
    per_prompt: int,
    seed: int,
    weights: str = EVALUATED,
    limit: int | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Writes PROMPT-SAMPLE.png files, grid.png and samples.jsonl, or completions.jsonl, into `to`.

    weights: a word of `named.WEIGHTS`. limit: number of prompts to take, the first ones; None takes
    all. overwrite: replaces samples that an earlier command wrote there; without it they are an
    error, ConfigError.

    Returns the paths of the pictures, or of completions.jsonl, on rank 0. Collective.
    """
    config = source.config
    trained = source.run.prompts if source.run is not None else None
    which = None if source.reader is None else stated_weights(source.reader, weights)
    prompts = load_asked_as_trained(str(prompts_file), trained)[:limit]
    require_whole_source(source)
    domain, engine = domain_of(source), sampling_engine(config)
    prompts = domain.usable(prompts)
    if dist.is_main():
        _announce(len(prompts), per_prompt, config.domain, limit)
        if which is not None:
            say(f"weights: {which}")
    dist.run_on_main(lambda: _make_folder(to, overwrite))
    dist.run_on_main(lambda: report_cut(domain, [], prompts))
    domain.prepare(prompts, engine.device, engine.dtype)
    policy = load_policy(source, domain, engine, weights)
    chunk = config.domain.chunk
    chunks = chunk_count(len(prompts) * per_prompt, chunk)
    pace, counts = Pace("sampling", chunks, "chunks"), iter((0,))
    with engine.sampling(policy):
        rows = sample_block(
            domain,
            policy,
            prompts,
            per_prompt,
            DrawKey(seed, 0),
            chunk,
            check=lambda: pace.step(next(counts, 1)),  # called before each chunk
            mode="evaluation",
        )
    artifacts = dict(zip(rows.sample_ids_N.tolist(), domain.artifacts(rows), strict=True))
    dist.run_on_main(lambda: _remove(_samples_in(to)))
    return medium_of(domain).write(prompts, artifacts, per_prompt, to)


def _make_folder(to: Path, overwrite: bool) -> None:
    make_output_folder(to)
    earlier = _samples_in(to)
    if earlier and not overwrite:
        raise ConfigError(
            f"--to {to}: it has {len(earlier)} files of an earlier `sample` ({earlier[0].name} "
            "first): choose another --to, or replace them all with --overwrite"
        )


def _samples_in(to: Path) -> list[Path]:
    return sorted(path for path in to.iterdir() if SAMPLES.fullmatch(path.name))


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()


def _announce(prompts: int, per_prompt: int, domain: Any, limit: int | None) -> None:
    """Says how much is sampled before anything heavy begins."""
    what = DOMAINS[domain.name].medium
    more = "; --limit takes the first prompts alone" if limit is None and prompts > MANY else ""
    count = f"{prompts * per_prompt:,} {what}"
    say(f"sampling {count}: {per_prompt} of each of {prompts:,} prompts{more}")


def load_asked_as_trained(file: str, trained: PromptsConfig | None) -> list[Prompt]:
    """The prompts of a file. trained: the section of the run, None for a published model. Questions
    about clips get the wording of the training prompts. A file without the column that the run
    names is read as if it named none."""
    if trained is None:
        return load_prompts(file)
    is_reworded = trained.format == "avqa_think" and guess_format(resolve_path(file)) == "avqa"
    format = trained.format if is_reworded else "auto"
    try:
        return load_prompts(file, format, trained.reading)
    except PromptError:
        if trained.column is None:
            raise
    return load_prompts(file, format)


def _report(written: Sequence[Path], to: Path, medium: Medium) -> None:
    for line in medium.summary(written, to):
        say(line)
