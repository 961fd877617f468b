"""/v1/files and /v1/batches with OpenAI's client: answers, refused lines, keys, ends and restarts."""

import json
import time

import openai
import pytest
from fastapi.testclient import TestClient

from rayembed.records.stored_folder import StoredFolder
from rayembed.serving import batch_lines, batch_worker
from rayembed.serving.authentication import Keyring, KeySettings
from tests.serving.fakes import POISON, FakeEngine


def line(custom_id, text="one two", **body):
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "fake", "input": text, **body},
    }


def jsonl(*lines):
    return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines).encode()


@pytest.fixture(params=["folder", "s3"])
def location(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "batches")
    return request.getfixturevalue("s3").uri(f"bucket/{tmp_path.name}")


@pytest.fixture
def openai_of():
    """OpenAI's client of an endpoint whose batches are worked on."""

    def client(endpoint: TestClient, key="unused"):
        return openai.OpenAI(
            base_url="http://testserver/v1", api_key=key, http_client=endpoint, max_retries=0
        )

    return client


def submit(client, content):
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"a": "b"}
    )


def ended(client, batch):
    deadline = time.monotonic() + 30
    while (now := client.batches.retrieve(batch.id)).status not in (
        "completed",
        "failed",
        "cancelled",
        "expired",
    ):
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    return now


def lines_of(client, file_id):
    return {
        entry["custom_id"]: entry
        for entry in map(json.loads, client.files.content(file_id).text.splitlines())
    }


def test_answers_are_those_of_requests(make_client, openai_of, tmp_path, monkeypatch):
    """Seven lines, two a part; each bad one is named in the error file."""
    monkeypatch.setattr(batch_lines, "_PART_LINES", 2)
    content = jsonl(
        line("good"),
        line("list", ["a", "b c"], encoding_format="base64"),
        line("field", inputs="x"),
        line("model", model="other"),
        "",
        line("poison", POISON),
        {**line("url"), "url": "/v1/chat/completions"},
        line("good"),
        "no json",
        line("large", "w" * 3000),
    )
    with make_client(batches=str(tmp_path), max_body_bytes=2000) as endpoint:
        client = openai_of(endpoint)
        started = submit(client, content)
        assert started.status in ("validating", "in_progress")
        batch = ended(client, started)
        assert batch.status == "completed"
        assert batch.metadata == {"a": "b"}
        assert batch.request_counts.to_dict() == {"total": 9, "completed": 2, "failed": 7}
        answers = lines_of(client, batch.output_file_id)
        for custom_id, text in (("good", "one two"), ("list", ["a", "b c"])):
            online = endpoint.post("/v1/embeddings", json=line("", text)["body"]).json()
            if custom_id == "good":
                assert answers[custom_id]["response"]["body"] == online
            assert answers[custom_id]["response"]["status_code"] == 200
            assert answers[custom_id]["response"]["body"]["usage"] == online["usage"]
        failed = [json.loads(each) for each in client.files.content(batch.error_file_id).text.splitlines()]
        told = [
            (
                each["custom_id"],
                each["response"]["status_code"] if each["response"] else each["error"]["message"],
            )
            for each in failed
        ]
        assert told == [
            ("field", 400),
            ("model", 404),
            ("poison", 500),
            ("url", "line 7: url: Input should be '/v1/embeddings'"),
            ("good", "line 8: custom_id is that of line 1"),
            (None, "line 9: not valid JSON"),
            (None, "line 10: longer than 2000 bytes (max_body_bytes); split the request"),
        ]
        assert failed[0]["response"]["body"]["error"]["param"] == "inputs"
        assert [each.id for each in client.batches.list()] == [batch.id]
        assert {each.purpose for each in client.files.list()} == {"batch", "batch_output"}
        assert client.files.delete(batch.input_file_id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(batch.input_file_id)


def test_a_batch_survives_restarts_without_being_computed_twice(
    make_client, openai_of, location, monkeypatch
):
    """The first process ends in the middle of six lines, one a part; the second makes what is missing."""
    monkeypatch.setattr(batch_lines, "_PART_LINES", 1)
    first, second = FakeEngine(seconds_per_batch=0.05), FakeEngine()
    # 16 tokens asked at a time, about two lines
    settings = {"batches": location, "token_budget": 32}
    with make_client(engine=first, **settings) as endpoint:
        client = openai_of(endpoint)
        started = submit(client, jsonl(*(line(f"n{number}") for number in range(6))))
        while not (before := client.batches.retrieve(started.id).request_counts.completed):
            time.sleep(0.01)
    assert before < 6
    with make_client(engine=second, **settings) as endpoint:
        client = openai_of(endpoint)
        batch = ended(client, started)
        assert list(lines_of(client, batch.output_file_id)) == [f"n{number}" for number in range(6)]
    assert (batch.status, batch.request_counts.completed) == ("completed", 6)
    assert 0 < sum(map(len, second.batches[2:])) <= 6 - before  # behind the two passes of its start


@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_lines_behind_an_end_are_in_the_error_file(make_client, openai_of, tmp_path, monkeypatch, end):
    monkeypatch.setattr(batch_lines, "_PART_LINES", 3)
    engine = FakeEngine(seconds_per_batch=0.05)
    with make_client(engine=engine, batches=str(tmp_path), token_budget=32) as endpoint:
        client = openai_of(endpoint)
        started = submit(client, jsonl(*(line(f"n{number}") for number in range(30))))
        while not client.batches.retrieve(started.id).request_counts.completed:
            time.sleep(0.01)
        if end == "cancelled":
            assert client.batches.cancel(started.id).status == "cancelling"
        else:
            now = time.time()
            monkeypatch.setattr(batch_worker.time, "time", lambda: now + 25 * 3600)
        batch = ended(client, started)
        answered, left = (lines_of(client, name) for name in (batch.output_file_id, batch.error_file_id))
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(started.id)
    assert batch.status == end
    assert getattr(batch, f"{end}_at")
    assert batch.request_counts.total == len(answered) + len(left) == 30
    assert {each["error"]["code"] for each in left.values()} == {f"batch_{end}"}
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(answered), len(left))


