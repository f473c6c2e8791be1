"""From text to a spec: our YAML and JSON, and the YAML of PHILAB. Strict, bounded, and never code."""

import re
from collections.abc import Hashable
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic_core import from_json

from engine.errors import SpecError
from engine.spec.any import AnySpec, NamedSpec, parse_spec
from engine.spec.philab_yaml import from_philab, is_philab

MAX_BYTES = 64 * 1024
MAX_DEPTH = 32

# The C loader is several times faster and lacks only on exotic platforms; both have one interface.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_Loader):
    """YAML as people read it: `no` is text, `017` is text, `1e3` is a number, a key stands once."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise SpecError(f"line {key.start_mark.line + 1}: a key is one word, not a list or mapping.")
            if key.value in seen:
                raise SpecError(f"line {key.start_mark.line + 1}: key '{key.value}' stands twice; expected once.")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)  # pyright: ignore[reportUnknownMemberType]


class _StrictDumper(yaml.SafeDumper):
    """Quotes whatever this or an ordinary YAML reader would take for something else than text."""


def _resolve(tag: str, pattern: str, first: str) -> None:
    for side in (_StrictLoader, _StrictDumper):
        side.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))  # pyright: ignore[reportUnknownMemberType]


_resolve("bool", r"^(?:true|false|True|False)$", "tfTF")
_resolve("null", r"^(?:~|null|Null|)$", "~nN\0")
_resolve("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789")
_resolve("float", r"^[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+|(?:0|[1-9][0-9]*)(?=[eE]))(?:[eE][-+]?[0-9]+)?$", "-+.0123456789")


def read_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        SpecError: larger than 64 KiB, nested deeper than 32, an anchor or tag, a key twice, or not YAML at all.
    """
    _check_size(text)
    try:
        _check_events(text)
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as wrong:
        where = getattr(wrong, "problem_mark", None)
        line = f"line {where.line + 1}: " if where else ""
        problem = str(getattr(wrong, "problem", None) or wrong).splitlines()[0]
        raise SpecError(f"{line}this is not YAML: {problem}.") from wrong


def _check_size(text: str) -> None:
    size = len(text.encode("utf-8", errors="surrogatepass"))
    if size > MAX_BYTES:
        raise SpecError(f"the spec has {size} bytes; expected at most {MAX_BYTES}.")


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = f"line {event.start_mark.line + 1}" if event.start_mark else "somewhere"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise SpecError(f"{line}: anchors and aliases are not accepted; write the value out.")
        if getattr(event, "tag", None) is not None:
            raise SpecError(f"{line}: tags such as '!!python' are not accepted; a spec is plain data.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise SpecError(f"{line}: nested deeper than {MAX_DEPTH} levels.")


def parse_text(text: str, *, default_model: str = "philab-micro") -> NamedSpec:
    """The spec that a text holds: JSON, our YAML (bare, or under `spec` beside `name` and `description`), or PHILAB's YAML.

    Args:
        text: at most 64 KiB.
        default_model: model of a spec that names none, as PHILAB's do.

    Raises:
        SpecError: the text is not readable or not a spec; the message names line or field.
    """
    values = _read_json(text) if text.lstrip()[:1] == "{" else read_yaml(text)
    if not isinstance(values, dict):
        raise SpecError(f"a spec is a mapping of fields, but this is {'empty' if values is None else type(values).__name__}.")
    values = _text_keys(cast("dict[object, Any]", values))
    if is_philab(values):
        return from_philab(values, default_model=default_model)
    return _named(values, default_model)


def _text_keys(values: dict[object, Any]) -> dict[str, Any]:
    for key in values:
        if not isinstance(key, str):
            raise SpecError(f"key {key!r} is not text; every field of a spec has a name.")
    return cast("dict[str, Any]", values)


def _read_json(text: str) -> Any:
    _check_size(text)
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as wrong:
        try:
            return read_yaml(text)  # a YAML flow mapping begins with a brace as well
        except SpecError:
            raise SpecError(f"this is not JSON: {wrong}.") from wrong


def _named(values: dict[str, Any], default_model: str) -> NamedSpec:
    inner: Any = values.get("spec")
    if inner is None:
        return NamedSpec(spec=parse_spec(_with_model(values, default_model)))
    unknown = set(values) - {"name", "description", "spec"}
    if unknown or not isinstance(inner, dict):
        fault = f"unknown key '{min(unknown)}'" if unknown else "'spec' is not a mapping"
        raise SpecError(f"{fault}; expected 'name', 'description' and 'spec' (a mapping).")
    spec = parse_spec(_with_model(_text_keys(cast("dict[object, Any]", inner)), default_model))
    return NamedSpec(spec=spec, name=str(values.get("name", ""))[:200], description=str(values.get("description", "")))


def _with_model(values: dict[str, Any], default_model: str) -> dict[str, Any]:
    return {"model": {"id": default_model}, **values}


def read_spec(path: Path | str, *, default_model: str = "philab-micro") -> NamedSpec:
    """The spec in a file, or the shipped spec of that name.

    Raises:
        SpecError: there is no such file or shipped spec, or it is not readable.
    """
    shipped = shipped_specs()
    path = shipped.get(str(path), Path(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        reason = wrong.strerror if isinstance(wrong, OSError) else "it is not UTF-8 text"
        raise SpecError(f"spec '{path}' cannot be read: {reason}.", next_step=f"Shipped specs: {', '.join(shipped)}.") from wrong
    named = parse_text(text, default_model=default_model)
    return named if named.name else NamedSpec(spec=named.spec, name=path.stem, description=named.description, notes=named.notes)


def shipped_specs() -> dict[str, Path]:
    """Names and files of the specs that come with philab."""
    folder = Path(str(files("engine") / "resources" / "specs"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def spec_to_yaml(spec: AnySpec, *, name: str = "", description: str = "") -> str:
    """YAML that reads back to the same spec, defaults left out."""
    inner = {"kind": spec.kind, **spec.model_dump(mode="json", exclude_defaults=True)}
    outer = {"name": name, "description": description, "spec": inner} if name or description else inner
    return yaml.dump(outer, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, width=110)
