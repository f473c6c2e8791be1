import uuid

import pytest

from app import queries
from app.services import Services
from db.tasks import draft_from
from db.viewer import Viewer

SPEC = """
kind: ablation
model: {id: planted-induction}
dataset: {name: planted_induction, rows: {start: 0, stop: 12}}
metric: target_loss
"""
HOSTILE = "![x](https://evil.example/a.png) <b>bold</b> [go](javascript:alert(1)) :red[fake]"


def make_task(running: Services, **changes):
    assert running.owner is not None
    return queries.create_task(
        running.owner, draft_from({"name": "Who copies?", "spec_yaml": SPEC, "n_shards": 3, "replicas": 1, **changes})
    )


def texts(at) -> str:
    return "\n".join(element.value for kind in (at.markdown, at.caption, at.text, at.title) for element in kind)


def test_an_empty_board_says_what_to_do(lab_pages: Services, open_page):
    at = open_page("tasks")
    assert not at.exception
    assert "No task yet" in at.info[0].value


def test_the_board_shows_tasks_by_priority_and_filters_by_status(lab_pages: Services, open_page):
    make_task(lab_pages, name="Later", priority=1)
    make_task(lab_pages, name="First", priority=5)
    at = open_page("tasks")
    assert [link.value for link in at.page_link] == ["**First**", "**Later**"]
    at.radio(key="status").set_value("completed").run()
    assert "No task has this status" in at.info[0].value


def test_the_form_previews_what_it_asks_and_creates_a_task(lab_pages: Services, open_page):
    at = open_page("tasks")
    at.selectbox(key="start_from").set_value("Paste your own").run()
    assert at.button(key="create_task").disabled
    at.text_area(key="start_from_text_Paste your own").set_value(SPEC).run()
    assert "12 runs in all (6 shards of 2 rows × 2 replicas)" in texts(at)
    at.text_input(key="task_name").set_value("Who copies?").run()
    at.button(key="create_task").click().run()
    assert not at.exception
    assert at.title[0].value == "Who copies\\?" or at.title[0].value == "Who copies?"
    assert "id" in at.query_params


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: ablation\nmetric: vibes", "dataset"),
        ("a: [", "YAML"),
        ("kind: dance", "dance"),
        ("kind: selftest", "one machine"),
        ("kind: ablation\nkind: ablation", "twice"),
    ],
)
def test_a_wrong_spec_is_explained_where_it_stands(lab_pages: Services, open_page, text, said):
    at = open_page("tasks")
    at.selectbox(key="start_from").set_value("Paste your own").run()
    at.text_area(key="start_from_text_Paste your own").set_value(text).run()
    assert not at.exception
    assert said in at.error[0].value
    assert at.button(key="create_task").disabled


def test_more_shards_than_rows_are_refused_in_words(lab_pages: Services, open_page):
    at = open_page("tasks")
    at.selectbox(key="start_from").set_value("Paste your own").run()
    at.text_area(key="start_from_text_Paste your own").set_value(SPEC).run()
    at.number_input(key="task_shards").set_value(50).run()
    at.text_input(key="task_name").set_value("x").run()
    at.button(key="create_task").click().run()
    assert "cannot be cut into 50 shards" in at.error[0].value


def test_text_of_strangers_stays_text(lab_pages: Services, open_page):
    task_id = make_task(lab_pages, name=HOSTILE, hypothesis=HOSTILE, description=HOSTILE, tags=[":red[x]"])
    for at in (open_page("tasks"), open_page("tasks", id=str(task_id))):
        drawn = "\n".join(element.value for kind in (at.markdown, at.caption, at.title) for element in kind)
        drawn += "".join(link.value for link in at.page_link)
        assert "](" not in drawn
        assert "<b>" not in drawn
        assert ":red[" not in drawn
        assert not at.get("html")


def test_running_a_shard_here_queues_a_run_and_the_worker_does_the_rest(lab_pages: Services, open_page, do_runs):
    task_id = make_task(lab_pages)
    at = open_page("tasks", id=str(task_id))
    assert "Run all 3 shards I have not done" in [button.label for button in at.button]
    at.button(key="run_next").click().run()
    assert not at.exception
    assert len(at.progress) == 2  # the run, and the task
    assert "Run all 2 shards I have not done" in [button.label for button in at.button]
    at.button(key="run_all").click().run()
    assert "You have run every shard" in texts(at)
    do_runs(lab_pages)
    at = open_page("tasks", id=str(task_id))
    assert [progress.text for progress in at.progress] == ["3 of 3 runs accepted"]
    assert "takes no more runs" in texts(at)


def test_an_unknown_task_is_one_sentence(lab_pages: Services, open_page):
    at = open_page("tasks", id=str(uuid.uuid4()))
    assert not at.exception
    assert "There is no task" in at.error[0].value
    at = open_page("tasks", id="7")
    assert "names no task" in at.error[0].value


def test_a_visitor_reads_and_cannot_start_anything(start_pages, open_page):
    from db.contributors import add_key, register, set_role  # noqa: F401
    from db.keys import read_pepper

    running = start_pages(mode="hosted")
    with running.database.session() as session:
        made = register(session, username="ada", email=None, pepper=read_pepper(running.settings), role="reviewer")
    author = Viewer(contributor_id=made.contributor_id, role="reviewer")
    task_id = queries.create_task(author, draft_from({"name": "Open one", "spec_yaml": SPEC, "n_shards": 2, "replicas": 1}))
    board, detail = open_page("tasks"), open_page("tasks", id=str(task_id))
    assert [link.value for link in board.page_link] == ["**Open one**"]
    assert [button.label for button in [*board.button, *detail.button]] == ["Sign in", "Sign in"]
    assert "Sign in with an API key" in detail.info[0].value
    for forbidden in (lambda: queries.run_here(Viewer.visitor(), task_id, 1), lambda: queries.shards_left(Viewer.visitor(), task_id)):
        with pytest.raises(Exception, match="only contributors"):
            forbidden()
