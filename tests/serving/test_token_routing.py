"""A call goes to the replica with the fewest unanswered tokens, however many requests those are."""

import asyncio
import itertools
from dataclasses import replace
from types import SimpleNamespace

from ray.serve._private.common import DeploymentID, ReplicaID

from rayembed.serving import token_routing
from rayembed.serving.messages import EncodeRequest, Inputs
from rayembed.serving.token_routing import FewestTokensRouter, replica_name

# Words of a long request and of five short ones, and the replicas that get them.
WORDS = [2000, 8, 8, 8, 8, 8]
PLACES = ["a", "b", "b", "b", "b", "b"]


def request(words):
    return EncodeRequest([Inputs(["word " * words])])


def pending(number, words):
    return SimpleNamespace(
        args=(request(words),),
        metadata=SimpleNamespace(internal_request_id=number),
        routing_context=SimpleNamespace(should_backoff=False),
    )


def test_on_ray_serve(monkeypatch):
    router = object.__new__(FewestTokensRouter)  # without Serve's own queues, which need its actors
    router.initialize_state()
    a, b = (ReplicaID(each, DeploymentID("fake")) for each in ("a", "b"))
    replicas = [SimpleNamespace(replica_id=each) for each in (a, b)]
    places = [{"a": a, "b": b}[each] for each in PLACES]
    numbers = itertools.count()

    def choose(words, accepts=None):
        """A call of so many words, which the replica accepts that Serve would try first, or another."""
        call = pending(str(next(numbers)), words)
        [[first], [second]] = asyncio.run(router.choose_replicas(replicas, call))
        assert {first.replica_id, second.replica_id} == {a, b}
        router.on_request_routed(call, accepts or first.replica_id, None)
        return call.metadata.internal_request_id, accepts or first.replica_id

    calls = [choose(WORDS[0], accepts=a), *map(choose, WORDS[1:])]
    assert [place for _, place in calls] == places
    router.on_request_completed(a, calls[0][0])
    assert choose(1)[1] == a

    together = [pending(f"together {number}", 8) for number in range(8)]
    firsts = [asyncio.run(router.choose_replicas(replicas, call))[0][0].replica_id for call in together]
    assert set(firsts[-2:]) == {a, b}, "many at once do not all go to one"
    for call in together[:7]:
        router.on_request_completed(a, call.metadata.internal_request_id)
    router.on_request_routed(together[0], a, None)  # ended before it counted as accepted
    monkeypatch.setattr(token_routing, "_ACCEPTED_WITHIN_S", 0)  # the last one's caller has left
    number, place = choose(1)
    for each, replica in (*calls, ("6", a), (number, place)):
        router.on_request_completed(replica, each)
    assert not router._queued, "nothing is left when all calls have ended"

    asked = replace(request(1), avoid=frozenset({replica_name(a)}))
    again = SimpleNamespace(**vars(pending("again", 1)) | {"args": (asked,)})
    order = [each.replica_id for [each] in asyncio.run(router.choose_replicas(replicas, again))]
    assert order == [b, a], "one that failed comes last"
