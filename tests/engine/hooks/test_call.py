"""Edits by token while a text grows in transformers' own `generate`, against one forward pass over the whole text without a cache."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from engine.errors import SpecError
from engine.hooks.batch import Batch, forward
from engine.hooks.bind import bind
from engine.hooks.call import Calls
from engine.hooks.capture import captured
from engine.hooks.edit import Edit
from engine.hooks.positions import AfterFirst, And, Generated, Index, Last, Not, Or, Prompt, Slice, Special, Tokens
from engine.hooks.sites import Site
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel
from tests.plugin_engine import hook_count

PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4, 12, 6], [6, 1, 13], [2, 2, 40, 41, 7, 5, 5]]
"""The longest reaches beyond the sliding windows of the families that have one."""
WRITTEN = 6
BATCH = Batch.of(PROMPTS, side="left")


def _vector(width: int, length: float) -> list[float]:
    made = torch.randn(width, generator=torch.Generator().manual_seed(width))
    return (made * length / made.norm()).tolist()


def _on_streams(loaded: LoadedModel) -> list[Edit]:
    push, off = _vector(32, 4.0), _vector(32, 1.0)
    return [
        Edit(site="hook_embed", op="scale", strength=0.5, positions=Tokens(ids=(2, 5, 13))),
        Edit(site="blocks.0.hook_resid_post", op="add", value=push, positions=And(of=(Generated(), Not(of=Index(index=(11,)))))),
        Edit(site="blocks.1.hook_resid_pre", op="set", value=[off, push, push], positions=Or(of=(Index(index=(0,)), Slice(stop=-1)))),
        Edit(site="blocks.1.hook_mlp_out", op="project_out", value=off, positions=Slice(start=-2)),
        Edit(site="blocks.1.hook_resid_post", op="norm_add", value=off, strength=0.7, when={"feature": push, "threshold": 1.0}),
        Edit(
            site="blocks.2.hook_resid_post", op="add", value=push, when={"feature": off, "site": "blocks.1.hook_attn_out", "relation": "<"}
        ),
        Edit(site="ln_final.hook_normalized", op="add", value=push, positions=Last()),
        Edit(site="unembed.hook_out", op="scale", strength=1.5, positions=Not(of=Last())),
        Edit(site="unembed.hook_out", op="scale", strength=2.0, when={"feature": push, "site": "ln_final.hook_normalized"}),
    ]


def _on_heads(loaded: LoadedModel) -> list[Edit]:
    z = _vector(loaded.anatomy.d_head, 3.0)
    return [
        Edit(site=Site(layer=0, name="z", head=1), op="zero", positions=AfterFirst(ids=(7, 1))),
        Edit(site=Site(layer=1, name="head_out", head=2), op="scale", strength=3.0, positions=Generated()),
        Edit(site=Site(layer=1, name="neurons", unit=5), op="set", value=3.0, positions=Or(of=(Special(), Index(index=(-1, 4, 12))))),
        Edit(site=Site(layer=2, name="z", head=0), op="clamp", value=z, strength=2.0, when={"feature": z, "threshold": 0.2}),
        Edit(site=Site(layer=2, name="attn_out"), op="orthogonal", value=_vector(32, 1.0), strength=-1.0, positions=Prompt()),
    ]


def _in_attention(loaded: LoadedModel) -> list[Edit]:
    d_head = loaded.anatomy.d_head
    rows = [_vector(d_head, 1.0), _vector(d_head, 5.0)] * 6
    return [
        Edit(site=Site(layer=0, name="q", head=0), op="scale", strength=-1.0, positions=Generated()),
        Edit(site=Site(layer=0, name="k", head=1), op="add", value=rows[1], positions=Tokens(ids=(2, 7, 41))),
        Edit(site=Site(layer=0, name="v", head=0), op="zero", positions=Index(index=(0, -1, -2))),
        Edit(site=Site(layer=1, name="k", head=0), op="add", value=rows, positions=Slice(start=2)),
        Edit(site=Site(layer=2, name="v", head=1), op="scale", strength=2.5, positions=Or(of=(Generated(), AfterFirst(ids=(9,))))),
    ]


def _between_tokens(loaded: LoadedModel) -> list[Edit]:
    return [
        Edit(site=Site(layer=0, name="scores", head=2), op="add", value=2.0, keys=Index(index=(-1, -3))),
        Edit(site=Site(layer=1, name="pattern", head=1), op="zero", positions=Generated(), keys=Prompt()),
        Edit(site=Site(layer=1, name="scores"), op="scale", strength=0.5, positions=Slice(start=-1)),
        Edit(site=Site(layer=2, name="scores"), op="set", value=-1e4, keys=Tokens(ids=(2, 3))),
        Edit(site=Site(layer=2, name="pattern", head=0), op="scale", strength=2.0, keys=Or(of=(Generated(), Last()))),
    ]


def _generated(loaded: LoadedModel, **more: Any) -> tuple[Tensor, Tensor]:
    """Ids of prompts and continuations, and the logits from which these were chosen, [row, step, vocab]."""
    options = {"do_sample": False, "min_new_tokens": WRITTEN, "max_new_tokens": WRITTEN, "output_logits": True, **more}
    written = loaded.model.generate(
        BATCH.input_ids, attention_mask=BATCH.attention_mask, pad_token_id=0, return_dict_in_generate=True, **options
    )
    return written.sequences, torch.stack(written.logits, 1)


def _uncached(loaded: LoadedModel, edits: list[Edit], ids: Tensor, calls: Calls) -> Tensor:
    """The same logits by one forward pass over the whole texts."""
    texts = [[*prompt, *ids[row, BATCH.width : -1].tolist()] for row, prompt in enumerate(PROMPTS)]
    with edited(loaded, bind(edits, loaded), calls=calls):
        return forward(loaded.model, Batch.of(texts, side="left"))[:, -WRITTEN:]


@pytest.mark.parametrize("made", [_on_streams, _on_heads, _in_attention, _between_tokens])
def test_generation_with_a_cache_is_edited_as_the_whole_text_is(loaded: LoadedModel, made: Any) -> None:
    edits, lengths = made(loaded), [len(prompt) for prompt in PROMPTS]
    with edited(loaded, bind(edits, loaded)):
        ids, logits = _generated(loaded)
    whole = _uncached(loaded, edits, ids, Calls(special=loaded.special_ids, prompt_lengths=lengths))
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-5)
    assert hook_count(loaded.model) == 0


@pytest.mark.parametrize("made", [_on_streams, _on_heads, _in_attention, _between_tokens])
def test_each_of_these_edits_counts(llama: LoadedModel, made: Any) -> None:
    edits, lengths, (ids, _) = made(llama), [len(prompt) for prompt in PROMPTS], _generated(llama)
    whole = _uncached(llama, edits, ids, Calls(special=llama.special_ids, prompt_lengths=lengths))
    for edit in edits:
        others = [other for other in edits if other is not edit]
        less = _uncached(llama, others, ids, Calls(special=llama.special_ids, prompt_lengths=lengths))
        assert (less - whole).abs().max() > 1e-4, edit


def test_without_the_prompt_s_length_all_of_a_text_is_prompt(llama: LoadedModel) -> None:
    edit = Edit(site="blocks.1.hook_resid_post", op="zero", positions=Generated())
    ids, _ = _generated(llama)
    known = Calls(prompt_lengths=[len(prompt) for prompt in PROMPTS])
    assert torch.equal(_uncached(llama, [edit], ids, Calls()), _uncached(llama, [], ids, Calls()))
    assert not torch.allclose(_uncached(llama, [edit], ids, known), _uncached(llama, [], ids, Calls()))


def test_two_generations_one_after_the_other_are_two_texts(llama: LoadedModel) -> None:
    edits = bind(_on_streams(llama), llama)
    with edited(llama, edits):
        first, second = _generated(llama), _generated(llama)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_without_a_cache_the_text_is_read_again_and_all_of_it_is_prompt(llama: LoadedModel) -> None:
    edit = Edit(site="blocks.1.hook_resid_post", op="scale", strength=0.5, positions=Index(index=(0, 1)))
    with edited(llama, bind([edit], llama)):
        cached, uncached = _generated(llama), _generated(llama, use_cache=False)
    torch.testing.assert_close(cached[1], uncached[1], atol=1e-4, rtol=1e-5)


def test_beams_that_go_on_with_one_another_s_text_keep_its_tokens(llama: LoadedModel) -> None:
    edits = [
        Edit(site="blocks.1.hook_resid_post", op="scale", strength=-0.5, positions=AfterFirst(ids=tuple(range(0, 340, 5)))),
        Edit(site=Site(layer=1, name="k", head=0), op="scale", strength=3.0, positions=Tokens(ids=tuple(range(1, 340, 3)))),
    ]
    options = {"num_beams": 3, "output_logits": False, "output_scores": True, "min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False}
    found = []
    for cached in (True, False):
        with edited(llama, bind(edits, llama)):
            found.append(
                llama.model.generate(
                    BATCH.input_ids,
                    attention_mask=BATCH.attention_mask,
                    pad_token_id=0,
                    return_dict_in_generate=True,
                    use_cache=cached,
                    **options,
                )
            )
    assert torch.equal(found[0].sequences, found[1].sequences)
    torch.testing.assert_close(found[0].sequences_scores, found[1].sequences_scores, atol=1e-4, rtol=0)


def test_arguments_by_place_are_understood(loaded: LoadedModel) -> None:
    edit = Edit(site="blocks.1.hook_resid_post", op="scale", strength=-1.0, positions=Index(index=(0,)))
    ids, mask = BATCH.input_ids, BATCH.attention_mask
    by_place = (ids, None, mask) if loaded.model.config.model_type == "gpt2" else (ids, mask)
    with edited(loaded, bind([edit], loaded)), captured(loaded, [Site(layer=1, name="resid_post")]) as got, torch.no_grad():
        loaded.model(input_ids=ids, attention_mask=mask)
        named = got[Site(layer=1, name="resid_post")]
        loaded.model(*by_place)
        assert torch.equal(got[Site(layer=1, name="resid_post")], named)


def test_embeddings_can_be_given_and_their_tokens_addressed_by_index_only(llama: LoadedModel) -> None:
    embeds = llama.model.get_input_embeddings()(BATCH.input_ids)
    by_index = Edit(site="blocks.1.hook_resid_post", op="scale", strength=-1.0, positions=Index(index=(-1,)))
    with edited(llama, bind([by_index], llama)), torch.no_grad():
        by_ids = llama.model(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask).logits
        by_embeds = llama.model(inputs_embeds=embeds, attention_mask=BATCH.attention_mask).logits
    assert torch.equal(by_ids, by_embeds)
    by_id = Edit(site="blocks.1.hook_resid_post", op="zero", positions=Tokens(ids=(2,)))
    with (
        pytest.raises(SpecError, match=r"given embeddings, so tokens cannot be chosen by their ids. Choose them by index."),
        edited(llama, bind([by_id], llama)),
        torch.no_grad(),
    ):
        llama.model(inputs_embeds=embeds)


EDIT = Edit(site="blocks.1.hook_resid_post", op="zero", positions=Last())


def test_a_text_that_began_before_the_edit_is_refused(llama: LoadedModel) -> None:
    with torch.no_grad():
        cache = llama.model(BATCH.input_ids, use_cache=True).past_key_values
    with (
        pytest.raises(SpecError, match=r"goes on after 10 tokens that it read before the edit began.*Let the prompt run inside the edit"),
        edited(llama, bind([EDIT], llama)),
        torch.no_grad(),
    ):
        llama.model(BATCH.input_ids[:, :1], past_key_values=cache)
    assert hook_count(llama.model) == 0


@pytest.mark.parametrize("mask", [torch.zeros(3, 1, 10, 10), torch.ones(3, 9), {"full_attention": None}])
def test_a_mask_that_does_not_name_tokens_is_refused(llama: LoadedModel, mask: Any) -> None:
    with (
        pytest.raises(SpecError, match=r"the attention mask (has shape|is a dict).*Give a mask \[batch, tokens\] that is 1 at tokens"),
        edited(llama, bind([EDIT], llama)),
        torch.no_grad(),
    ):
        llama.model(input_ids=BATCH.input_ids, attention_mask=mask)


def test_a_cache_of_fixed_size_is_refused_where_keys_are_addressed(llama: LoadedModel) -> None:
    edit = Edit(site=Site(layer=1, name="k", head=0), op="zero", positions=Index(index=(0,)))
    with pytest.raises(SpecError, match=r"attention mask|cache has \d+ places for"), edited(llama, bind([edit], llama)):
        _generated(llama, cache_implementation="static", disable_compile=True)
    assert hook_count(llama.model) == 0


def test_a_prompt_may_be_read_in_pieces(llama: LoadedModel) -> None:
    edits = [Edit(site="blocks.1.hook_resid_post", op="scale", strength=-1.0, positions=Index(index=(1, 6))), *_in_attention(llama)[:1]]
    ids = torch.tensor(PROMPTS[:1])
    with edited(llama, bind(edits, llama), calls=Calls(prompt_lengths=[10])), torch.no_grad():
        whole, cache = llama.model(ids).logits, DynamicCache(config=llama.model.config)
        pieces = [llama.model(piece, past_key_values=cache).logits for piece in ids.split(4, 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=0)
