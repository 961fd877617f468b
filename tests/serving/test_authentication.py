import hashlib
from base64 import b64encode

import pytest

from rayembed.common.errors import ConfigError
from rayembed.serving.authentication import KEYS_VARIABLE, Keyring, KeySettings, load_keyring, load_keys
from rayembed.serving.errors import ApiError, Problem, failed
from rayembed.serving.middleware import RequestRecord

KEY = "sesame-1234"


@pytest.fixture(autouse=True)
def _no_keys_from_outside(monkeypatch):
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def embed(client, key=KEY):
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    return client.post("/v1/embeddings", json={"model": "fake", "input": "one two"}, headers=headers)


def test_only_a_known_key_gets_in(make_client):
    client = make_client(
        keyring=Keyring([KeySettings(name="a", key="other"), KeySettings(name="b", key=KEY)])
    )
    assert embed(client).status_code == 200
    for wrong in ("sesame", KEY + "5", "", None):
        response = embed(client, wrong)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    basic = client.get("/v1/models", headers={"Authorization": f"Basic {KEY}"})
    assert basic.status_code == 401


def test_pages_and_probes_need_no_key(make_client):
    client = make_client(keyring=Keyring([KeySettings(name="a", key=KEY)]))
    for path in ("/", "/docs", "/openapi.json", "/health/live", "/health/ready", "/assets/playground.js"):
        assert client.get(path).status_code == 200, path
    for path in ("/v1/models", "/metrics", "/debug", "/info", "/nowhere"):
        assert client.get(path).status_code == 401, path


def test_key_may_be_kept_as_a_digest(make_client):
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    client = make_client(keyring=Keyring([KeySettings(name="a", sha256=digest)]))
    assert embed(client).status_code == 200
    assert embed(client, digest).status_code == 401


def test_requests_per_minute(make_client, clock):
    client = make_client(
        keyring=Keyring([KeySettings(name="a", key=KEY, requests_per_minute=2)], clock=clock)
    )
    assert [embed(client).status_code for _ in range(3)] == [200, 200, 429]
    refused = embed(client)
    assert refused.json()["error"]["code"] == "requests_limit_exceeded"
    clock.now += int(refused.headers["Retry-After"])
    assert embed(client).status_code == 200


def test_tokens_per_minute(make_client, clock):
    """A request has 3 tokens; the one that crosses the limit is answered, the next one waits."""
    client = make_client(keyring=Keyring([KeySettings(name="a", key=KEY, tokens_per_minute=4)], clock=clock))
    assert [embed(client).status_code for _ in range(3)] == [200, 200, 429]
    refused = embed(client)
    assert refused.json()["error"]["code"] == "tokens_limit_exceeded"
    clock.now += int(refused.headers["Retry-After"])
    assert embed(client).status_code == 200


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"inputs": "one"}), ("/decode", {"ids": [5, 6]})])
def test_what_takes_the_tokenizer_counts(make_client, clock, path, body):
    client = make_client(keyring=Keyring([KeySettings(name="a", key=KEY, tokens_per_minute=4)], clock=clock))
    headers = {"Authorization": f"Bearer {KEY}"}
    answers = [client.post(path, json=body, headers=headers).status_code for _ in range(3)]
    assert answers == [200, 200, 429]


def test_limits_are_shared_out_between_front_ends(clock):
    keyring = Keyring([KeySettings(name="a", key=KEY, requests_per_minute=4)], share=0.5, clock=clock)
    client = keyring.admit({"authorization": f"Bearer {KEY}"})
    client.admit()
    with pytest.raises(Exception, match="requests per minute"):
        client.admit()


def test_listening_beyond_loopback_needs_keys(monkeypatch):
    for host in ("127.0.0.1", "localhost", "::1"):
        assert load_keyring("auto", "", host) is None
    with pytest.raises(ConfigError, match=r"would listen on 0\.0\.0\.0 without any API key"):
        load_keyring("auto", "", "0.0.0.0")
    with pytest.raises(ConfigError, match="without any API key"):
        load_keyring("required", "", "127.0.0.1")
    assert load_keyring("off", "", "0.0.0.0") is None
    monkeypatch.setenv(KEYS_VARIABLE, f"{KEY}, other")
    assert load_keyring("auto", "", "0.0.0.0").admit({"authorization": "Bearer other"}).name == "key-2"


def test_key_file(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(f"- {{name: search, key: {KEY}, tokens_per_minute: 1000}}\n")
    [settings] = load_keys(str(path))
    assert (settings.name, settings.tokens_per_minute) == ("search", 1000)


@pytest.mark.parametrize(
    "content", [f"- {{name: a, keys: {KEY}}}", f"{KEY}", f"- {{name: a, key: [{KEY}]}}", "- {name: a", None]
)
def test_broken_key_file_is_named_and_not_repeated(tmp_path, content):
    path = tmp_path / "keys.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"keys\.yaml") as failure:
        load_keys(str(path))
    assert KEY not in str(failure.value)


@pytest.mark.parametrize("settings", [{}, {"key": "a", "sha256": "b"}, {"sha256": "abc"}])
def test_malformed_key(settings):
    with pytest.raises(ConfigError, match="API key 'a'"):
        Keyring([KeySettings(name="a", **settings)])


@pytest.mark.parametrize(
    "headers",
    [
        {"api-key": KEY},
        {"X-Api-Key": KEY},
        {"Authorization": f"Basic {b64encode(f'me:{KEY}'.encode()).decode()}"},
    ],
    ids=["Azure", "x-api-key", "browser"],
)
def test_a_key_comes_in_the_header_that_a_client_has(make_client, headers):
    client = make_client(keyring=Keyring([KeySettings(name="a", key=KEY)]))
    assert client.get("/debug", headers=headers).status_code == 200
    asked = client.get("/debug")
    assert asked.status_code == 401
    assert asked.headers["WWW-Authenticate"].startswith("Basic")
    assert client.get("/openapi.json").json()["security"] == [{"key": []}]
    assert client.post("/", json={"inputs": "x"}).status_code == 401


def test_tokens_are_reserved_until_the_work_ends(clock):
    """10 a minute: a request of about 8 leaves 2, one more of 8 is let in, then none before one ends."""
    [account] = Keyring([KeySettings(name="a", key=KEY, tokens_per_minute=10)], clock=clock).clients
    record = RequestRecord("id", account=account)
    with record.reserve(8), record.reserve(8):
        with pytest.raises(ApiError), record.reserve(1):
            pass
        record.tokens = 1
    with record.reserve(1):  # 8 of the 10 are left
        pass
    with pytest.raises(ApiError, match="refused"), record.reserve(5):
        raise ApiError(Problem(429, "refused"))
    with pytest.raises(TimeoutError), record.reserve(3):
        raise TimeoutError
    with pytest.raises(ApiError, match="log has the reason"), record.reserve(5):
        raise ApiError(failed())
    with pytest.raises(ApiError, match="tokens per minute"), record.reserve(1):
        pass
