"""RunConfig: one strict TOML file a run, composed of the components' own config classes.

`load_config` reads the file, applies `--set section.key=value`, checks types, unknown keys and
contradictions, and remembers where each value came from. Nothing heavy is loaded here.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from adrpo_scale.checkpoint.base import CheckpointConfig
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import REQUIRED, Effect, Section, setting, walk
from adrpo_scale.data.prompts import PromptsConfig
from adrpo_scale.engines.base import OptimizerConfig
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.run.registry import ALGORITHMS, DOMAINS, ENGINES, REWARDS
from adrpo_scale.training.evaluator import EvaluationConfig
from adrpo_scale.training.limits import LimitsConfig
from adrpo_scale.training.metrics import LoggingConfig


def _union(table: Mapping[str, Any], tag: str) -> Any:
    """The config classes of a table, told apart by their field `tag`."""
    classes = tuple(component.Config for component in table.values())
    return Annotated[Union[classes], Field(discriminator=tag)]  # noqa: UP007 (built at run time)


class RunConfig(Section):
    """Everything a run depends on; its hash is the run's identity."""

    seed: int = setting(0, "seed of every random draw of the run", ge=0, lt=2**63)
    iterations: int = setting(100, "rollouts, each with its updates", effect="none", ge=0)
    init_from: str | None = setting(
        None, "start from the trained weights of RUN or RUN@iteration, with fresh counters"
    )
    rebase_reference: bool = setting(
        False, "with init_from: those weights are the reference too, not the original base"
    )
    domain: _union(DOMAINS, "name") = setting(REQUIRED, "what is generated")  # type: ignore[valid-type]
    algorithm: _union(ALGORITHMS, "name") = setting(REQUIRED, "what is learned")  # type: ignore[valid-type]
    rewards: list[_union(REWARDS, "kind")] = setting(REQUIRED, "what is good")  # type: ignore[valid-type]
    prompts: PromptsConfig = setting(REQUIRED, "what is asked for")
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "AdamW and the updates of an iteration")
    ema_decay: float | None = setting(None, "moving average of the trained weights", gt=0, lt=1)
    engine: _union(ENGINES, "name") = setting(ENGINES["fsdp2"].Config(), "how models are sharded")  # type: ignore[valid-type]
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "what is measured during training")
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), "when to save, what to keep")
    limits: LimitsConfig = setting(LimitsConfig(), "when to stop on purpose")
    logging: LoggingConfig = setting(LoggingConfig(), "what is written down, and how often")

    @model_validator(mode="before")
    @classmethod
    def _name_the_engine(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("engine"), dict):
            data = data | {"engine": {"name": "fsdp2"} | data["engine"]}
        return data

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        labels = [reward.label for reward in self.rewards]
        if not any(reward.use == "training" for reward in self.rewards):
            raise ValueError(
                "no reward to train on: give at least one [[rewards]] with use = training"
            )
        if len(set(labels)) < len(labels):
            raise ValueError(f"rewards {labels} share a name; set `name` on one of them")
        if self.evaluation.weights == "ema" and self.ema_decay is None:
            raise ValueError(
                'evaluation.weights = "ema" without ema_decay; set ema_decay, e.g. 0.99'
            )
        if self.rebase_reference and self.init_from is None:
            raise ValueError(
                "rebase_reference without init_from: name the run to start from, or leave it out"
            )
        self._check_best()
        self._warn_of_nucleus()
        # Built here only to let the algorithm refuse settings that its kind of domain rules out.
        table = ALGORITHMS[self.algorithm.name]
        algorithm = table(self.algorithm, DOMAINS[self.domain.name].kind)
        if self.optimizer.micro_batch % algorithm.rows_per_unit:
            raise ValueError(
                f"optimizer.micro_batch = {self.optimizer.micro_batch} with {self.algorithm.name}, "
                f"which trains on {algorithm.rows_per_unit} rows at a time; use a multiple"
            )
        return self

    def _warn_of_nucleus(self) -> None:
        """Ratios are of the whole distribution, samples of a part of it: with one step per rollout
        the ratio is 1 whatever was drawn, with several the difference counts."""
        rollout, steps = self.domain.rollout, self.optimizer.updates * self.optimizer.minibatches
        cut = getattr(rollout, "top_p", 1.0) < 1 or getattr(rollout, "top_k", 0) > 0
        if cut and steps > 1:
            warnings.warn(
                f"domain.rollout.top_p = {rollout.top_p}, top_k = {rollout.top_k} with {steps} "
                "optimizer steps per rollout: ratios are of the whole distribution, not of the one "
                "that was drawn from; use top_p = 1 and top_k = 0, or one step",
                stacklevel=2,
            )

    def _check_best(self) -> None:
        """`keep_best` needs something to go by, or it would quietly keep nothing."""
        if self.checkpoint.keep_best == 0:
            return
        held_out = self.prompts.held_out is not None or self.prompts.held_out_share > 0
        splits = ["train", *(["held_out"] if held_out else [])]
        if self.evaluation.every == 0:
            raise ValueError("checkpoint.keep_best with evaluation.every = 0: nothing is measured")
        if self.checkpoint.best_split not in splits:
            raise ValueError(
                f"checkpoint.best_split = {self.checkpoint.best_split!r}, but this run evaluates "
                f"{' and '.join(splits)}"
            )

    def needs_from_hub(self) -> list[HubNeed]:
        """Every model and dataset that the run reads, as its components declare them."""
        sections = [self.domain, *self.rewards, self.prompts]
        return [need for section in sections for need in section.needs_from_hub()]

    def resolved(self) -> dict[str, Any]:
        """Every setting, JSON-able, in declaration order."""
        return self.model_dump(mode="json")

    def effects(self) -> dict[str, Effect]:
        """What each setting changes, by dotted path."""
        found = {path: effect for path, _, _, effect in walk(self)}
        if self.optimizer.schedule != "constant":
            found["iterations"] = "maths"  # the learning rate falls towards the last one
        return found

    def digest(self) -> str:
        """8 hex digits: the run's identity, a hash of every setting that changes what is learned.
        So a run that is made longer, or logs more, is still the same run."""
        effects, values = self.effects(), dict(leaves(self.resolved()))
        kept = {path: values[path] for path in values if effects[path] in ("maths", "content")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class LoadedConfig:
    """A config, its name, and where each given value comes from: dotted path → file or --set."""

    name: str
    config: RunConfig
    given: Mapping[str, str]

    def source(self, path: str, value: Any, info: FieldInfo) -> str:
        """file, --set or default, and the place in the paper if the value is the paper's."""
        given, paper = self.given.get(path, "default"), paper_place(info)
        return f"{given}: paper, {paper}" if paper and value == info.default else given


def paper_place(info: FieldInfo) -> str | None:
    extra = info.json_schema_extra
    return str(extra["paper"]) if isinstance(extra, dict) and "paper" in extra else None


def load_config(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Reads and checks a TOML file. overrides: "section.key=value", the value as in TOML (a bare
    word is a string). Raises ConfigError, listing every fault with its remedy."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"config {path} is not there; see configs/ for the shipped ones"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"config {path} is not valid TOML: {error}") from error
    given = {leaf: "file" for leaf, _ in leaves(data)}
    for override in overrides:
        key, value = parse_override(override)
        assign(data, key, value)
        given |= {f"{key}.{leaf}" if leaf else key: "--set" for leaf, _ in leaves(value)}
    return LoadedConfig(path.stem, parse_config(data), given)


def parse_config(data: Mapping[str, Any]) -> RunConfig:
    """RunConfig from plain data; ConfigError, one line a fault, if it does not fit."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        faults = [_fault(detail) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(faults))) from error


def parse_override(text: str) -> tuple[str, Any]:
    """("section.key", value) from "section.key=value"."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: expected section.key=value, e.g. optimizer.updates=2")
    try:
        return key.strip(), tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), raw.strip()  # a bare word; quotes are awkward in a shell


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Sets data[a][b][...] for key "a.b..."; list items by number; `null` removes the key."""
    *parents, last = key.split(".")
    place: Any = data
    for parent in parents:
        if isinstance(place, list):
            place = place[_index(place, parent, key)]
        else:
            place = place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise ConfigError(f"--set {key}: {parent} is a value, not a section")
    if isinstance(place, list):
        place[_index(place, last, key)] = value
    elif value == "null":  # TOML has no null, and a section must be removable from the shell
        place.pop(last, None)
    else:
        place[last] = value


def overridden(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The config with further `--set`s."""
    data = config.resolved()
    for override in overrides:
        assign(data, *parse_override(override))
    return parse_config(data)


