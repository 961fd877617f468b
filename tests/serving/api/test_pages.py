"""The page at `/` in a real browser."""

import shutil

import pytest

from rayembed.serving.app import create_app
from rayembed.serving.authentication import Keyring, KeySettings
from rayembed.serving.config import ServeConfig
from rayembed.serving.replica import EmbeddingReplica
from tests.serving.fakes import FakeEngine, LocalHandle

selenium = pytest.importorskip("selenium.webdriver", reason="needs the package selenium")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs chromium and chromedriver on the search path"
)
KEY = "sesame-1234"


@pytest.fixture(scope="module")
def url(serve_app):
    """The endpoint on a loopback port, with a fake engine and an API key."""
    config = ServeConfig(checkpoint="unused", model_name="fake")
    replica = EmbeddingReplica(config, lambda _: FakeEngine(instructions={"query": "find"}))
    keyring = Keyring([KeySettings(name="a", key=KEY)])
    return serve_app(create_app(config, {"fake": LocalHandle(replica)}, keyring=keyring))


@pytest.fixture(scope="module")
def browser():
    options = selenium.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait_for(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(condition)


def test_search_ranks_passages_and_draws_a_map(browser, url):
    def one(identifier):
        return browser.find_element("id", identifier)

    browser.get(url)
    wait_for(browser, lambda _: one("key").is_displayed())  # no key yet: the page asks for one
    one("key").send_keys(KEY)
    one("passages").clear()
    one("passages").send_keys("first words\nthe very same words\nlast words")
    one("query").clear()
    one("query").send_keys("the very same words")
    wait_for(browser, lambda _: len(one("prompt").find_elements("tag name", "option")) == 2)
    one("prompt").send_keys("none")  # without an instruction the same text is the same vector
    one("search").click()
    wait_for(browser, lambda _: browser.find_element("css selector", "#results .score").text == "1.000")
    rows = browser.find_elements("css selector", "#results li")
    assert rows[0].text.split("\n") == ["1", "the very same words", "1.000"]
    assert len(rows) == 3
    scores = [float(row.find_element("class name", "score").text) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert len(browser.find_elements("css selector", "#map circle")) == 4
    errors = [entry for entry in browser.get_log("browser") if "401" not in entry["message"]]
    assert errors == []


def test_swagger_page_shows_the_paths(browser, url):
    browser.get(f"{url}/docs")
    wait_for(browser, lambda _: browser.find_elements("class name", "opblock"))
    paths = [element.text for element in browser.find_elements("class name", "opblock-summary-path")]
    assert any("embeddings" in path.replace("\u200b", "") for path in paths)
