import uuid
from pathlib import Path

from app import queries
from app.services import Services
from db.imports import import_folder
from engine.as_python import as_python
from engine.custom import CustomCall, CustomResult, Source
from engine.folder import FolderRecorder
from engine.spec import ModelRef, parse_text
from tests import community

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
    assert provenance["spec_sha256"] == queries.asked_of(queries.run(lab_pages.owner, run_id)).sha256
    assert "hardware.system" in provenance
    assert {"SVG", "PNG", "CSV"} <= {button.label for button in at.get("download_button")}


def test_a_selftest_is_a_table_of_checks_with_what_it_means(lab_pages: Services, open_page, do_runs):
    run_id = start(lab_pages, "kind: selftest\nmodel: {id: planted-induction}\nlimits: {layers: 1}")
    do_runs(lab_pages)
    at = open_page("run", id=str(run_id))
    assert not at.exception
    assert "can be trusted with planted-induction in float32 here: 14 checks made, none failed" in said(at)
    assert "is one that the engine addresses rightly, not one that is right" in said(at)
    assert not at.error
    table = at.dataframe[0].value
    assert table["check"][table["outcome"] == "not applicable"].tolist() == ["chain of layers"]  # one layer alone has none
    assert dict(zip(table["check"], table["tolerance"], strict=True))["clean = plain"] == 0
    assert {metric.label: metric.value for metric in at.metric}["Layers"] == "1 of 2"


def test_a_check_that_failed_is_said_before_the_table(lab_pages: Services, open_page, do_runs, monkeypatch):
    from engine.experiments import selftest
    from engine.experiments.checks.subject import Measured

    wrong = selftest.Trial("odd one", "this and that", lambda _: Measured(0.5, 1e-5, "nats", "largest at L0H0"))
    monkeypatch.setattr(selftest, "CHECKS", (wrong, selftest.CHECKS[0]))
    run_id = start(lab_pages, "kind: selftest\nmodel: {id: planted-induction}")
    do_runs(lab_pages)
    at = open_page("run", id=str(run_id))
    assert not at.exception
    assert "1 of 2 checks failed on planted-induction in float32: odd one" in said(at)
    assert "They differ by 0.500 nats, allowed is 1.000e−05; largest at L0H0" in at.error[0].value.replace("\\", "")
    assert at.dataframe[0].value["outcome"].tolist() == ["FAILED", "passed"]


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


def test_a_run_can_be_copied_as_python(lab_pages: Services, open_page):
    run_id = start(lab_pages)
    at = open_page("run", id=str(run_id))
    [script] = [element.value for element in at.code if element.language == "python"]
    assert f"{script}\n" == as_python(queries.asked_of(queries.run(lab_pages.owner, run_id)), name="First look")
    assert "philab.run(spec, name='First look')" in script


def test_a_run_of_somebodys_own_code_shows_its_numbers_and_its_text(lab_pages: Services, open_page, tmp_path):
    text = "def my(model):\n    raise SystemExit('```executed``` <script>')\n"
    run_id = imported(lab_pages, tmp_path, Source(name="my", role="experiment", origin="notebook", text=text))
    at = open_page("run", id=str(run_id))
    assert not at.exception
    assert "Somebody's own code, my, gave 1 number on planted-induction" in said(at)
    assert "nobody else has repeated or checked them" in said(at)
    assert dict(at.dataframe[1].value.itertuples(index=False)) == {"distance": 1.5}
    source, script = (element.value for element in at.code)
    assert f"{source}\n" == text
    assert "my.run(model, layer='</script>')" in script


def imported(running: Services, folder: Path, source: Source) -> uuid.UUID:
    call = CustomCall(name="my", model=ModelRef(id="planted-induction"), parameters={"layer": "</script>"}, source=source)
    recorder, provenance = FolderRecorder(folder / "run", name="my"), community.provenance(community.SPEC, "a" * 64)
    recorder.begin(call, provenance)
    recorder.finish(CustomResult(metrics={"distance": 1.5}), provenance)
    with running.database.session() as session:
        return import_folder(session, running.owner, folder / "run", store=running.store).id