def test_a_key_sees_its_own_files_and_batches(make_client, openai_of, tmp_path):
    keyring = Keyring([KeySettings(name=name, key=name * 8) for name in "ab"])
    with make_client(keyring=keyring, batches=str(tmp_path)) as endpoint:
        own, other = (openai_of(endpoint, key) for key in ("aaaaaaaa", "bbbbbbbb"))
        batch = ended(own, submit(own, jsonl(line("one"))))
        assert list(lines_of(own, batch.output_file_id)) == ["one"]
        assert not list(other.files.list()) + list(other.batches.list())
        for ask in (
            lambda: other.batches.retrieve(batch.id),
            lambda: other.batches.cancel(batch.id),
            lambda: other.files.content(batch.output_file_id),
            lambda: other.files.delete(batch.input_file_id),
            lambda: own.files.retrieve("../" + batch.input_file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        for client, file, error in (
            (other, batch.input_file_id, openai.NotFoundError),
            (own, batch.output_file_id, openai.BadRequestError),
        ):
            with pytest.raises(error):
                client.batches.create(input_file_id=file, endpoint="/v1/embeddings", completion_window="24h")


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"\n \n", "empty_file"), (jsonl(*"abc"), "too_many_requests"), (jsonl("a"), None)],
)
def test_a_file_that_is_no_batch(make_client, openai_of, tmp_path, monkeypatch, content, code):
    monkeypatch.setattr(batch_worker, "MOST_LINES", 2)
    with make_client(batches=str(tmp_path)) as endpoint:
        client = openai_of(endpoint)
        batch = ended(client, submit(client, content))
    assert batch.status == ("failed" if code else "completed")
    assert [error.code for error in batch.errors.data] == [code] if code else batch.request_counts.failed == 1


