"""Clients in a closed loop, and the replicas behind them."""

import re
import threading
import time
from collections import Counter
from contextlib import contextmanager

import requests

from rayembed.serving.api.dialect import MODEL_DIGEST_HEADER

CLIENTS = 6


class Load:
    """Requests in a closed loop from several clients."""

    def __init__(self, url):
        self._url = url
        self._stopping = threading.Event()
        self.outcomes = Counter()
        self.digests = []

    def _client(self):
        session = requests.Session()
        while not self._stopping.is_set():
            body = {"model": "fake", "input": ["one", "two words"]}
            try:
                response = session.post(f"{self._url}/v1/embeddings", json=body, timeout=300)
            except requests.RequestException as error:
                self.outcomes[type(error).__name__] += 1
                continue
            self.outcomes[response.status_code] += 1
            self.digests.append(response.headers.get(MODEL_DIGEST_HEADER))

    def wait_for(self, answers):
        """Until so many more requests were answered."""
        target = self.outcomes.total() + answers
        deadline = time.monotonic() + 300
        while self.outcomes.total() < target:
            assert time.monotonic() < deadline, self.outcomes
            time.sleep(0.02)

    @contextmanager
    def running(self):
        threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()


def replica_pids(url):
    page = requests.get(f"{url}/debug", timeout=60).text
    rows = re.findall(r"EmbeddingReplica#\w+</code></td><td>(\d+)</td>", page)
    return [int(pid) for pid in rows]


def wait_for_replicas(url, count):
    """Processes of the model replicas, once there are so many."""
    deadline = time.monotonic() + 300
    while len(pids := replica_pids(url)) != count:
        assert time.monotonic() < deadline, pids
        time.sleep(0.2)
    return pids
