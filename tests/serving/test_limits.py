"""Which requests a replica takes, and what a refusal means for the requests right after it."""

import asyncio

import pytest

from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import ApiError, Problem, overloaded, unavailable
from rayembed.serving.limits import RecentRefusals, TokenLimit
from rayembed.serving.messages import DecodeRequest, Embeddings, EncodeRequest, Inputs, TokenizeRequest
from rayembed.serving.replica import EmbeddingReplica
from tests.serving.fakes import FakeEngine

FULL = overloaded(2)


def fits(limit, tokens, priority="online"):
    try:
        with limit.admit(tokens, priority, 0):
            return True
    except ApiError:
        return False


def test_limit_counts_and_releases_also_on_failure():
    limit = TokenLimit(10)

    def failing_request():
        with limit.admit(3, "online", 0) as hold:
            hold.change(6)
            assert fits(limit, 4)
            assert not fits(limit, 5)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing_request()
    assert limit.queued == 0


def test_an_oversized_request_needs_room_for_three_quarters_and_leaves_the_rest():
    limit = TokenLimit(100)
    with limit.admit(25, "online", 0):
        assert fits(limit, 90)
        assert fits(limit, 500), "steady work does not keep it out"
        with limit.admit(1, "online", 0):
            assert not fits(limit, 500)
    with limit.admit(20, "online", 0) as hold:
        hold.change(500)  # its estimate was too low
        assert fits(limit, 25)
        assert not fits(limit, 26)
    assert limit.queued == 0


@pytest.mark.parametrize("most", [1, 2, 100])
@pytest.mark.parametrize("priority", ["online", "bulk"])
def test_an_oversized_request_is_taken_alone_whatever_the_limit(most, priority):
    limit = TokenLimit(most)
    with limit.admit(500, priority, 0):
        assert 0 < limit.queued <= most
        assert not fits(limit, 500, priority)


@pytest.mark.parametrize(("speed", "seconds"), [(0, 1), (1e6, 1), (10, 4), (0.1, 60)])
def test_retry_after_follows_the_measured_speed(speed, seconds):
    """40 queued tokens have to go before 40 more fit: 100 of 100 are taken."""
    limit = TokenLimit(100)
    with limit.admit(50, "online", 0), limit.admit(50, "online", 0):
        assert limit.retry_after_s(40, speed) == seconds


def test_bulk_work_leaves_room_for_online_work():
    limit = TokenLimit(100)
    with limit.admit(70, "online", 0):
        assert not fits(limit, 10, "bulk")
        assert fits(limit, 10, "online")


@pytest.mark.parametrize("texts_per_request", [1, 4])
def test_overload_is_refused_by_tokens_whatever_the_request_size(texts_per_request):
    """Each text has 4 tokens; 16 texts are sent at once and 8 fit, in single as in batch requests."""

    async def scenario():
        config = ServeConfig(checkpoint="unused", model_name="fake", max_queued_tokens=32)
        replica = EmbeddingReplica(config, lambda _: FakeEngine(seconds_per_batch=0.05))
        request = EncodeRequest([Inputs([f"one two {number}" for number in range(texts_per_request)])])
        return await asyncio.gather(*(replica.encode(request) for _ in range(16 // texts_per_request)))

    answers = asyncio.run(scenario())
    served = [answer for answer in answers if isinstance(answer, Embeddings)]
    refused = [answer for answer in answers if isinstance(answer, Problem)]
    assert sum(len(answer.vectors) for answer in served) == 8
    assert {problem.status for problem in refused} == {429}
    assert all(problem.retry_after_s >= 1 for problem in refused)


@pytest.mark.parametrize(
    ("method", "asked"),
    [("tokenize", TokenizeRequest(["one two"])), ("decode", DecodeRequest([[5, 6]]))],
)
def test_what_takes_the_tokenizer_is_admitted_too(method, asked):
    async def scenario():
        config = ServeConfig(checkpoint="unused", model_name="fake", max_queued_tokens=4)
        replica = EmbeddingReplica(config, lambda _: FakeEngine())
        ask = getattr(replica, method)
        with replica._limit.admit(3, "online", 0):
            refused = await ask(asked)
        return refused, await ask(asked), (await replica.status()).queued_tokens

    refused, answer, queued = asyncio.run(scenario())
    assert refused.status == 429
    assert not isinstance(answer, Problem)
    assert queued == 0


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def refusals_of(clock, **settings):
    return RecentRefusals(ServeConfig(checkpoint="unused", model_name="fake", **settings), clock)


def request(text, priority="online"):
    return EncodeRequest([Inputs([text])], priority=priority)


def test_a_refusal_holds_for_requests_as_long_and_for_a_moment():
    clock = Clock()
    refusals = refusals_of(clock)
    assert refusals.find(request("four")) is None
    refusals.note(request("four"), FULL)
    assert refusals.find(request("four")) == FULL
    assert refusals.find(request("longer")) == FULL
    assert refusals.find(EncodeRequest([Inputs(token_ids=[[1, 2], [3, 4]])])) == FULL
    assert refusals.find(request("two")) is None, "a shorter one may still fit"
    assert refusals.find(request("four", "bulk")) is None, "each priority has a limit of its own"
    clock.now += 0.06
    assert refusals.find(request("four")) is None


@pytest.mark.parametrize("answer", [unavailable("no replica"), object()])
def test_only_a_full_queue_is_remembered(answer):
    refusals = refusals_of(Clock())
    refusals.note(request("four"), answer)
    assert refusals.find(request("four")) is None


@pytest.mark.parametrize("settings", [{"max_replicas": 2}, {"cache": "memory"}])
def test_where_another_answer_is_possible_the_replica_is_asked(settings):
    refusals = refusals_of(Clock(), **settings)
    refusals.note(request("four"), FULL)
    assert refusals.find(request("four")) is None


def test_the_tokens_of_a_request_are_estimated_once():
    looked = []

    class Texts(tuple):
        def __iter__(self):
            looked.append(1)
            return super().__iter__()

    request = EncodeRequest([Inputs(Texts(["one", "two words"]))])
    assert [request.estimated_tokens, request.estimated_tokens, looked] == [4, 4, [1]]
