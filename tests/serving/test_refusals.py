"""What a refusal means for the requests right after it."""

import pytest

from rayembed.serving.config import ServeConfig
from rayembed.serving.errors import overloaded, unavailable
from rayembed.serving.messages import EncodeRequest, Inputs
from rayembed.serving.refusals import RecentRefusals

FULL = overloaded(2)


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
