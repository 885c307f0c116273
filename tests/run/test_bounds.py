"""Numbers in configs and on the command line have bounds: a wrong digit is an error of the config,
not a segmentation fault, a watchdog that dies, or a disk that is full hours later."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import annotated_types
import pytest
from pydantic.fields import FieldInfo

import adrpo_scale
from adrpo_scale.cli.main import app
from adrpo_scale.core import bounds
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import Section
from adrpo_scale.run.load import load_config
from tests.support.tiny import CONFIGS

IMAGE, TEXT = CONFIGS / "demo" / "image_adrpo.toml", CONFIGS / "demo" / "text_adrpo.toml"


def sections() -> list[type[Section]]:
    """Every config class of the package."""
    for module in pkgutil.walk_packages(adrpo_scale.__path__, "adrpo_scale."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, rest = [], [Section]
    while rest:
        kind = rest.pop()
        rest += kind.__subclasses__()
        found += [kind] if kind.__module__.startswith("adrpo_scale.") else []
    return found


def numbers(kind: type[Section]) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in kind.model_fields.items():
        if is_number(info.annotation):
            yield name, info


def is_number(annotation: Any) -> bool:
    return any(kind in (int, float) for kind in (annotation, *get_args(annotation)))


def ends(metadata: list[Any]) -> set[str]:
    """The ends that constraints bound: low, high."""
    found = set()
    for limit in metadata:
        found |= {"low"} if isinstance(limit, annotated_types.Ge | annotated_types.Gt) else set()
        found |= {"high"} if isinstance(limit, annotated_types.Le | annotated_types.Lt) else set()
    return found


def test_every_number_of_every_config_class_has_bounds_on_both_sides():
    every = [(kind, name, info) for kind in sections() for name, info in numbers(kind)]
    assert len(every) > 60
    assert [f"{k.__name__}.{n}" for k, n, i in every if ends(i.metadata) != {"low", "high"}] == []


def test_every_number_of_every_command_has_bounds_on_both_sides():
    found = {}
    for group in (app, *(registered.typer_instance for registered in app.registered_groups)):
        for command in group.registered_commands:
            for name, hint in get_type_hints(command.callback, include_extras=True).items():
                kind, *notes = get_args(hint) or (hint,)
                if is_number(kind):
                    found[f"{command.callback.__name__}.{name}"] = notes[0]
    assert len(found) >= 8
    assert [name for name, told in found.items() if None in (told.min, told.max)] == []


@pytest.mark.parametrize(
    ("config", "override", "named"),
    [
        (IMAGE, "engine.threads=1000000", "engine.threads = 1000000"),
        (IMAGE, "limits.hang_seconds=1e12", "limits.hang_seconds = 1000000000000"),
        (IMAGE, "limits.hang_seconds=1e-3", "limits.hang_seconds = 0.001"),
        (IMAGE, "checkpoint.lock_expiry_seconds=0.01", "checkpoint.lock_expiry_seconds = 0.01"),
        (IMAGE, "engine.timeout_seconds=1e-9", "engine.timeout_seconds = 1e-09"),
        (IMAGE, "iterations=99999999999", "iterations = 99999999999"),
        (IMAGE, "domain.height=1000000", "domain.height = 1000000"),
        (IMAGE, "optimizer.eps=1e-300", "optimizer.eps = 1e-300"),
        (IMAGE, "prompts.group_size=5000000", "prompts.per_iteration * prompts.group_size = 30,"),
        (TEXT, "domain.rollout.max_new_tokens=1000000000", "domain.rollout.max_new_tokens = 1"),
    ],
)
def test_a_number_beyond_its_bounds_is_named_by_the_config(config, override, named):
    with pytest.raises(ConfigError) as error:
        load_config(config, [override])
    assert named in str(error.value)


def test_numbers_that_people_write_for_never_or_all_are_taken():
    settings = [
        "iterations=2147483647",
        "checkpoint.every_minutes=1e9",
        "checkpoint.keep_every=1000000000",
        "evaluation.prompts=1000000000",
        "limits.hang_seconds=1e6",
        "engine.timeout_seconds=604800",
        "optimizer.max_grad_norm=1e20",
        "optimizer.micro_batch=1000000",
        "domain.rollout_chunk=1000000",
        f"limits.min_reward=-{bounds.NUMBER}",
    ]
    assert load_config(IMAGE, settings).config.iterations == bounds.COUNT
