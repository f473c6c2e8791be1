from datetime import UTC, datetime, timedelta

import pytest

from app import wording
from engine.errors import NotFound

HOSTILE = [
    "![x](https://evil.example/a.png)",
    "[click](javascript:alert(1))",
    "<script>alert(1)</script>",
    ":red[fake status] :material/check: $x^2$ `code`",
    "# heading\n---\n* item",
    "https://evil.example www.evil.example me@evil.example",
    "| a | b |\n|---|---|",
    "\x00\u202egnp.exe",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_escape_leaves_no_markdown_alive(text):
    out = wording.escape(text)
    for character in "`*_[]()<>#!|$:":
        assert out.count(character) == out.count("\\" + character)
    assert "\n" not in out
    assert "://" not in out.replace("\\", "")
    assert "www." not in out.replace("\\", "")


def test_escape_keeps_the_visible_text():
    assert wording.escape("Does head L1H2 copy?").replace("\\", "") == "Does head L1H2 copy?"


def test_escape_cuts_what_is_too_long():
    assert len(wording.escape("a" * 5000, at_most=100)) == 100


def test_sentence_says_a_lab_errors_own_words_and_hides_any_other():
    known = wording.sentence(NotFound("there is no task 7.", next_step="See the board."))
    assert known.replace("\\", "") == "There is no task 7. See the board."
    assert "secret" not in wording.sentence(ValueError("secret path /root/x"))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (42, "42 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (3 * 86400, "3 d 0 h"), (None, "–")]
)
def test_duration(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(1.2345, True, "+1.234"), (-0.5, False, "−0.500"), (0.00001, False, "1.000e−05"), (0.0, False, "0.000"), (None, False, "–")],
)
def test_number(value, sign, text):
    assert wording.number(value, sign=sign) == text


def test_eta_waits_until_it_can_know():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert wording.eta(0.01, now - timedelta(seconds=10), now) == ""
    assert wording.eta(0.25, now - timedelta(seconds=10), now) == "about 30 s left"
    assert wording.eta(1.0, now - timedelta(seconds=10), now) == ""


def test_badge_of_an_unknown_word_is_plain_text():
    assert wording.badge("in_progress") == ":violet-badge[in progress]"
    assert "badge" not in wording.badge("<b>")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "just now"), (59, "59 s ago"), (119, "2 min ago"), (7200, "2 h ago"), (4 * 86400, "4 d ago")]
)
def test_ago(seconds, text):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert wording.ago(now - timedelta(seconds=seconds), now) == text
