from app.services import Services


def test_home_says_what_this_is_and_where_to_start(lab_pages: Services, open_page):
    at = open_page("home")
    assert not at.exception
    assert at.title[0].value == "An open interpretability lab"
    assert [link.value for link in at.page_link] == ["Open with the planted heads", "Browse the tasks", "Read the findings"]


def test_home_counts_what_is_there(lab_pages: Services, open_page):
    assert {metric.label: metric.value for metric in open_page("home").metric}["Open tasks"] == "0"
