from app import queries
from app.services import Services
from db.tasks import draft_from

SPEC = "kind: ablation\nmodel: {id: planted-induction}\ndataset: {name: planted_induction, rows: {start: 0, stop: 4}}\nmetric: target_loss"


def test_an_empty_board_says_so(lab_pages: Services, open_page):
    at = open_page("leaderboard")
    assert not at.exception
    assert "Nobody has contributed yet" in at.info[0].value


def test_ones_own_row_stands_out(lab_pages: Services, open_page, do_runs):
    task_id = queries.create_task(lab_pages.owner, draft_from({"name": "x", "spec_yaml": SPEC, "n_shards": 2, "replicas": 1}))
    queries.run_here(lab_pages.owner, task_id, 2)
    do_runs(lab_pages)
    at = open_page("leaderboard", sort_by="compute_time")
    assert not at.exception
    assert at.dataframe[0].value["contributor"].tolist() == ["owner (you)"]
    assert {metric.label: metric.value for metric in at.metric}["Accepted runs"] == "2"
