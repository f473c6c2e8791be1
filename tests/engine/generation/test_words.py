"""Text that grows token by token: together it is the whole text, and on the way never half a character."""

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.generation.words import UNFINISHED, WINDOW, Words
from tests.plugin_engine import tiny_tokenizer


def _bytes_of(text: str) -> list[int]:
    """The tokens of a text, one for each byte."""
    tokenizer = tiny_tokenizer()
    return [token for char in text for token in tokenizer(char)["input_ids"]]  # type: ignore[union-attr]


def _grown(prompt: list[int], tokens: list[int]) -> list[str]:
    words = Words(tiny_tokenizer(), prompt)
    parts = [words.add(token) for token in tokens]
    parts.append(words.end())
    assert words.text == "".join(parts)
    return parts


@given(st.text(max_size=40), st.text(max_size=10))
@settings(max_examples=60, deadline=None)
def test_the_parts_make_the_text_and_none_has_half_a_character(text: str, before: str) -> None:
    text, before = text.replace(UNFINISHED, ""), before.replace(UNFINISHED, "")
    parts = _grown(_bytes_of(before), _bytes_of(text))
    assert "".join(parts) == text
    assert not any(UNFINISHED in part for part in parts)


def test_a_character_comes_with_its_last_byte() -> None:
    tokens = _bytes_of("a😀b")
    assert _grown([], tokens) == ["a", "", "", "", "😀", "b", ""]


def test_bytes_that_never_become_a_character_are_shown_at_the_end() -> None:
    parts = _grown([], _bytes_of("ok😀")[:-1])
    assert parts[:2] == ["o", "k"]
    assert parts[-1].strip(UNFINISHED) == ""
    assert parts[-1]


def test_a_character_that_the_prompt_began_is_shown_when_it_is_whole() -> None:
    tokens = _bytes_of("é")
    assert _grown(_bytes_of("a") + tokens[:1], tokens[1:]) == ["é", ""]


def test_special_tokens_have_no_text_and_long_texts_stay_exact() -> None:
    text = "the cat sat on the mat " * WINDOW
    tokens = tiny_tokenizer()(text)["input_ids"]
    end = tiny_tokenizer().eos_token_id
    assert "".join(_grown([end], [*tokens, end])) == text  # type: ignore[misc]
