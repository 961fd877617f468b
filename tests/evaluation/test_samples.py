import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from rayembed.evaluation.builtin_tasks import load_task
from rayembed.evaluation.comparison import interval
from rayembed.evaluation.encoder import EngineEncoder, evaluate_task
from rayembed.evaluation.local_tasks import TaskDescription, local_task
from rayembed.evaluation.samples import influences
from tests.evaluation.conftest import WordEngine


def pearson(said, right):
    return np.corrcoef(said, right)[0, 1]


def precision(said, right):
    return average_precision_score(right, said)


@pytest.mark.parametrize("rows", [300, 2500])
@pytest.mark.parametrize("statistic", [pearson, precision])
def test_intervals_over_influences_are_those_of_a_bootstrap_over_rows(rows, statistic):
    generator = np.random.default_rng(0)
    right = generator.standard_normal(rows)
    said = right + generator.standard_normal(rows)
    if statistic is precision:
        right = (right > 0.5).astype(int)
    values = influences(statistic, said, right)
    assert len(values) == min(rows, 1000)
    assert np.mean(values) == pytest.approx(statistic(said, right))
    expected = stats.bootstrap(
        (said, right), statistic, paired=True, vectorized=False, n_resamples=500, method="percentile", rng=1
    ).confidence_interval
    width = expected.high - expected.low
    assert interval(values) == pytest.approx((expected.low, expected.high), abs=0.2 * width)


def test_a_score_that_needs_every_row_has_no_influences():
    assert influences(pearson, np.array([1.0, 2, 2]), np.array([3.0, 1, 1])) == []
    assert influences(pearson, np.ones(1), np.ones(1)) == []


def task(kind, name, rows):
    return local_task(TaskDescription(name, kind, "here", "Compare", "", ("eng-Latn",)), {"test": rows})


def samples(of):
    result = evaluate_task(EngineEncoder(WordEngine(), "words"), of)
    [entry] = result.scores["test"]
    return result.get_score(), list(entry["rayembed"]["samples"].values())


def test_the_samples_of_every_task_have_the_score_as_their_mean(data_dir):
    words = ["cat", "dog", "cat dog", "car", "cat car", "dog car house", "car cat dog"]
    pairs = [
        (one, other, int(set(one.split()) & set(other.split()) != set())) for one in words for other in words
    ]
    columns = dict(
        zip(("sentence1", "sentence2", "labels"), map(list, zip(*pairs, strict=True)), strict=True)
    )
    sets = [["cat a", "cat b", "dog a", "dog b"], ["cat", "cat c"], ["car a", "car b", "dog", "dog c"]]
    labels = [["x", "x", "y", "y"], ["x", "x"], ["x", "y", "x", "y"]]
    tasks = {
        7 * 7: task("PairClassification", "Pairs", columns),
        3: task("ClusteringLegacy", "Sets", {"sentences": sets, "labels": labels}),
        6: load_task("WordSim353", data_dir),
        20: load_task("DocstringRetrieval", data_dir),
        40: load_task("VaderTweets", data_dir),
    }
    for count, one in tasks.items():
        score, values = samples(one)
        assert len(values) == count
        assert np.mean(values) == pytest.approx(score, abs=1e-4)
    draws = {"sentences": [text for one in sets for text in one], "labels": list("xxyyxxzxzx")}
    assert samples(task("Clustering", "Draws", draws))[1] == []
