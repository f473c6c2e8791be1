from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.hooks.sites import ALIASES, BY_HEAD, GLOBAL, HOOK_NAMES, PAIRS, PER_HEAD, Site, SiteName

NAMES = get_args(SiteName)


@st.composite
def sites(draw: st.DrawFn) -> Site:
    """Any site that there can be."""
    name = draw(st.sampled_from(NAMES))
    head = draw(st.none() | st.integers(0, 99)) if name in PER_HEAD else None
    free = name not in PAIRS and (name not in BY_HEAD or head is not None)
    unit = draw(st.none() | st.integers(0, 9999)) if free else None
    return Site(layer=None if name in GLOBAL else draw(st.integers(0, 200)), name=name, head=head, unit=unit)


@settings(deadline=None)
@given(site=sites())
def test_a_site_comes_back_from_its_hook_name_and_from_json(site: Site) -> None:
    assert Site.parse(site.hook_name, head=site.head, unit=site.unit) == site
    assert Site.model_validate_json(site.model_dump_json()) == site
    assert Site.model_validate(site.model_dump()) == site


@settings(deadline=None)
@given(one=sites(), other=sites())
def test_labels_tell_sites_apart(one: Site, other: Site) -> None:
    assert (one.label == other.label) == (one == other)


def test_every_name_has_a_hook_name_of_its_own() -> None:
    assert set(HOOK_NAMES) == set(NAMES)
    assert len({*HOOK_NAMES.values(), *ALIASES}) == len(NAMES) + len(ALIASES)


@pytest.mark.parametrize(
    ("hook_name", "site", "label"),
    [
        ("blocks.3.hook_resid_post", Site(layer=3, name="resid_post"), "L3 resid_post"),
        ("blocks.0.attn.hook_z", Site(layer=0, name="z"), "L0 z"),
        ("blocks.11.attn.hook_result", Site(layer=11, name="head_out"), "L11 head_out"),
        ("blocks.2.mlp.hook_post", Site(layer=2, name="neurons"), "L2 neurons"),
        ("blocks.2.attn.hook_rot_q", Site(layer=2, name="q"), "L2 q"),
        ("blocks.2.attn.hook_rot_k", Site(layer=2, name="k"), "L2 k"),
        ("blocks.2.attn.hook_attn_scores", Site(layer=2, name="scores"), "L2 scores"),
        ("hook_embed", Site(name="embed"), "embed"),
        ("ln_final.hook_normalized", Site(name="final"), "final"),
        ("unembed.hook_out", Site(name="logits"), "logits"),
    ],
)
def test_hook_names_are_those_of_transformer_lens(hook_name: str, site: Site, label: str) -> None:
    assert Site.parse(hook_name) == Site.model_validate(hook_name) == site
    assert site.label == label


def test_labels_of_heads_and_units() -> None:
    assert Site(layer=3, name="z", head=2).label == "L3H2"
    assert Site(layer=3, name="q", head=2).label == "L3H2 q"
    assert Site(layer=3, name="neurons", unit=17).label == "L3 neurons[17]"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"name": "z"}, r"site 'z' is in a layer; say which \(layer=None\)"),
        ({"name": "embed", "layer": 1}, r"site 'embed' exists once and has no layer; leave layer out \(layer=1\)"),
        ({"name": "mlp_out", "layer": 1, "head": 0}, r"site 'mlp_out' has no heads, so head=0 cannot be asked for; leave head out"),
        ({"name": "pattern", "layer": 1, "unit": 4}, r"'pattern' has pairs of positions and no units; leave unit=4 out"),
        ({"name": "q", "layer": 1, "unit": 4}, r"unit=4 of site 'q' is a column of one head; say which head"),
        ({"name": "z", "layer": -1}, "greater than or equal to 0"),
        ({"name": "z", "layer": 10**30}, "less than 2147483648"),
        ({"name": "resid", "layer": 1}, "Input should be 'resid_pre', 'resid_mid'"),
        ({"name": "z", "layer": 1, "token": 3}, "Extra inputs are not permitted"),
        ("blocks.1.hook_resid_psot", r"'blocks.1.hook_resid_psot' is not a site; expected one of blocks.<layer>.hook_resid_pre"),
        ("hook_resid_post", "is not a site"),
        ("blocks.1.hook_embed", "is not a site"),
        ("blocks." + "9" * 5000 + ".hook_resid_post", "4300 digits|4,300 digits"),
        (None, "Input should be a valid dictionary or instance of Site"),
        ([1, "z"], "Input should be a valid dictionary or instance of Site"),
    ],
)
def test_what_is_no_site_is_refused_with_what_would_be(values: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Site.model_validate(values)
