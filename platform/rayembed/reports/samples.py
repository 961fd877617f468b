"""What the report shows of a model itself: test embeddings by label and sample searches."""

from collections import Counter
from pathlib import Path

import numpy as np

from rayembed.engine.engine import Engine
from rayembed.evaluation.builtin_tasks import load_task
from rayembed.evaluation.encoder import EngineEncoder
from rayembed.reports.html import EmbeddingMap, Hit, Search


def embedding_map(
    untrained: Engine, trained: Engine, data_dir: Path, *, labels: int = 8, texts: int = 480
) -> EmbeddingMap:
    """Embed WordNet glosses of the test split with both models.

    Args:
        untrained: model before training.
        trained: model after training.
        data_dir: folder of the built sources.
        labels: how many of the most frequent lexicographer files to show.
        texts: most glosses to embed.
    """
    task = load_task("WordNetLexnameClustering", data_dir)
    rows = list(zip(task.dataset["test"]["sentences"], task.dataset["test"]["labels"], strict=True))
    shown = {label for label, _ in Counter(label for _, label in rows).most_common(labels)}
    chosen = [(text, label) for text, label in rows if label in shown][:texts]
    vectors = [
        engine.encode(
            [text for text, _ in chosen],
            instruction=EngineEncoder(engine, "map").instructions(task.metadata).query,
        ).vectors
        for engine in (untrained, trained)
    ]
    return EmbeddingMap("WordNet definitions by lexicographer file", [label for _, label in chosen], *vectors)


def sample_searches(engine: Engine, data_dir: Path, *, queries: int = 6, hits: int = 3) -> list[Search]:
    """Search the functions of the test split with docstrings of it.

    The queries are those with the smallest hash, good and bad alike.

    Args:
        engine: model to search with.
        data_dir: folder of the built sources.
        queries: number of searches.
        hits: number of documents kept of each.
    """
    task = load_task("DocstringRetrieval", data_dir)
    split = task.dataset["default"]["test"]
    sides = EngineEncoder(engine, "search").instructions(task.metadata)
    asked = split["queries"].select(range(min(queries, len(split["queries"]))))
    query_vectors = engine.encode(list(asked["text"]), instruction=sides.query).vectors
    texts = list(split["corpus"]["text"])
    similarity = query_vectors @ engine.encode(texts, instruction=sides.document).vectors.T
    best = np.argsort(-similarity, axis=1, kind="stable")[:, :hits]
    identifiers = list(split["corpus"]["id"])
    return [
        Search(
            query["text"],
            [
                Hit(
                    texts[found],
                    float(scores[found]),
                    identifiers[found] in split["relevant_docs"][query["id"]],
                )
                for found in ranked.tolist()
            ],
        )
        for query, ranked, scores in zip(asked, best, similarity, strict=True)
    ]
