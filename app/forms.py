"""Inputs that several pages share, and how a form says what is wrong with them."""

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from app.services import services
from app.wording import sentence
from engine.errors import LabError
from engine.presets import presets
from engine.spec import NamedSpec, parse_text, shipped_specs

OWN = "Paste your own"
NO_PRESET = "none"


@contextmanager
def faults_shown() -> Iterator[None]:
    """Shows an error for people where the form stands, and lets the page go on."""
    try:
        yield
    except LabError as wrong:
        st.error(sentence(wrong), icon=":material/error:")


def spec_field(key: str) -> str:
    """A choice among the shipped specs or one's own, and the YAML to edit; returns the text. `key` is also the URL's parameter."""
    files = shipped_specs()
    chosen = st.selectbox(
        "Start from", [*files, OWN], key=key, bind="query-params", help="Shipped specs are a starting point: edit them below."
    )
    text = files[chosen].read_text(encoding="utf-8") if chosen in files else ""
    return st.text_area(
        "Spec (YAML or JSON)",
        value=text,
        height=300,
        key=f"{key}_text_{chosen}",
        placeholder="kind: ablation\nmodel: {id: philab-micro}\ndataset: {name: epistemology_true_false}\nmetric: logit_diff",
        help="Every field is described in docs/methods.md. At most 64 kB.",
    )


def read_field(text: str) -> NamedSpec:
    """The spec in a text field.

    Raises:
        SpecError: it is empty or wrong; the text names line or field.
    """
    return parse_text(text, default_model=services().settings.default_model)


def preset_field(key: str) -> str | None:
    """A choice among the hardware presets; None leaves the spec as it is."""
    tiers = presets()
    chosen = st.selectbox("Preset", [NO_PRESET, *tiers], key=key, help="Caps that fit the work to a machine. They become part of the spec.")
    if chosen == NO_PRESET:
        return None
    caps = ", ".join(f"{cap.replace('_', ' ')} ≤ {value}" for cap, value in tiers[chosen].model_dump().items() if value is not None)
    st.caption(caps)
    return chosen
