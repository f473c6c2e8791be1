from app.services import Services, start_services
from db.contributors import add_key, register
from db.keys import read_pepper


def hosted_key(running: Services) -> str:
    with running.database.session() as session:
        return register(session, username="ada", email=None, pepper=read_pepper(running.settings)).api_key


def test_a_local_lab_needs_no_sign_in(lab_pages: Services, open_page):
    at = open_page("home")
    assert "Local lab" in at.sidebar.caption[0].value
    assert not at.sidebar.text_input


def test_a_key_signs_in_and_out(start_pages, open_page):
    running = start_pages(mode="hosted")
    key = hosted_key(running)
    at = open_page("runs")
    at.text_input(key="api_key_field").set_value(key)
    at.sidebar.button[0].click().run()
    assert not at.exception
    assert "ada" in at.sidebar.markdown[0].value
    assert any(button.label == "Run" for button in at.button)
    at.button(key="sign_out").click().run()
    assert at.sidebar.text_input


def test_a_wrong_key_is_refused_in_words(start_pages, open_page):
    start_pages(mode="hosted")
    at = open_page("runs")
    at.text_input(key="api_key_field").set_value("plk_nonsense")
    at.sidebar.button[0].click().run()
    assert "not valid here" in at.error[0].value
    assert at.sidebar.text_input


def test_a_key_that_is_revoked_meanwhile_signs_out(start_pages, open_page):
    from sqlalchemy import func, update

    from db.schema import ApiKey

    running = start_pages(mode="hosted")
    at = open_page("runs")
    at.text_input(key="api_key_field").set_value(hosted_key(running))
    at.sidebar.button[0].click().run()
    with running.database.session() as session:
        session.execute(update(ApiKey).values(revoked_at=func.now()))
    at.run()
    assert at.sidebar.text_input
    assert [button.label for button in at.button] == ["Sign in"]


def test_a_database_that_is_away_is_one_sentence(own_settings, open_page, monkeypatch):
    from app import services

    away = own_settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:9/none"})
    monkeypatch.setattr(services, "read_settings", lambda: away)
    at = open_page("home")
    assert not at.exception
    assert "cannot be reached" in at.error[0].value
    assert len(at.error) == 1


def test_services_are_made_once(lab_pages: Services, own_settings):
    assert start_services(own_settings) is lab_pages
    assert add_key is not None
