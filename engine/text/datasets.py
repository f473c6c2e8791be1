"""Datasets: rows of text from JSONL or CSV, with an identity that is a content hash. Imports without torch."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

import rfc8785
import yaml
from pydantic import Field, ValidationError, model_validator

from engine.errors import DatasetError
from engine.spec.base import DatasetRef, Frozen

Text = Annotated[str, Field(min_length=1, max_length=1_000_000)]

TEXT_FIELDS = ("text", "input", "sentence")
LABEL_FIELDS = ("label", "target", "output")
"""Where the text and the label of a row may stand, in this order; the rows of PHILAB use the later ones."""


class Row(Frozen):
    """One example: either a `text`, or a `prompt` with or without the `target` that should follow it and a wrong `distractor`.

    Target and distractor are appended to the prompt as they are, so after a word they begin with a space.
    """

    id: Annotated[str, Field(min_length=1, max_length=200)]
    text: Text | None = None
    prompt: Text | None = None
    target: Text | None = None
    distractor: Text | None = None
    label: Annotated[str, Field(max_length=200)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.text is None) == (self.prompt is None):
            raise ValueError("expected either 'text' or 'prompt', not both and not neither")
        if self.target is None and self.distractor is not None:
            raise ValueError("expected a 'target' where there is a 'distractor'")
        if self.target is not None and self.target == self.distractor:
            raise ValueError(f"expected target and distractor to differ, both are {self.target!r}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Rows in order. `sha256` is that of the whole dataset, also where `rows` are a slice of it."""

    name: str
    rows: tuple[Row, ...]
    sha256: str
    description: str = ""
    license: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCard:
    """What is known about a shipped dataset without reading its rows."""

    name: str
    description: str
    license: str
    built: str
    """How its rows were made."""


def dataset_names() -> list[str]:
    """Names of the datasets that come with philab."""
    return sorted(file.stem for file in _shipped_folder().glob("*.jsonl"))


