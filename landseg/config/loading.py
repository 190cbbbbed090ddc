"""Values from YAML files, the command line and the environment, checked.

Unknown keys are errors, since a misspelt option that is silently ignored costs a night's job. Each error names the key,
its line and column, and the nearest known key.
"""

import difflib
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import SecretStr, ValidationError
from yaml.constructor import SafeConstructor

from landseg.config.values import Strict
from landseg.errors import ConfigError
from landseg.hrefs import check_plain

log = logging.getLogger(__name__)

EXTENDS = "extends"
"""Key of a configuration file that names the one it goes on from."""

# Mappings whose keys are the user's: merged with another file's, they would say what neither says.
_REPLACED = {"label_values", "class_weights", "min_area_of_class"}
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"

MOST_CHARACTERS = 2**24
"""Of a configuration file."""

MOST_NODES = 10**6
"""Keys, values and lists of a file; what an alias repeats counts each time, since aliases of aliases multiply."""

# What no path can hold, or is no text at all.
_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")

ConfigT = TypeVar("ConfigT", bound=Strict)


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")


def _variable(key: str) -> str:
    return "LANDSEG_" + key.upper()


def load_config(path: Path, kind: type[ConfigT]) -> ConfigT:
    """Read a YAML file into a checked configuration.

    A file may go on from another, which its key ``extends`` names from where it lies itself: its own keys come first,
    also those within keys. Lists, and mappings whose keys are the user's such as ``label_values``, are replaced whole;
    null takes away what is inherited.

    Parameters
    ----------
    path
        The file.
    kind
        Which configuration it holds.

    Raises
    ------
    ConfigError
        If the file is missing, not YAML, or has an unknown or ill-typed key.
    """
    try:
        root = _composed(path)
        _check_nodes(root)
        data = None if root is None else SafeConstructor().construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, path) from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    except (ValueError, LookupError, AttributeError) as error:
        # Of a value that looks like a date and is none, or is not of the type that its tag names.
        raise ConfigError(f"{path} holds a value that can't be read: {error}", "put it in quotes") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no keys", f"known keys: {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _located(error, kind, path, root) from error


def _composed(path: Path, extending: tuple[Path, ...] = ()) -> yaml.Node | None:
    """Read the nodes of a file and of those that it extends; each knows the file and line that it comes from."""
    check_plain(path, ConfigError)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
        if len(text) > MOST_CHARACTERS:
            raise ConfigError(f"{path} is too large for a configuration", "is it the right file?")
        loader = yaml.SafeLoader(text)
        loader.name = str(path)
        root: yaml.Node | None = loader.get_single_node()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the configuration {path}: {getattr(error, 'strerror', error)}") from error
    except yaml.YAMLError as error:
        raise _not_yaml(error, path) from error
    if not isinstance(root, yaml.MappingNode):
        return root
    named = next((one for one in root.value if one[0].value == EXTENDS), None)
    if named is None:
        return root
    key, value = named
    base = path.parent / str(value.value)
    if base.resolve() in {one.resolve() for one in (*extending, path)}:
        raise ConfigError(f"{_place(key.start_mark)}: {base} extends itself")
    below = _composed(base, (*extending, path))
    if not isinstance(below, yaml.MappingNode):
        raise ConfigError(f"{_place(key.start_mark)}: {base} holds no keys")
    return _put_over(below, yaml.MappingNode(root.tag, [one for one in root.value if one is not named]))


def _check_nodes(root: yaml.Node | None) -> None:
    """Refuse a key that a mapping has twice, since YAML would have the last win, what is no text, and too much."""
    count = 0

    def check(node: yaml.Node, within: tuple[yaml.Node, ...]) -> None:
        nonlocal count
        count += 1
        if count > MOST_NODES:
            raise ConfigError(f"{_place(node.start_mark)}: the file is too large, or its aliases multiply")
        if isinstance(node, yaml.ScalarNode) and (found := _NO_TEXT.search(node.value)):
            raise ConfigError(f"{_place(node.start_mark)}: the character {found[0]!a} can't be in a text")
        if any(node is one for one in within):
            return
        within = (*within, node)
        if isinstance(node, yaml.SequenceNode):
            for value in node.value:
                check(value, within)
        elif isinstance(node, yaml.MappingNode):
            marks: dict[tuple[str, Any], yaml.Mark] = {}
            for key, value in node.value:
                # 1 and "1" are two.
                name = (key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key))
                if name in marks and key.tag != _MERGE:
                    raise ConfigError(
                        f"{_place(key.start_mark)}: '{key.value}' is there twice, first in line {marks[name].line + 1}"
                    )
                marks[name] = key.start_mark
                check(key, within)
                check(value, within)

    if root is not None:
        check(root, ())