def _index(items: list[Any], text: str, key: str) -> int:
    if not text.isdigit() or int(text) >= len(items):
        raise ConfigError(f"--set {key}: {text!r} should be a number from 0 to {len(items) - 1}")
    return int(text)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that is not itself a section."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}.{number}")
    else:
        yield path, value


def _fault(detail: Any) -> str:
    """One line: which key, what was wrong, what is expected."""
    location = list(detail["loc"])
    kind = detail["type"]
    where = _shown(location)
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{where}: unknown key; {hint}known here: {', '.join(known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        expected = detail["ctx"].get("expected_tags", "")
        tag = str(detail["ctx"]["discriminator"]).strip("'")
        got = detail["ctx"].get("tag")
        known = [name.strip().strip("'") for name in expected.split(",")] if expected else []
        near = difflib.get_close_matches(str(got), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        what = f"{got!r} is not known; {hint}known: {expected}" if got else "is missing"
        return f"{where}.{tag}: {what}"
    if kind == "missing":
        return f"{where}: is required and was not given"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where} = {detail['input']!r}: {message}"


_TAGS = {*DOMAINS, *ALGORITHMS, *ENGINES, *REWARDS}


def _shown(location: Iterable[Any]) -> str:
    """Dotted path without the union tags that pydantic puts between section and key."""
    return ".".join(str(part) for part in _without_tags(list(location)))


def _without_tags(location: list[Any]) -> list[Any]:
    return [
        part for k, part in enumerate(location) if not (part in _TAGS and k in (1, 2) and k < 3)
    ]


def _known_keys(location: Sequence[Any]) -> list[str]:
    """Keys of the section at a location that pydantic reports."""
    model: Any = RunConfig
    for part in location:
        candidates = section_classes(model)
        if part in _TAGS:
            model = next(c for c in candidates if part in _tag_values(c))
        elif isinstance(part, str):
            model = candidates[0].model_fields[part].annotation
    return sorted(section_classes(model)[0].model_fields)


def _tag_values(model: type[BaseModel]) -> set[str]:
    fields = [model.model_fields[n] for n in ("name", "kind") if n in model.model_fields]
    return {
        v for f in fields if get_origin(f.annotation) is Literal for v in get_args(f.annotation)
    }


def section_classes(annotation: Any) -> list[type[BaseModel]]:
    """The config classes that an annotation (class, union, list, optional) can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [c for part in get_args(annotation) for c in section_classes(part)]
