"""Which replica of a model gets a call: the one with the fewest tokens of this front end's unanswered calls.

One that has refused the call or failed on it comes last.

Requests differ in tokens a thousandfold, so a replica with one long request may be busier than one with ten
short ones. `local.ReplicaPool` counts by itself; Ray Serve asks the class below.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from rayembed.serving.messages import ReplicaRequest

_ACCEPTED_WITHIN_S = 10


def tokens_of(arguments: Sequence[Any]) -> int:
    """Tokens that a call of a replica brings, about; a call without inputs counts as one."""
    return 1 + sum(each.estimated_tokens for each in arguments if isinstance(each, ReplicaRequest))


def avoided_by(arguments: Sequence[Any]) -> frozenset[str]:
    """Names of the replicas that a call should not go to."""
    return frozenset().union(*(each.avoid for each in arguments if isinstance(each, ReplicaRequest)))


def replica_name(replica: ReplicaID) -> str:
    """What a replica of Ray Serve calls itself in answers."""
    return f"{replica.deployment_id.name}#{replica.unique_id}"


class FewestTokensRouter(RequestRouter):
    """Ray Serve's hook for the choice of a replica; one object for each handle.

    A call counts from the choice of its replica, so that many at once do not all go to the same one. Serve
    tells when a replica has accepted a call and when that has ended, but not of one whose caller left in
    between: that counts for some seconds.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Ray Serve once."""
        self._chosen: dict[str, tuple[ReplicaID, int, float]] = {}  # the time is that of the choice
        self._accepted: dict[str, tuple[ReplicaID, int]] = {}
        self._queued: Counter[ReplicaID] = Counter()
        self._lock = threading.Lock()  # calls end in other threads

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in the order in which they are to be tried."""
        with self._lock:
            shuffled = random.sample(candidate_replicas, len(candidate_replicas))
            avoided = avoided_by(pending_request.args) if pending_request else frozenset()
            ranked = sorted(
                shuffled,
                key=lambda each: (replica_name(each.replica_id) in avoided, self._queued[each.replica_id]),
            )
            if pending_request is not None and ranked:
                pending_request.routing_context.should_backoff = True  # Serve pauses before it asks again
                self._choose(pending_request, ranked[0].replica_id)
        return [[each] for each in ranked]

    def _choose(self, request: PendingRequest, replica: ReplicaID) -> None:
        number, now = request.metadata.internal_request_id, time.monotonic()
        for each in (number, next(iter(self._chosen), "")):  # asked again, and the oldest
            if each in self._chosen and (each == number or now - self._chosen[each][2] > _ACCEPTED_WITHIN_S):
                self._end(self._chosen.pop(each))
        self._chosen[number] = replica, tokens_of(request.args), now
        self._queued[replica] += self._chosen[number][1]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Count a call for the replica that has accepted it; a short one may have ended before."""
        number = pending_request.metadata.internal_request_id
        with self._lock:
            if number in self._chosen:
                call = self._chosen.pop(number)
                self._end(call)
                self._accepted[number] = replica_id, call[1]
                self._queued[replica_id] += call[1]

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count a call no more."""
        with self._lock:
            call = self._accepted.pop(internal_request_id, None) or self._chosen.pop(
                internal_request_id, None
            )
            if call:
                self._end(call)

    def _end(self, call: tuple) -> None:
        replica, tokens = call[:2]
        self._queued[replica] -= tokens
        if not self._queued[replica]:
            del self._queued[replica]
