import re

import pytest

from engine.errors import DatasetError
from engine.experiments.prompts import Prompt, prompts_of, text_prompts
from engine.models.loading import LoadedModel
from engine.spec.ablation import Metric
from engine.text.datasets import Row


def _one(loaded: LoadedModel, row: Row, metric: Metric, max_length: int = 50) -> Prompt:
    return prompts_of([row], loaded, metric=metric, max_length=max_length)[0]


CHOICE = Row(id="c", prompt="the cat sat on the", target=" mat", distractor=" log")


def test_a_text_is_scored_from_its_second_token(llama: LoadedModel) -> None:
    prompt = _one(llama, Row(id="a", text="the cat sat"), "loss")
    assert (list(prompt.tokens), prompt.scored_from) == (llama.tokenizer("the cat sat")["input_ids"], 1)
    assert _one(llama, CHOICE, "loss").tokens == tuple(llama.tokenizer("the cat sat on the mat")["input_ids"])


def test_a_target_is_scored_by_itself(llama: LoadedModel) -> None:
    prompt = _one(llama, CHOICE, "target_loss")
    assert llama.tokenizer.decode(prompt.tokens[prompt.scored_from :]) == " mat"


def test_a_choice_ends_with_the_prompt(llama: LoadedModel) -> None:
    prompt = _one(llama, CHOICE, "logit_diff")
    assert llama.tokenizer.decode(prompt.tokens) == CHOICE.prompt
    assert " mat".startswith(llama.tokenizer.decode([prompt.target]))
    assert " log".startswith(llama.tokenizer.decode([prompt.distractor]))


@pytest.mark.parametrize(
    ("row", "metric", "text"),
    [
        (Row(id="r", text="the cat"), "logit_diff", "row 'r' has no 'prompt', which metric 'logit_diff' needs."),
        (Row(id="r", prompt="the"), "target_loss", "row 'r' has no 'target', which metric 'target_loss' needs."),
        (Row(id="r", prompt="the", target=" cat"), "accuracy", "row 'r' has no 'distractor', which metric 'accuracy' needs."),
        (
            Row(id="r", prompt="the", target=" cat", distractor=" cat and"),
            "accuracy",
            "row 'r': target ' cat' and distractor ' cat and' begin",
        ),
        (
            Row(id="r", prompt="the c", target="at", distractor="old"),
            "accuracy",
            "row 'r': 'at' does not continue the prompt in tokens of its own",
        ),
        (Row(id="r", text="the " * 60), "loss", "tokens, more than limits.max_length = 50; prompts are never cut."),
        (Row(id="r", text="a"), "loss", "row 'r' has 1 token(s); a loss needs at least 2."),
    ],
)
def test_a_row_that_does_not_fit_is_named(llama: LoadedModel, row: Row, metric: Metric, text: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(text)):
        _one(llama, row, metric)


def test_a_prompt_longer_than_the_model_is_refused(llama: LoadedModel) -> None:
    with pytest.raises(DatasetError, match="but the model has 64 positions"):
        text_prompts([Row(id="r", text="xyz " * 60)], llama, max_length=1000)


def test_two_rows_with_one_id_are_refused(llama: LoadedModel) -> None:
    with pytest.raises(DatasetError, match="two rows have the id 'r'"):
        text_prompts([Row(id="r", text="the cat"), Row(id="r", text="the dog")], llama, max_length=50)