FORM = "--x\r\nContent-Disposition: form-data; name={}\r\n\r\n{}\r\n"
PURPOSE, FILE = FORM.format("purpose", "batch"), FORM.format('"file"; filename="a"', "{}")


@pytest.mark.parametrize(
    ("form", "status", "reason"),
    [
        (PURPOSE + FILE + "--x--", 200, ""),
        (FILE + PURPOSE + "--x--", 200, ""),
        (FILE + "--x--", 400, "purpose"),
        (FORM.format("purpose", "vision") + FILE + "--x--", 400, "purpose"),
        (PURPOSE + FORM.format("seconds", "60") + FILE + "--x--", 400, "does not know the field seconds"),
        (PURPOSE + FILE, 400, "cannot be read"),
        ("nothing", 400, "cannot be read"),
        (PURPOSE + FORM.format("file", "w" * 101) + "--x--", 413, "above 100 bytes"),
        (PURPOSE + FORM.format("file", "w" * 100_000) + "--x--", 413, "above 100 bytes"),
    ],
)
def test_uploads(make_client, tmp_path, form, status, reason):
    with make_client(batches=str(tmp_path), max_file_bytes=100) as endpoint:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = endpoint.post("/v1/files", content=form, headers=kind)
        assert answer.status_code == status
        assert reason in answer.text
        assert len(endpoint.get("/v1/files").json()["data"]) == (status == 200)
    assert not list(tmp_path.glob(".*"))


def test_a_large_file_is_refused_before_it_arrives(make_client, tmp_path):
    def unread():
        raise AssertionError("the body is not needed")
        yield b""

    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(10**9)}
    with make_client(batches=str(tmp_path)) as endpoint:
        assert endpoint.post("/v1/files", content=unread(), headers=headers).status_code == 413


def test_pages_of_a_list(make_client, openai_of, tmp_path):
    with make_client(batches=str(tmp_path)) as endpoint:
        client = openai_of(endpoint)
        names = [client.files.create(file=("a", b"x"), purpose="batch").id for _ in range(5)]
        page = client.files.list(limit=2)
        assert ([each.id for each in page.data], page.has_more) == (sorted(names)[:2:-1], True)
        assert [each.id for each in client.files.list(limit=2)] == sorted(names, reverse=True)


def test_an_online_request_waits_for_one_batch_at_most(make_client, openai_of, tmp_path):
    """Bulk passes of 8 tokens; one may run when the request comes."""
    engine = FakeEngine(seconds_per_batch=0.02)
    with make_client(engine=engine, batches=str(tmp_path), token_budget=8) as endpoint:
        client = openai_of(endpoint)
        started = submit(
            client,
            jsonl(*(line(f"n{number}", [f"{number} {word}" for word in "abcdefgh"]) for number in range(20))),
        )
        for _ in range(5):
            while client.batches.retrieve(started.id).status == "validating":
                time.sleep(0.01)
            passes = len(engine.batches)
            endpoint.post("/v1/embeddings", json={"input": "o n l i n e"}).raise_for_status()
            own = next(number for number, each in enumerate(engine.batches[passes:]) if 7 in each)
            assert own <= 2  # one ran, and one may have begun while the request was read
        client.batches.cancel(started.id)


def test_a_store_that_fails_is_told(make_client, tmp_path, monkeypatch):
    with make_client(batches=str(tmp_path)) as endpoint:

        def fail(*_):
            raise OSError("the bucket is gone")

        monkeypatch.setattr(StoredFolder, "get", fail)
        answer = endpoint.get("/v1/files/file-" + "0" * 32)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


def test_without_a_folder_the_setting_is_named(client):
    for answer in (client.post("/v1/files"), client.get("/v1/batches/batch_1"), client.get("/v1/files")):
        assert answer.status_code == 404
        assert "setting batches" in answer.json()["error"]["message"]
