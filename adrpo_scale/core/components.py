"""Components by the name that a config gives them: a table per kind, and the section of a config
whose class that name decides.

A name is one of the table's, or the import path of a class of the user's own,
`"my_package.mine:MyAlgorithm"`, imported when it is asked for. Either way the class carries the
class of its settings as `Config`, and that class alone decides which keys its section has.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import Section

T = TypeVar("T")


def imported(path: str) -> Any:
    """What `module:attribute` names. ImportError, with the remedy, whatever went wrong on the way:
    a module of the user's own can fail in any way."""
    module, _, attribute = path.partition(":")
    try:
        found = importlib.import_module(module)
        return getattr(found, attribute)
    except Exception as error:
        raise ImportError(
            f"cannot be imported ({type(error).__name__}: {error}); expected module:name, with the "
            "module's folder on PYTHONPATH or the command started in it"
        ) from error


@dataclass(frozen=True)
class Table(Generic[T]):
    """The components of one kind.

    what: the kind, in words. tag: the key of its section that names the component. base: what every
    component derives from; section: what every `Config` derives from. entries: class by name; an
    import path in place of a class is resolved when it is asked for.
    """

    what: str
    tag: str
    base: type[Any]  # abstract, which mypy allows for no type[T]
    section: type[Section]
    entries: dict[str, type[T] | str]

    def __getitem__(self, name: str) -> type[T]:
        """The class; ConfigError with the value, the expectation and the remedy if there is
        none."""
        found = self.entries.get(name, name) if isinstance(name, str) else str(name)
        if not isinstance(found, str):
            return found
        if ":" not in found:
            raise ConfigError(self._unknown(found))
        try:
            component = imported(found)
        except ImportError as error:
            raise ConfigError(f"{found!r} {error}") from error
        self._check(found, component)
        return component

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def config_of(self, name: str) -> type[Section]:
        """The class of a component's section."""
        component: Any = self[name]
        return component.Config

    def known(self) -> str:
        return ", ".join(map(repr, self.entries))

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.entries, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        own = f"or the import path of your own {self.what}, as in 'my_module:MyClass'"
        return f"{name!r} is not known; {hint}known: {self.known()}, {own}"

    def _check(self, path: str, component: Any) -> None:
        """Raises ConfigError where a class of the user's own misses the contract."""
        base = f"adrpo_scale.{self.base.__name__}"
        if not (isinstance(component, type) and issubclass(component, self.base)):
            raise ConfigError(
                f"{path!r} is {_described(component)}, and the class of a {self.what} is expected: "
                f"derive it from {base}"
            )
        missing = sorted(getattr(component, "__abstractmethods__", ()))
        if inspect.isabstract(component):
            raise ConfigError(
                f"{path!r} lacks {', '.join(missing)}, which every {self.what} has: define "
                f"{'it' if len(missing) == 1 else 'them'} as {base} says"
            )
        config = getattr(component, "Config", None)
        if not (isinstance(config, type) and issubclass(config, self.section)):
            section = f"adrpo_scale.{self.section.__name__}"
            raise ConfigError(
                f"{path!r} has {'no' if config is None else 'the'} Config"
                f"{'' if config is None else f' {config!r}'}, and the class of its settings is "
                f"expected: derive one from {section} and write `Config = ...` into the class"
            )


def _described(thing: Any) -> str:
    return f"the class {thing.__qualname__}" if isinstance(thing, type) else f"a {type(thing)!r}"


@dataclass(frozen=True)
class OneOf:
    """Annotates a field that holds the section of one of a table's components.

    Not a pydantic union: which classes there are is known only when the tag is read, and errors
    carry the path of keys that the file has. default: the component where the tag is not given.
    """

    table: Table[Any]
    default: str | None = None

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def config_of(self, value: Mapping[str, Any]) -> type[Section]:
        """The class of the section that a mapping is meant for; ConfigError if there is none."""
        name = value.get(self.table.tag, self.default)
        if name is None:
            raise ConfigError(f"is missing; known: {self.table.known()}")
        return self.table.config_of(name)

    def validate(self, value: Any) -> Section:
        """The section that `value` holds: a mapping as a file has it, or a section as it is."""
        table = self.table
        if isinstance(value, table.section):
            return value
        if not isinstance(value, Mapping):
            raise PydanticCustomError("section", f"a section with the key {table.tag} is expected")
        try:
            config = self.config_of(value)
        except ConfigError as error:
            raise self._fault(value, str(error)) from error
        return config.model_validate(value)

    def _fault(self, value: Mapping[str, Any], message: str) -> ValidationError:
        """A fault of the tag's value."""
        # The message is no template: braces in it would be read as one.
        error = PydanticCustomError("component", "{message}", {"message": message})
        details = InitErrorDetails(type=error, loc=(self.table.tag,), input=value)
        return ValidationError.from_exception_data(self.table.what, [details])

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Every component of the table, and any other by import path."""
        tag, choices = self.table.tag, []
        for name in self.table:
            fields = handler(self.table.config_of(name).__pydantic_core_schema__)
            choices.append({"allOf": [fields, {"properties": {tag: {"const": name}}}]})
        own = {"properties": {tag: {"type": "string", "pattern": ":"}}, "required": [tag]}
        return {"anyOf": [*choices, {"type": "object", **own}]}
