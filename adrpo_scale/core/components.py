"""Tables of components by name, and the config sections whose class is decided by such a name.

A name is an entry of the table, or the import path of a user's own class,
`"my_package.mine:MyAlgorithm"`, which is imported at the look-up. In both cases the component
carries the class of its settings as `Config`; that class alone decides the keys of the section.
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
from adrpo_scale.core.keeping import PROCESS, kept
from adrpo_scale.core.plain_objects import trust
from adrpo_scale.core.printable import shown
from adrpo_scale.core.settings import Section

T = TypeVar("T")


def imported(path: str) -> Any:
    """The object that `module:attribute` names. Every failure, also one of the module's own code,
    is raised as ImportError with the remedy."""
    module, _, attribute = path.partition(":")
    try:
        with kept(module, PROCESS):
            found = importlib.import_module(module)
            trust(module)
        return getattr(found, attribute)
    except (Exception, SystemExit) as error:
        expected = (
            "expected module:name, with the module's folder on PYTHONPATH or the command started "
            "in it"
        )
        if isinstance(error, ModuleNotFoundError) and not _is_within(error.name, module):
            expected = f"{module} was found, and imports {error.name}, which is not installed here"
        raise ImportError(
            f"cannot be imported ({type(error).__name__}: {shown(error, quote=False)}); {expected}"
        ) from error


def _is_within(missing: str | None, module: str) -> bool:
    """Whether a module that was not found is `module` itself or a package that holds it."""
    return f"{module}.".startswith(f"{missing or ''}.")


@dataclass(frozen=True)
class Table(Generic[T]):
    """The components of one kind.

    what: the kind, in words. tag: the key of the section that names the component. base: the base
    class of every component; section: the base class of every `Config`. entries: class by name; an
    import path in place of a class is resolved at the look-up.
    """

    what: str
    tag: str
    base: type[Any]  # abstract, which mypy allows for no type[T]
    section: type[Section]
    entries: dict[str, type[T] | str]

    def __getitem__(self, name: str) -> type[T]:
        """The class of that name. Raises ConfigError for an unknown name, and for an import path
        that fails or misses the contract."""
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
        """The class of a component's section. Raises ConfigError as the look-up does."""
        component: Any = self[name]
        return component.Config

    def known(self) -> str:
        return ", ".join(map(repr, self.entries))

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.entries, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        own = f"or the import path of your own {self.what}, as in 'my_module:MyClass'"
        return f"{name!r} is not known; {hint}known: {self.known()}, {own}"

    def _for_functions(self, path: str, component: Any) -> str:
        """The remedy where a table has an entry for plain functions: the rewards."""
        if not inspect.isfunction(component) or "function" not in self.entries:
            return ""
        return f', or write {self.tag} = "function" and path = "{path}"'

    def _check(self, path: str, component: Any) -> None:
        """Raises ConfigError unless the object at an import path meets the contract."""
        base = f"adrpo_scale.{self.base.__name__}"
        if not (isinstance(component, type) and issubclass(component, self.base)):
            raise ConfigError(
                f"{path!r} is {_described(component)}, and the class of {_article(self.what)} is "
                f"expected: derive it from {base}{self._for_functions(path, component)}"
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
    if isinstance(thing, type):
        return f"the class {thing.__qualname__}"
    return "a function" if inspect.isfunction(thing) else f"of type {type(thing).__name__}"


def _article(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


@dataclass(frozen=True)
class OneOf:
    """Annotates a field that holds the section of one of a table's components.

    It is no pydantic union: a user's class is known only when the tag is read, and errors carry the
    path of keys that the file has. default: the component where the tag is not given.
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
        """The section of `value`, which is a mapping of keys or already a section."""
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
        """A validation error at the key `tag`."""
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
