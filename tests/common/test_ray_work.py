"""Items of work, in this process and on actors that fail in every way."""

import os
import threading
from functools import partial

import pytest
import ray

from rayembed.common.errors import DataError
from rayembed.common.ray_cluster import connect
from rayembed.common.ray_work import ATTEMPTS, ItemsFailed, pool_resources, run_items


class Worker:
    """Does what an item says, and leaves a note of each attempt."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, item):
        attempts = len(list(self.folder.glob(f"{item}-*")))
        (self.folder / f"{item}-{attempts}").touch()
        kind, _, times = item.partition(" ")
        if attempts < int(times or 0):
            if kind == "dies":
                os._exit(1)
            raise OSError("the disk is on fire")
        if kind == "mistake":
            raise DataError("row 3 is bad")
        return item.upper()


def run(tmp_path, items, **options):
    return run_items(partial(Worker, tmp_path), items, title="work", **options)


def attempts(tmp_path, item):
    return len(list(tmp_path.glob(f"{item}-*")))


def test_no_items_make_no_worker(tmp_path):
    assert list(run_items(partial(Worker, None), [], title="work")) == []


def test_this_process_tries_again_and_names_what_fails(tmp_path):
    results = []
    with pytest.raises(ItemsFailed, match=r"work: 1 failed, all .* done: 1: OSError: the disk") as raised:
        results.extend(run(tmp_path, ["a", "fails 9", "fails 2", "b"], actors=0))
    assert results == ["A", "B", "FAILS 2"]
    assert list(raised.value.failures) == [1]
    assert attempts(tmp_path, "fails 9") == ATTEMPTS


def test_a_mistake_ends_the_work_in_this_process(tmp_path):
    with pytest.raises(DataError, match="row 3 is bad"):
        list(run(tmp_path, ["mistake", "a"], actors=0))
    assert not attempts(tmp_path, "a")


@pytest.fixture(scope="module")
def two_cpus():
    connect(num_cpus=2)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("two_cpus")
def test_actors_yield_in_order_although_one_dies(tmp_path):
    items = ["a", "dies 1", "b", "fails 1", "c"]
    assert list(run(tmp_path, items, actors=2, ordered=True)) == [item.upper() for item in items]
    assert attempts(tmp_path, "dies 1") == attempts(tmp_path, "fails 1") == 2


@pytest.mark.ray
@pytest.mark.usefixtures("two_cpus")
def test_what_kills_every_actor_is_given_up(tmp_path):
    results = []
    with pytest.raises(ItemsFailed, match=f"0: RuntimeError: its actor died {ATTEMPTS} times"):
        results.extend(run(tmp_path, ["dies 9", "a", "b"], actors=1))
    assert sorted(results) == ["A", "B"]


class Meeting(Worker):
    """Waits until some other item is at work on the same actor."""

    def __init__(self, folder):
        super().__init__(folder)
        self.barrier = threading.Barrier(2, timeout=20)

    def __call__(self, item):
        if item.startswith("meets"):
            self.barrier.wait()
        return super().__call__(item)


@pytest.mark.ray
@pytest.mark.usefixtures("two_cpus")
def test_an_actor_has_two_items_at_once_where_many_wait(tmp_path):
    items = ["meets-a", "meets-b", "c", "d"]
    done = run_items(partial(Meeting, tmp_path), items, title="work", actors=1, overlapping=True)
    assert sorted(done) == sorted(item.upper() for item in items)
    with pytest.raises(ItemsFailed, match="BrokenBarrierError"):
        list(run_items(partial(Meeting, tmp_path), ["meets-e"], title="work", actors=1, overlapping=True))


@pytest.mark.ray
@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("actors", [1, 2])
def test_of_two_items_the_one_that_kills_is_given_up_and_the_other_done(tmp_path, actors):
    results = []
    items = ["a", "dies 9", "b", "dies 1", "c", "fails 1", "d"]
    with pytest.raises(ItemsFailed, match=f"1: RuntimeError: its actor died {ATTEMPTS} times") as raised:
        results.extend(run(tmp_path, items, actors=actors, overlapping=True))
    assert list(raised.value.failures) == [1]
    assert sorted(results) == sorted(item.upper() for item in items if item != "dies 9")


@pytest.mark.ray
@pytest.mark.usefixtures("two_cpus")
def test_a_mistake_on_an_actor_is_raised_as_it_is(tmp_path):
    with pytest.raises(DataError, match=r"^row 3 is bad$"):
        list(run(tmp_path, ["mistake", "a"]))


@pytest.mark.ray
@pytest.mark.usefixtures("two_cpus")
def test_actors_have_their_share_of_the_processors():
    assert pool_resources(5) == (2, {"num_cpus": 1, "num_gpus": 0})
    assert pool_resources(1) == (1, {"num_cpus": 2, "num_gpus": 0})
    threads = run_items(lambda: lambda name: os.environ[name], ["OMP_NUM_THREADS"], title="threads")
    assert list(threads) == ["2"]
