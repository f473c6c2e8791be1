"""A spec that comes from somewhere else reads no file of this machine."""

import pytest

from engine.errors import SpecError
from engine.spec import parse_spec
from engine.spec.sharing import check_shareable, shipped_models

COMMIT = "a" * 40


def spec(model: dict, dataset: dict, **more: object) -> dict:
    return {"kind": "ablation", "model": model, "dataset": dataset, **more}


@pytest.mark.parametrize("model", [*({"id": name} for name in shipped_models()), {"id": "owner/name", "revision": COMMIT}])
def test_names_and_pinned_models_may_travel(model: dict) -> None:
    check_shareable(parse_spec(spec(model, {"name": "planted_induction"})))


def test_what_a_community_can_repeat_is_given_back() -> None:
    given = parse_spec(spec({"id": "philab-micro"}, {"name": "planted_induction"}))
    assert check_shareable(given) is given


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "selftest", "model": {"id": "philab-micro"}}, "kind 'selftest' says something of one machine"),
        (spec({"id": "philab-micro"}, {"path": "/etc/passwd"}), "'dataset.path' names a local file"),
        (
            spec({"id": "philab-micro"}, {"name": "d"}, mode="mean", reference={"path": "notes.csv"}),
            "'reference.path' names a local file",
        ),
        (spec({"id": "/srv/models/mine", "revision": COMMIT}, {"name": "d"}), "names a local folder"),
        (spec({"id": "../mine", "revision": COMMIT}, {"name": "d"}), "names a local folder"),
        (spec({"id": "~/mine", "revision": COMMIT}, {"name": "d"}), "names a local folder"),
        (spec({"id": "C:\\mine", "revision": COMMIT}, {"name": "d"}), "names a local folder"),
        (spec({"id": "mine"}, {"name": "d"}), "is not shipped"),
        (spec({"id": "owner/name"}, {"name": "d"}), "has no revision"),
        (spec({"id": "owner/name", "revision": "main"}, {"name": "d"}), "has revision 'main'"),
    ],
)
def test_places_and_moving_models_stay_at_home(values: dict, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_shareable(parse_spec(values))
    assert said in str(caught.value)
