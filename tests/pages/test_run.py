import uuid

from app import queries
from app.services import Services
from engine.spec import parse_text

SPEC = "kind: ablation\nmodel: {id: planted-induction}\ndataset: {name: planted_induction, rows: {start: 0, stop: 4}}\nmetric: target_loss"


def start(running: Services, text: str = SPEC):
    return queries.start_run(running.owner, parse_text(text), name="First look", preset=None)


def said(at) -> str:
    return "\n".join(element.value for kind in (at.markdown, at.caption, at.error, at.warning) for element in kind).replace("\\", "")


def test_no_id_and_an_unknown_id_are_explained(lab_pages: Services, open_page):
    assert "No run is named" in open_page("run").info[0].value
    assert "No run is named" in open_page("run", id="x").info[0].value
    at = open_page("run", id=str(uuid.uuid4()))
    assert not at.exception
    assert "There is no run" in at.error[0].value.replace("\\", "")


def test_a_queued_run_shows_progress_and_can_be_cancelled(lab_pages: Services, open_page):
    run_id = start(lab_pages)
    at = open_page("run", id=str(run_id))
    assert len(at.progress) == 1
    at.button(key=f"cancel-{run_id}").click().run()
    assert not at.exception
    assert "was cancelled" in said(at)
    assert not at.progress


def test_a_result_names_the_planted_head_and_keeps_its_provenance(lab_pages: Services, open_page, do_runs):
    run_id = start(lab_pages)
    do_runs(lab_pages)
    at = open_page("run", id=str(run_id))
    assert not at.exception
    assert "2 of 8 heads have a 95 % interval that excludes 0" in said(at)
    assert len(at.get("vega_lite_chart")) == 2
    table = at.dataframe[0].value
    assert set(table["site"][:2]) == {"L0H1", "L1H2"}
    provenance = dict(at.dataframe[-1].value.itertuples(index=False))
    assert provenance["spec_sha256"] == queries.spec_of(queries.run(lab_pages.owner, run_id)).sha256
    assert "hardware.system" in provenance
    assert {"SVG", "PNG", "CSV"} <= {button.label for button in at.get("download_button")}


def test_a_failed_run_says_why_in_one_sentence_and_can_be_tried_again(lab_pages: Services, open_page, do_runs):
    run_id = start(lab_pages, SPEC.replace("planted-induction", "no-such-model"))
    do_runs(lab_pages)
    at = open_page("run", id=str(run_id))
    assert not at.exception
    assert "no-such-model" in at.error[0].value.replace("\\", "")
    assert "Traceback" not in at.error[0].value
    at.button(key="retry").click().run()
    assert queries.run(lab_pages.owner, run_id).status == "queued"


def test_a_private_run_is_not_there_for_a_visitor(start_pages, open_page):
    lab = start_pages()
    run_id = start(lab)
    lab.close()
    start_pages(mode="hosted")
    assert "There is no run" in open_page("run", id=str(run_id)).error[0].value
