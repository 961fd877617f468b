"""Clients in a closed loop, and the processes behind them."""

import contextlib
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager

import openai
import psutil
import requests

from rayembed.serving.api.dialect import MODEL_DIGEST_HEADER

CLIENTS = 6


class Load:
    """Requests in a closed loop from several threads with OpenAI's client, which tries again by itself."""

    def __init__(self, url, max_retries=openai.DEFAULT_MAX_RETRIES):
        self._client = openai.OpenAI(
            base_url=f"{url}/v1", api_key="unused", timeout=300, max_retries=max_retries
        )
        self._stopping = threading.Event()
        self.outcomes = Counter()
        self.digests = []

    def _ask(self):
        while not self._stopping.is_set():
            try:
                answer = self._client.embeddings.with_raw_response.create(
                    model="fake", input=["one", "two words"]
                )
            except openai.OpenAIError as error:
                self.outcomes[repr(error)] += 1
                continue
            assert len(answer.parse().data) == 2
            self.outcomes[answer.status_code] += 1
            self.digests.append(answer.headers.get(MODEL_DIGEST_HEADER))

    def wait_for(self, answers):
        """Until so many more requests were answered."""
        target = self.outcomes.total() + answers
        deadline = time.monotonic() + 300
        while self.outcomes.total() < target:
            assert time.monotonic() < deadline, self.outcomes
            time.sleep(0.02)

    @contextmanager
    def running(self):
        threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
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


def processes(title, count):
    """The processes of this module's Ray with a title, once there are so many."""
    deadline = time.monotonic() + 300
    while True:
        found = []
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                found += [child] if title in " ".join(child.cmdline()) else []
        if len(found) == count:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
