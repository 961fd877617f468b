"""Published scores of other models, by benchmark with its version, to compare yours with.

Sources: arXiv 2405.17428 (table of MTEB averages), the cards of NV-Embed-v1 and v2 (retrieval tasks), and the
repository of Qwen3-Embedding (MTEB(eng, v2) and multilingual). Scores in percent, averages over tasks.
"""

_CATEGORIES = (
    "Retrieval",
    "Reranking",
    "Clustering",
    "PairClassification",
    "Classification",
    "STS",
    "Summarization",
    "mean",
)


def _row(*scores: float) -> dict[str, float]:
    return dict(zip(_CATEGORIES, scores, strict=True))


# benchmark -> model -> category, or "mean" over all tasks -> score
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "MTEB(eng, v1)": {
        "NV-Embed-v2": _row(62.65, 60.65, 58.46, 88.67, 90.37, 84.31, 30.70, 72.31),
        "NV-Embed-v1": _row(59.36, 60.54, 52.80, 86.91, 87.35, 82.84, 31.20, 69.32),
        "bge-en-icl (zero-shot)": _row(61.67, 59.66, 57.51, 86.93, 88.62, 83.74, 30.75, 71.24),
        "Stella-1.5B-v5": _row(61.01, 61.21, 57.69, 88.07, 87.63, 84.51, 31.49, 71.19),
        "SFR-Embedding-2R": _row(60.18, 60.14, 56.17, 88.07, 89.05, 81.26, 30.71, 70.31),
        "gte-Qwen2-7B-instruct": _row(60.25, 61.42, 56.92, 85.79, 86.58, 83.04, 31.35, 70.24),
        "bge-multilingual-gemma2": _row(59.24, 59.72, 54.65, 85.84, 88.08, 83.88, 31.2, 69.88),
        "voyage-large-2-instruct": _row(58.28, 60.09, 53.35, 89.24, 81.49, 84.58, 30.84, 68.28),
        "SFR-Embedding-Mistral": _row(59.00, 60.64, 51.67, 88.54, 78.33, 85.05, 31.16, 67.56),
        "GritLM-7B": _row(57.41, 60.49, 50.61, 87.16, 79.46, 83.35, 30.37, 66.76),
        "E5-mistral-7b-instruct": _row(56.9, 60.21, 50.26, 88.34, 78.47, 84.66, 31.4, 66.63),
        "OpenAI text-embedding-3-large": _row(55.44, 59.16, 49.01, 85.72, 75.45, 81.73, 29.92, 64.59),
    },
    "BEIR": {
        "NV-Embed-v2": {"Retrieval": 62.65, "mean": 62.65},
        "NV-Embed-v1": {"Retrieval": 59.36, "mean": 59.36},
    },
    "MTEB(eng, v2)": {
        "NV-Embed-v2": {"Retrieval": 62.84, "Classification": 87.19, "Clustering": 47.66, "mean": 69.81},
        "gte-Qwen2-7B-instruct": {"mean": 70.72},
        "Qwen3-Embedding-8B": {"mean": 75.22},
    },
    "MTEB(Multilingual, v2)": {
        "NV-Embed-v2": {"mean": 56.29},
        "GritLM-7B": {"mean": 60.92},
        "gte-Qwen2-7B-instruct": {"mean": 62.51},
        "Qwen3-Embedding-8B": {"mean": 70.58},
    },
}

_RETRIEVAL_TASKS = (
    "ArguAna",
    "ClimateFEVER",
    "CQADupstackRetrieval",
    "DBPedia",
    "FEVER",
    "FiQA2018",
    "HotpotQA",
    "MSMARCO",
    "NFCorpus",
    "NQ",
    "QuoraRetrieval",
    "SCIDOCS",
    "SciFact",
    "TRECCOVID",
    "Touche2020",
)
_V1 = (
    68.20,
    34.72,
    50.51,
    48.29,
    87.77,
    63.10,
    79.92,
    46.49,
    38.04,
    71.22,
    89.21,
    20.19,
    78.43,
    85.88,
    28.38,
)
_V2 = (
    70.07,
    45.39,
    50.24,
    53.50,
    93.75,
    65.73,
    85.48,
    45.63,
    45.17,
    73.57,
    89.03,
    21.90,
    80.13,
    88.44,
    31.78,
)

# model -> task -> nDCG@10
PUBLISHED_TASKS: dict[str, dict[str, float]] = {
    "NV-Embed-v2": dict(zip(_RETRIEVAL_TASKS, _V2, strict=True)),
    "NV-Embed-v1": dict(zip(_RETRIEVAL_TASKS, _V1, strict=True)),
}
# Benchmarks whose tasks the card's scores belong to; later versions use other corpora.
TASKS_PUBLISHED_ON = ("MTEB(eng, v1)", "BEIR")
