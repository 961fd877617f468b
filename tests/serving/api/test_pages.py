"""The page at `/` in a real browser."""

import shutil
import subprocess

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
    """The endpoint on a loopback port, with two fake models and an API key."""
    config = ServeConfig.parse(
        {
            "checkpoint": "unused",
            "model_name": "fake",
            "models": [{"checkpoint": "unused", "model_name": "other"}],
        }
    )
    engines = {"fake": FakeEngine(instructions={"query": "find"}), "other": FakeEngine()}
    handles = {
        model.served_name: LocalHandle(EmbeddingReplica(model, lambda model: engines[model.served_name]))
        for model in config.all_models
    }
    keyring = Keyring([KeySettings(name="a", key=KEY)])
    return serve_app(create_app(config, handles, keyring=keyring))


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


DROP = """
const files = new DataTransfer();
files.items.add(new File([arguments[0]], "passages.jsonl"));
document.getElementById("passages").dispatchEvent(new DragEvent("drop", { dataTransfer: files }));
"""
RESULTS = """
const texts = (row) => row.innerText.split("\\n").map((text) => text.trim()).filter(Boolean);
return Array.from(document.querySelectorAll("#results li"), texts);
"""


def test_search_ranks_passages_and_draws_a_map(browser, url, monkeypatch, capsys):
    def one(identifier):
        return browser.find_element("id", identifier)

    def results():
        return browser.execute_script(RESULTS)

    browser.get(url)
    wait_for(browser, lambda _: one("key").is_displayed())  # no key yet: the page asks for one
    one("key").send_keys(KEY)
    one("query").click()
    wait_for(browser, lambda _: len(results()) == 8)  # the example, at once
    one("passages").clear()
    one("passages").send_keys("first words\nthe very same words\nlast words")
    one("query").clear()
    one("query").send_keys("the very same words")
    assert len(one("prompt").find_elements("tag name", "option")) == 2
    one("prompt").send_keys("none")  # without an instruction the same text is the same vector
    one("search").click()
    wait_for(browser, lambda _: results()[0] == ["1", "the very same words", "1.000"])
    assert len(results()) == 3
    scores = [float(row[2]) for row in results()]
    assert scores == sorted(scores, reverse=True)
    assert len(browser.find_elements("css selector", "#map circle")) == 4

    one("other").send_keys("other")
    wait_for(browser, lambda _: results()[0] == ["1", "the very same words", "1.000", "1.000 (1)"])

    browser.execute_script(DROP, '{"id": "7", "text": "it\'s the"}\nvery \\"same\\" words\n')
    wait_for(browser, lambda _: len(results()) == 2)
    assert {row[1] for row in results()} == {"it's the", 'very \\"same\\" words'}
    first = results()[0]

    monkeypatch.setenv("KEY", KEY)
    answers = subprocess.run(one("curl").text, shell=True, capture_output=True, text=True, check=True).stdout
    assert answers.count('"object":"list"') == 4  # query and passages, by two models
    exec(one("python").text, {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"fake {round(float(first[2]), 3)} {first[1]}"
    assert [line.split()[0] for line in printed] == ["fake", "fake", "other", "other"]
    [button] = browser.find_elements("css selector", "[data-copies=curl]")
    button.click()
    wait_for(browser, lambda _: button.text in ("Copied", "Press Ctrl-C"))
    errors = [entry for entry in browser.get_log("browser") if "401" not in entry["message"]]
    assert errors == []


def test_swagger_page_shows_the_paths(browser, url):
    browser.get(f"{url}/docs")
    wait_for(browser, lambda _: browser.find_elements("class name", "opblock"))
    paths = [element.text for element in browser.find_elements("class name", "opblock-summary-path")]
    assert any("embeddings" in path.replace("\u200b", "") for path in paths)