def describe(name: str) -> DatasetCard:
    """The card of a shipped dataset.

    Raises:
        DatasetError: there is no dataset of that name.
    """
    _shipped_file(name)
    card = yaml.safe_load((_shipped_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    return DatasetCard(name=name, **card)


def load_dataset(ref: DatasetRef) -> Dataset:
    """The rows that the reference names, in their order.

    Raises:
        DatasetError: there is no such dataset, a row of it is wrong, it has another hash than the reference says, or too few rows.
    """
    whole = _shipped(ref.name) if ref.name is not None else _local(Path(str(ref.path)))
    if ref.sha256 is not None and ref.sha256 != whole.sha256:
        raise DatasetError(
            f"dataset '{whole.name}' has content hash {whole.sha256}, but the spec expects {ref.sha256}.",
            next_step="Get the version that the spec was written for, or leave 'sha256' out to use this one.",
        )
    return _cut(whole, ref)


def content_sha256(rows: tuple[Row, ...]) -> str:
    """SHA-256 over the canonical JSON of all rows; the same for JSONL and CSV, whatever the spelling of the file."""
    return hashlib.sha256(rfc8785.dumps([row.model_dump(mode="json") for row in rows])).hexdigest()


def _cut(whole: Dataset, ref: DatasetRef) -> Dataset:
    if ref.rows is None:
        return whole
    if ref.rows.stop > len(whole.rows):
        raise DatasetError(
            f"rows {ref.rows.start}:{ref.rows.stop} of dataset '{whole.name}' were asked for; it has {len(whole.rows)} rows."
        )
    rows = whole.rows[ref.rows.start : ref.rows.stop]
    return Dataset(name=whole.name, rows=rows, sha256=whole.sha256, description=whole.description, license=whole.license)


def _shipped_folder() -> Path:
    return Path(str(files("engine") / "resources" / "datasets"))


def _shipped_file(name: str) -> Path:
    if name not in dataset_names():
        raise DatasetError(
            f"there is no dataset '{name}'; shipped are: {', '.join(dataset_names())}.",
            next_step="For a file of your own give 'path' instead of 'name'.",
        )
    return _shipped_folder() / f"{name}.jsonl"


def _shipped(name: str) -> Dataset:
    rows = read_rows(_shipped_file(name))
    card = describe(name)
    return Dataset(name=name, rows=rows, sha256=content_sha256(rows), description=card.description, license=card.license)


def _local(path: Path) -> Dataset:
    rows = read_rows(path)
    return Dataset(name=path.stem, rows=rows, sha256=content_sha256(rows))


def read_rows(path: Path) -> tuple[Row, ...]:
    """All rows of a JSONL or CSV file; rows without an id get one from their content.

    Raises:
        DatasetError: the file cannot be read, holds no rows, or a row is wrong; the text names the line and what was expected.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv}
    if path.suffix.lower() not in readers:
        raise DatasetError(f"dataset file '{path}' ends in '{path.suffix}'; expected .jsonl or .csv.")
    rows: dict[str, Row] = {}
    lines: dict[str, int] = {}
    contents: Counter[str] = Counter()
    try:
        for line, values in readers[path.suffix.lower()](path):
            row = _row(path, line, values, contents)
            if row.id in rows:
                raise _fault(path, line, f"id '{row.id}'", f"an id of its own; line {lines[row.id]} has the same")
            rows[row.id], lines[row.id] = row, line
    except (OSError, UnicodeDecodeError) as wrong:
        reason = wrong.strerror if isinstance(wrong, OSError) else "it is not UTF-8 text"
        raise DatasetError(f"dataset file '{path}' cannot be read: {reason}.") from wrong
    if not rows:
        raise DatasetError(f"dataset file '{path}' has no rows; expected at least one.")
    return tuple(rows.values())


def _jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as wrong:
                raise _fault(path, number, f"{line.strip()[:60]!r} ({wrong.msg})", "one JSON object per line") from wrong
            if not isinstance(values, dict):
                raise _fault(path, number, type(values).__name__, "one JSON object per line")
            yield number, values


def _csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for values in reader:
                if None in values or None in values.values():
                    raise _fault(path, reader.line_num, "more or fewer cells than the header has", f"{len(reader.fieldnames or ())} cells")
                yield reader.line_num, {key: value for key, value in values.items() if value != ""}
        except csv.Error as wrong:
            raise _fault(path, reader.line_num, str(wrong), "comma-separated cells, quoted with double quotes") from wrong


def _row(path: Path, line: int, values: Mapping[str, Any], contents: Counter[str]) -> Row:
    fields = {name: value for name, value in _fields(values).items() if value is not None}
    if not {"text", "prompt"} & set(fields):
        got = f"fields {', '.join(map(str, values)) or 'none'}"
        raise _fault(path, line, got, f"a field 'prompt' or one of {', '.join(TEXT_FIELDS)}")
    try:
        return Row.model_validate({"id": _content_id(fields, contents), **fields})
    except ValidationError as wrong:
        first = wrong.errors()[0]
        got = f"{first['loc'][0]} = {first['input']!r:.80}" if first["loc"] else f"fields {', '.join(fields)}"
        raise _fault(path, line, got, first["msg"].removeprefix("Value error, ").removeprefix("expected ")) from wrong


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row under our names; what else the file holds is left alone."""
    text = next((values[name] for name in TEXT_FIELDS if values.get(name) is not None), None)
    fields = {"id": _as_text(values.get("id")), "text": text, "prompt": values.get("prompt")}
    if text is not None:
        label = next((values[name] for name in LABEL_FIELDS if values.get(name) is not None), None)
        return {**fields, "label": _as_text(label)}
    label = values.get("label", values.get("output"))
    return {**fields, "target": values.get("target"), "distractor": values.get("distractor"), "label": _as_text(label)}


def _as_text(value: object) -> object:
    """Numbers and truth values as text, as ids and labels may be written; anything else as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _content_id(fields: Mapping[str, Any], contents: Counter[str]) -> str:
    """An id from the row's content; the second row of the same content gets `-2` behind it, and so on."""
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
    contents[digest] += 1
    return f"{digest}-{contents[digest]}" if contents[digest] > 1 else digest


def _fault(path: Path, line: int, got: str, expected: str) -> DatasetError:
    return DatasetError(f"{path}:{line}: got {got}; expected {expected[:1].lower()}{expected[1:]}.")
