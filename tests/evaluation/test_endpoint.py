import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from rayembed.common.embedding_client import vectors_of
from rayembed.common.endpoint_client import without_reasoning
from rayembed.common.errors import RequestError, ResourceError, UserError
from rayembed.evaluation.builtin_tasks import load_task
from rayembed.evaluation.encoder import EngineEncoder, evaluate_task
from rayembed.evaluation.endpoint import Endpoint, EndpointEngine
from tests.evaluation.conftest import WordEngine


class Service:
    """An OpenAI-compatible service over a word engine; `refusals` are its next answers.

    Habits that real services have: `most` texts a request, `refuses_empty` texts, `backwards` answers, no
    `usage`, and no list of models where `card` is None.
    """

    def __init__(self, card: dict | None):
        self.most, self.refuses_empty, self.backwards, self.usage = 1000, False, False, True
        self.engine = WordEngine("a" * 64)
        self.refusals: list[int] = []
        self.served = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_) -> None:
                pass

            def do_GET(self) -> None:
                if card is None:
                    self.answer(404, {"error": {"message": "no route"}})
                    return
                self.answer(200, {"object": "list", "data": [card]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if service.refusals:
                    status = service.refusals.pop(0)
                    if status == 0:  # dies midway: the connection closes without an answer
                        self.close_connection = True
                        return
                    self.answer(status, {"error": {"message": "busy", "type": "overloaded"}})
                    return
                if len(body["input"]) > service.most:
                    self.answer(422, {"error": {"message": "too many texts"}})
                    return
                if service.refuses_empty and not all(body["input"]):
                    self.answer(400, {"error": {"message": "an empty text"}})
                    return
                service.served += 1
                vectors = service.engine.encode(
                    body["input"], instruction=body.get("instruction") or None
                ).vectors
                data = [
                    {
                        "object": "embedding",
                        "index": n,
                        "embedding": base64.b64encode(vector.tobytes()).decode(),
                    }
                    for n, vector in enumerate(np.asarray(vectors, "<f4"))
                ]
                data = data[::-1] if service.backwards else data
                answer = {"object": "list", "data": data, "model": body["model"]}
                if service.usage:
                    answer["usage"] = {"prompt_tokens": len(data), "total_tokens": len(data)}
                self.answer(200, answer)

            def answer(self, status: int, content: dict) -> None:
                payload = json.dumps(content).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After-Ms", "1")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = Endpoint(f"http://127.0.0.1:{self.server.server_port}/v1", "words")
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


CARD = {"id": "words", "object": "model", "created": 0, "owned_by": "test"}
OWN_CARD = CARD | {"digest": "a" * 64, "dimensions": 32, "instructions": {"STS": "Compare"}}


@pytest.fixture
def service():
    started = Service(OWN_CARD)
    yield started
    started.server.shutdown()
    started.server.server_close()


def test_an_endpoint_scores_as_its_engine_does(service, data_dir):
    engine = EndpointEngine.connect(service.endpoint)
    assert (engine.digest, engine.dimensions) == ("a" * 64, 32)
    for name in ("DocstringRetrieval", "WordSim353"):
        over_http = evaluate_task(EngineEncoder(engine, "words"), load_task(name, data_dir))
        in_process = evaluate_task(EngineEncoder(service.engine, "words"), load_task(name, data_dir))
        assert over_http.get_score() == pytest.approx(in_process.get_score(), abs=1e-6)
    instruction = load_task("WordSim353", data_dir).metadata.prompt
    assert (instruction, ["cat"]) in [(given, texts[:1]) for given, texts in service.engine.calls]


def test_a_busy_or_restarting_endpoint_is_waited_for(service):
    engine = EndpointEngine.connect(service.endpoint, patience=4)
    service.refusals = [429, 429, 0]
    assert engine.encode(["a b"]).vectors.shape == (1, 32)
    assert service.refusals == []
    assert service.served == 1


def test_an_endpoint_that_stays_away_ends_the_run_and_says_how_to_go_on(service):
    engine = EndpointEngine.connect(service.endpoint, patience=1)
    service.refusals = [429] * 9
    with pytest.raises(
        ResourceError, match=r"stayed away for 1 rep.*RateLimitError.*run the same command again"
    ):
        engine.encode(["a b"])
    service.refusals = [400]
    with pytest.raises(RequestError, match="busy"):
        engine.encode(["a b"])
    with pytest.raises(RequestError, match="does not serve 'other'; it serves words"):
        EndpointEngine.connect(Endpoint(service.endpoint.url, "other"))


def test_a_foreign_service_gets_the_instruction_in_front_of_the_text():
    foreign = Service(CARD)
    engine = EndpointEngine.connect(foreign.endpoint)
    engine.encode(["cat"], instruction="Find the animal")
    assert foreign.engine.calls[-1] == (None, ["Instruct: Find the animal\nQuery: cat"])
    assert engine.dimensions == 32
    foreign.server.shutdown()
    foreign.server.server_close()


@pytest.fixture
def odd():
    """A service that tells nothing of itself and has every habit."""
    started = Service(None)
    started.most, started.refuses_empty, started.backwards, started.usage = 10, True, True, False
    yield started
    started.server.shutdown()
    started.server.server_close()


def test_a_service_with_limits_and_habits_is_scored_as_it_is(odd):
    engine = EndpointEngine.connect(odd.endpoint)
    assert engine.dimensions == 32
    texts = [f"text {number}" for number in range(150)]
    assert engine.encode(texts).vectors == pytest.approx(odd.engine.encode(texts).vectors, abs=1e-6)
    served = odd.served
    engine.encode(texts[:5])
    assert odd.served == served + 1  # the limit is known now
    with_gap = engine.encode(["a cat", "", "a dog"]).vectors
    assert not with_gap[1].any()
    assert with_gap[[0, 2]] == pytest.approx(odd.engine.encode(["a cat", "a dog"]).vectors, abs=1e-6)


def test_a_refused_text_is_named(service):
    engine = EndpointEngine.connect(service.endpoint)
    service.refusals = [400] * 3
    with pytest.raises(RequestError, match="busy; the text begins with 'one'"):
        engine.encode(["one", "two", "three"])


def test_the_whole_contract_of_an_own_endpoint_is_read():
    own = Service(
        OWN_CARD | {"symmetric": ["STS"], "max_length": 64, "instruction_template": "{instruction}: "}
    )
    contract = EndpointEngine.connect(own.endpoint).contract
    assert contract.instruction_for("STS", "document") == "Compare"
    assert (contract.max_length, contract.prefix("Find")) == (64, "Find: ")
    own.server.shutdown()
    own.server.server_close()


def _answer(*items, **more):
    return SimpleNamespace(data=[SimpleNamespace(**item) for item in items], **more)


def test_vectors_follow_their_texts_and_are_whole():
    one, two = [1.0, 0.0], base64.b64encode(np.float32([0, 2]).tobytes()).decode()
    without_index = _answer({"embedding": one}, {"embedding": two})
    assert np.array_equal(vectors_of(without_index, 2, "url"), [[1, 0], [0, 2]])
    turned = _answer({"index": 1, "embedding": one}, {"index": 0, "embedding": two})
    assert np.array_equal(vectors_of(turned, 2, "url"), [[0, 2], [1, 0]])
    for answer, message in (
        (_answer({"index": 0, "embedding": one}, {"index": 0, "embedding": two}), r"the indices \[0, 0\]"),
        (_answer({"index": 0, "embedding": one}, {"embedding": two}), r"the indices \[0, None\]"),
        (_answer({"embedding": one}), r"answers 2 texts with the indices \[None\]"),
        (SimpleNamespace(data=None), "answers 2 texts with the indices"),
        (_answer({"embedding": one}, {"embedding": [1.0]}), "different widths"),
        (_answer({"embedding": one}, {"embedding": [1.0, float("nan")]}), "text 2 of 2 with NaN"),
        (_answer({"embedding": one}, {"embedding": "abc"}), "something that is no vector"),
        (_answer({"embedding": one}, {"vector": one}), "something that is no vector"),
    ):
        with pytest.raises(UserError, match=message):
            vectors_of(answer, 2, "url")


@pytest.mark.parametrize(
    "text",
    [
        "yes", "<think>no</think>yes", "no</think>\n yes", "<Thinking>no</Thinking> yes",
        "[THINK]no[/THINK]yes", "<think>a</think> b <think>no</think>yes",
    ],
)  # fmt: skip
def test_thoughts_are_no_part_of_an_answer(text):
    assert without_reasoning(text).endswith("yes")
    assert "no" not in without_reasoning(text)
    assert without_reasoning("<thinking>no, it is") == ""
