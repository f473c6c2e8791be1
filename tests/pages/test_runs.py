from app import queries
from app.services import Services
from engine.spec import parse_text

SPEC = "kind: ablation\nmodel: {id: planted-induction}\ndataset: {name: planted_induction, rows: {start: 0, stop: 4}}\nmetric: target_loss"


def start(running: Services, name: str = "First look"):
    return queries.start_run(running.owner, parse_text(SPEC), name=name, preset=None)


def test_no_runs_says_how_to_make_one(lab_pages: Services, open_page):
    at = open_page("runs")
    assert not at.exception
    assert "No runs yet" in at.info[0].value


def test_a_run_is_started_from_a_shipped_spec_with_a_preset(lab_pages: Services, open_page):
    at = open_page("runs", spec="planted_heads")
    assert "planted-induction" in at.text_area[0].value
    at.selectbox(key="preset").set_value("cpu_sanity").run()
    at.button(key="start_run").click().run()
    assert not at.exception
    assert at.title[0].value == "Planted heads"
    made = queries.list_runs(lab_pages.owner, status=None, mine=True, page=1).rows[0]
    assert (made.preset, made.status, made.spec["limits"]["records"]) == ("cpu_sanity", "queued", 100)


def test_a_wrong_spec_starts_nothing_and_says_why(lab_pages: Services, open_page):
    at = open_page("runs")
    at.selectbox(key="spec").set_value("Paste your own").run()
    at.text_area[0].set_value("kind: ablation\nmetric: vibes").run()
    at.button(key="start_run").click().run()
    assert not at.exception
    assert "dataset" in at.error[0].value
    assert not queries.list_runs(lab_pages.owner, status=None, mine=False, page=1).rows


def test_a_selftest_is_started_with_a_model_and_a_precision(lab_pages: Services, open_page):
    at = open_page("runs")
    assert at.text_input(key="selftest_model").value == "philab-micro"
    at.text_input(key="selftest_model").set_value("planted-induction").run()
    at.selectbox(key="selftest_precision").set_value("bfloat16").run()
    at.button(key="start_selftest").click().run()
    assert not at.exception
    assert at.title[0].value.replace("\\", "") == "Self-test of planted-induction"
    made = queries.list_runs(lab_pages.owner, status=None, mine=True, page=1).rows[0]
    assert (made.kind, made.status, made.spec["model"]["dtype"]) == ("selftest", "queued", "bfloat16")


def test_a_selftest_of_nothing_starts_nothing(lab_pages: Services, open_page):
    at = open_page("runs")
    at.text_input(key="selftest_model").set_value("").run()
    at.button(key="start_selftest").click().run()
    assert not at.exception
    assert "model.id" in at.error[0].value.replace("\\", "")
    assert not queries.list_runs(lab_pages.owner, status=None, mine=False, page=1).rows


def test_the_list_shows_runs_newest_first_and_filters(lab_pages: Services, open_page):
    start(lab_pages, "Older")
    start(lab_pages, "Newer **bold**")
    at = open_page("runs")
    assert [link.value.replace("\\", "") for link in at.page_link] == ["Newer **bold**", "Older"]
    assert "**" not in at.page_link[0].value
    at.radio(key="status").set_value("failed").run()
    assert "No run matches" in at.info[0].value
    at.radio(key="status").set_value("queued").run()
    assert len(at.page_link) == 2


def test_private_runs_are_not_shown_to_visitors(start_pages, open_page):
    lab = start_pages()
    start(lab)
    lab.close()
    start_pages(mode="hosted")
    at = open_page("runs")
    assert "No public runs yet" in at.info[0].value
    assert not at.page_link
    assert [button.label for button in at.button] == ["Sign in"]
