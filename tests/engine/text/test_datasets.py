import json
from pathlib import Path

import pytest

from engine.errors import DatasetError
from engine.spec.base import DatasetRef, Rows
from engine.text.datasets import Dataset, Row, content_sha256, dataset_names, describe, load_dataset


def written(folder: Path, name: str, text: str) -> DatasetRef:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return DatasetRef(path=str(file))


def loaded(folder: Path, name: str, text: str) -> Dataset:
    return load_dataset(written(folder, name, text))


def refusal(folder: Path, text: str, name: str = "rows.jsonl") -> str:
    with pytest.raises(DatasetError) as caught:
        loaded(folder, name, text)
    return str(caught.value).replace(f"{folder}/", "")


def test_rows_of_jsonl_come_in_order_with_all_fields(tmp_path):
    text = '{"id": "a", "prompt": "One", "target": " two", "distractor": " ten", "label": "x"}\n\n{"id": 7, "text": "Hello there."}\n'
    data = loaded(tmp_path, "mine.jsonl", text)
    assert data.name == "mine"
    assert data.rows == (
        Row(id="a", prompt="One", target=" two", distractor=" ten", label="x"),
        Row(id="7", text="Hello there."),
    )


def test_csv_and_jsonl_of_the_same_rows_have_the_same_hash(tmp_path):
    csv = loaded(tmp_path, "rows.csv", '\ufeffid,prompt,target,distractor\na,"One, two", three, ten\nb,"Say ""no""",,\n')
    jsonl = loaded(
        tmp_path,
        "rows.jsonl",
        '{"target": " three", "id": "a", "prompt": "One, two", "distractor": " ten"}\n{"id": "b", "prompt": "Say \\"no\\""}\n',
    )
    assert csv.rows == jsonl.rows
    assert csv.sha256 == jsonl.sha256 == content_sha256(csv.rows)


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"input": "A cat.", "label": 1}, {"text": "A cat.", "label": "1"}),
        ({"text": "A cat.", "target": "true"}, {"text": "A cat.", "label": "true"}),
        ({"sentence": "A cat.", "output": False}, {"text": "A cat.", "label": "false"}),
        ({"prompt": "A cat", "output": "yes"}, {"prompt": "A cat", "label": "yes"}),
        ({"prompt": "A cat", "target": " sat", "source": "me"}, {"prompt": "A cat", "target": " sat"}),
    ],
)
def test_philab_field_names_are_understood(tmp_path, record, row):
    (found,) = loaded(tmp_path, "rows.jsonl", json.dumps(record)).rows
    assert found.model_dump(exclude={"id"}, exclude_none=True) == row


def test_missing_ids_come_from_the_content_and_are_unique(tmp_path):
    text = '{"text": "same"}\n{"text": "same"}\n{"text": "other"}\n'
    first, second, third = (row.id for row in loaded(tmp_path, "rows.jsonl", text).rows)
    assert second == f"{first}-2"
    assert third not in (first, second)
    assert [row.id for row in loaded(tmp_path, "again.jsonl", text).rows] == [first, second, third]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "rows.jsonl:2: got '{oops' (Expecting property name enclosed in double quotes); expected one JSON object per line."),
        ("[1]", "rows.jsonl:2: got list; expected one JSON object per line."),
        ('{"question": "x"}', "rows.jsonl:2: got fields question; expected a field 'prompt' or one of text, input, sentence."),
        ("{}", "rows.jsonl:2: got fields none; expected a field 'prompt' or one of text, input, sentence."),
        ('{"text": ["x"]}', "rows.jsonl:2: got text = ['x']; expected input should be a valid string."),
        ('{"text": ""}', "rows.jsonl:2: got text = ''; expected string should have at least 1 character."),
        (
            '{"text": "x", "prompt": "y"}',
            "rows.jsonl:2: got fields text, prompt; expected either 'text' or 'prompt', not both and not neither.",
        ),
        (
            '{"prompt": "y", "distractor": "z"}',
            "rows.jsonl:2: got fields prompt, distractor; expected a 'target' where there is a 'distractor'.",
        ),
        (
            '{"prompt": "y", "target": "z", "distractor": "z"}',
            "rows.jsonl:2: got fields prompt, target, distractor; expected target and distractor to differ, both are 'z'.",
        ),
        ('{"id": "a", "text": "x"}', "rows.jsonl:2: got id 'a'; expected an id of its own; line 1 has the same."),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, line, message):
    assert refusal(tmp_path, f'{{"id": "a", "text": "fine"}}\n{line}\n') == message


def test_half_of_a_character_is_refused(tmp_path):
    assert refusal(tmp_path, '{"text": "\\ud800"}').startswith("rows.jsonl:1: got text = ")


def test_a_csv_row_with_too_few_cells_is_named(tmp_path):
    assert (
        refusal(tmp_path, "id,text\na,one\nb\n", "rows.csv") == "rows.csv:3: got more or fewer cells than the header has; expected 2 cells."
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.txt", "x", "ends in '.txt'; expected .jsonl or .csv."),
        ("rows.jsonl", "\n", "has no rows; expected at least one."),
        ("rows.csv", "id,text\n", "has no rows; expected at least one."),
    ],
)
def test_files_without_rows_are_refused(tmp_path, name, text, message):
    assert refusal(tmp_path, text, name) == f"dataset file '{name}' {message}"


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read: No such file or directory"):
        load_dataset(DatasetRef(path=str(tmp_path / "none.jsonl")))
    (tmp_path / "latin.csv").write_bytes(b"id,text\na,caf\xe9\n")
    with pytest.raises(DatasetError, match="it is not UTF-8 text"):
        load_dataset(DatasetRef(path=str(tmp_path / "latin.csv")))


def test_the_hash_is_that_of_the_whole_and_is_checked(tmp_path):
    ref = written(tmp_path, "rows.jsonl", "".join(f'{{"text": "row {n}"}}\n' for n in range(5)))
    whole = load_dataset(ref)
    part = load_dataset(ref.model_copy(update={"rows": Rows(start=1, stop=3), "sha256": whole.sha256}))
    assert part.sha256 == whole.sha256
    assert part.rows == whole.rows[1:3]
    with pytest.raises(DatasetError, match=r"has content hash .* but the spec expects 0000"):
        load_dataset(ref.model_copy(update={"sha256": "0" * 64}))


def test_rows_beyond_the_end_are_refused(tmp_path):
    ref = written(tmp_path, "rows.jsonl", '{"text": "one"}\n')
    with pytest.raises(DatasetError, match="rows 0:2 of dataset 'rows' were asked for; it has 1 rows"):
        load_dataset(ref.model_copy(update={"rows": Rows(start=0, stop=2)}))


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(DatasetError, match=r"no dataset 'nothing'; shipped are: agreement, .*For a file of your own give 'path'"):
        load_dataset(DatasetRef(name="nothing"))


@pytest.mark.parametrize("name", dataset_names())
def test_every_shipped_dataset_loads_and_is_described(name):
    data = load_dataset(DatasetRef(name=name))
    card = describe(name)
    assert data.description == card.description
    assert len(card.description) > 80
    assert (data.license, card.license) == ("CC0-1.0", "CC0-1.0")
    assert card.built
    assert len(data.rows) >= 192
    assert len({row.text or f"{row.prompt}|{row.target}|{row.distractor}" for row in data.rows}) == len(data.rows)
