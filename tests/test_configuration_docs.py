from scripts.make_configuration_docs import PAGE, page


def test_page_on_configuration_is_up_to_date():
    assert PAGE.read_text() == page(), "run `python scripts/make_configuration_docs.py`"


def test_every_setting_is_described():
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if row.endswith("|  |")] == []