def _put_over(below: yaml.Node, node: yaml.Node) -> yaml.Node:
    """Put a node over another: of two mappings, key by key."""
    if not isinstance(below, yaml.MappingNode) or not isinstance(node, yaml.MappingNode):
        return node
    values = {key.value: value for key, value in below.value}
    own = {key.value for key, _ in node.value}
    merged = [one for one in below.value if one[0].value not in own]
    for key, value in node.value:
        if key.value in values:
            if value.tag == _NULL:
                continue
            if key.value not in _REPLACED:
                value = _put_over(values[key.value], value)
        merged.append((key, value))
    return yaml.MappingNode(node.tag, merged)


def _not_yaml(error: yaml.YAMLError, path: Path) -> ConfigError:
    if isinstance(error, yaml.MarkedYAMLError):
        place = path if error.problem_mark is None else _place(error.problem_mark)
        return ConfigError(f"{place}: not YAML: {error.problem}")
    return ConfigError(f"{path}: not YAML: {str(error).splitlines()[0]}")


def _place(mark: yaml.Mark) -> str:
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}"


def override(config: ConfigT, given: Mapping[str, Any], spell: Callable[[str], str] = _option) -> ConfigT:
    """Put values from the command line over a configuration's; None means that an option was not given.

    ``spell`` gives the name by which the user knows a key.

    Raises
    ------
    ConfigError
        If a value does not make sense; the message names the option.
    """
    values = config.model_dump() | {key: value for key, value in given.items() if value is not None}
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        name = spell(str(fault["loc"][0]))
        raise ConfigError(f"{name} is {fault['input']!r:.60}: {_lowered(fault['msg'])}") from error


def override_by_environment(config: ConfigT, environment: Mapping[str, str]) -> ConfigT:
    """Put ``LANDSEG_DEVICE=cuda`` and the like over a configuration's keys; lists and numbers are written as in YAML.

    A variable that is empty counts as not given.

    Raises
    ------
    ConfigError
        If a value does not make sense; the message names the variable.
    """
    known = {_variable(key) for key in type(config).model_fields}
    for name in sorted(environment):
        # Kubernetes tells of a service that is called landseg by such names.
        if name.startswith("LANDSEG_") and name not in known and not re.match("LANDSEG_(SERVICE|PORT)", name):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            log.warning("there is no setting %s%s", name, f"; did you mean {near[0]}?" if near else "")
    given: dict[str, Any] = {}
    for key, field in type(config).model_fields.items():
        text = environment.get(_variable(key))
        if not text:
            continue
        if {field.annotation, *get_args(field.annotation)} & {str, Path, SecretStr}:
            # To YAML, the braces of a template would be a mapping.
            given[key] = text
            continue
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{_variable(key)} is {text!r:.60}: not YAML") from error
    return override(config, given, _variable)


def _located(error: ValidationError, kind: type[Strict], path: Path, root: yaml.Node | None) -> ConfigError:
    """Turn the first of pydantic's complaints into one that names the key and its place in the file."""
    fault = error.errors()[0]
    keys = fault["loc"]
    name = ".".join(str(key) for key in keys) or "the file"
    mark = _mark(root, keys)
    place = f"{path}, line 1, column 1" if mark is None else _place(mark)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(kind, keys[:-1])
        near = difflib.get_close_matches(str(keys[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return ConfigError(f"{place}: unknown key '{name}'", hint)
    if fault["type"] == "missing":
        return ConfigError(f"{place}: the key '{name}' is missing")
    remedy: str | None = None
    # Only what is put together of two files has no mark of its own.
    if fault["type"] == "value_error" and isinstance(fault["input"], dict) and root is not None and not root.start_mark:
        remedy = f"if it is what '{EXTENDS}' brings along that contradicts yours, take that away: key: null"
    return ConfigError(f"{place}: '{name}' is {fault['input']!r:.60}: {_lowered(fault['msg'])}", remedy)


def _lowered(message: str) -> str:
    """Fit pydantic's sentence into the middle of one of ours."""
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _mark(node: yaml.Node | None, keys: tuple[int | str, ...]) -> yaml.Mark | None:
    """Find where the deepest part of ``keys`` stands that is in a file."""
    mark = None if node is None else node.start_mark
    for key in keys:
        child = None
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                if key_node.value == str(key):
                    child, mark = value_node, key_node.start_mark
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            child = node.value[key]
            mark = child.start_mark
        if child is None:
            break
        node = child
    return mark


def _known_keys(kind: type[Strict], keys: tuple[int | str, ...]) -> list[str]:
    """List the keys that the part of a configuration at ``keys`` knows."""
    for key in keys:
        annotation = kind.model_fields[str(key)].annotation if str(key) in kind.model_fields else None
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, Strict):
                kind = candidate
                break
    return list(kind.model_fields)
