"""The form for a self-test: which model, in which precision."""

from typing import get_args

import streamlit as st

from app import queries
from app.forms import faults_shown
from app.navigation import go
from app.services import services
from app.session import viewer
from engine.spec import NamedSpec, parse_spec
from engine.spec.base import Dtype, Quantization

PRECISIONS = [*get_args(Dtype), *get_args(Quantization)]
MODEL_HELP = "Shipped model, short name, Hugging Face id, or a folder of this machine. To pin a revision, use 'New run' and its YAML."


def draw_selftest_form() -> None:
    """Model in, run out: a self-test is queued, and its page opens."""
    st.caption(
        "Compares two ways to the same numbers on a model of yours: padded and unpadded, cached and uncached, the sweep and whole forward "
        "passes, the sums of the residual stream. Nothing is sent anywhere."
    )
    left, right = st.columns([3, 1])
    model = left.text_input("Model", value=services().settings.default_model, key="selftest_model", max_chars=200, help=MODEL_HELP)
    precision = right.selectbox("Precision", PRECISIONS, key="selftest_precision") or PRECISIONS[0]
    if st.button("Check this model", type="primary", icon=":material/fact_check:", key="start_selftest"):
        with faults_shown():
            go("run", id=str(queries.start_run(viewer(), _named(model.strip(), precision), name="", preset=None)))


def _named(model: str, precision: str) -> NamedSpec:
    """The spec of what was asked.

    Raises:
        SpecError: the model's name is empty or not a name.
    """
    kept = {"dtype": precision} if precision in get_args(Dtype) else {"quantization": precision}
    return NamedSpec(spec=parse_spec({"kind": "selftest", "model": {"id": model, **kept}}), name=f"Self-test of {model}"[:200])
