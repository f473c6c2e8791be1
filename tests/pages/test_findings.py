from app import queries
from app.services import Services
from db.contributors import register
from db.keys import read_pepper
from db.tasks import draft_from
from db.viewer import Viewer

SPEC = "kind: ablation\nmodel: {id: planted-induction}\ndataset: {name: planted_induction, rows: {start: 0, stop: 12}}\nmetric: target_loss"


def said(at) -> str:
    return "\n".join(element.value for kind in (at.markdown, at.caption, at.info) for element in kind).replace("\\", "")


def answered(running: Services, do_runs, *, people: int):
    """A task of three shards, each answered by `people` contributors."""
    values = {"name": "Who copies?", "spec_yaml": SPEC, "n_shards": 3, "replicas": people, "delta": 0.05}
    task_id = queries.create_task(running.owner, draft_from(values))
    with running.database.session() as session:
        pepper = read_pepper(running.settings)
        made = [register(session, username=f"person{number}", email=None, pepper=pepper) for number in range(people)]
    for one in made:
        queries.run_here(Viewer(contributor_id=one.contributor_id, role="contributor"), task_id, 3)
    do_runs(running)
    return task_id


def test_without_submissions_it_says_where_findings_come_from(lab_pages: Services, open_page):
    at = open_page("findings")
    assert not at.exception
    assert "nothing has been sent" in at.info[0].value


def test_too_few_people_claim_nothing_and_the_page_says_why(lab_pages: Services, open_page, do_runs):
    answered(lab_pages, do_runs, people=1)
    at = open_page("findings")
    assert not at.exception
    assert "No effect is claimed yet." in said(at)
    assert "1 contributor of at least 3" in said(at)
    assert not at.get("vega_lite_chart")
    assert len(at.dataframe[0].value) == 3


def test_three_people_make_a_candidate_with_interval_and_reason(lab_pages: Services, open_page, do_runs):
    task_id = answered(lab_pages, do_runs, people=3)
    at = open_page("findings", task=str(task_id))
    assert not at.exception
    assert "hardware class" in said(at)
    assert len(at.get("vega_lite_chart")) == 2
    table = at.dataframe[0].value
    assert set(table["site"][:2]) == {"L0H1", "L1H2"}
    assert {"low", "high", "next low", "next high", "q", "confidence", "shards", "contributors"} <= set(table.columns)
    assert len(at.dataframe[1].value) == 9


def test_a_task_in_the_address_that_is_not_there_falls_back(lab_pages: Services, open_page, do_runs):
    answered(lab_pages, do_runs, people=1)
    assert not open_page("findings", task="nonsense").exception
