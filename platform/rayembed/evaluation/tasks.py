"""Table of the built-in tasks: what is asked of which built-in source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayembed.data.store import read_split
from rayembed.evaluation.derived import BUILDERS
from rayembed.evaluation.local_task import TaskDescription, local_task


@dataclass(frozen=True)
class TaskDefinition:
    """One row of the task table.

    Attributes:
        name: mteb task name.
        source: built-in source whose test split is evaluated.
        type: mteb task type, a key of `derived.BUILDERS`.
        instruction: prompt of the task; queries or all texts of a symmetric task get it.
        description: what is asked of the model.
        max_queries: most rows that are scored (queries, test texts); None takes all.
        max_documents: most documents in the corpus of a retrieval task; None takes all.
        languages: codes of the languages of the texts.
    """

    name: str
    source: str
    type: str
    instruction: str
    description: str
    max_queries: int | None = None
    max_documents: int | None = None
    languages: tuple[str, ...] = ("eng-Latn",)


_CODE = "Given a docstring, retrieve the Python function that it describes"
_GLOSS = "Given a word or a sentence that uses it, retrieve the definition of the word"
_SENTIMENT = "Classify the sentiment of the text as positive or negative"
_FIELD = "Identify the semantic field of the definition"
_PACKAGE = "Given the synopsis of a software package, retrieve its description"
_SECTION = "Identify the topic of the software package"
_TRANSLATION = "Retrieve the translation of the sentence"
_WORDS = "Retrieve words that have the same meaning as the given word"


def _bitext(name: str, code: str, language: str) -> TaskDefinition:
    return TaskDefinition(
        f"Debian{language}Bitext",
        f"debian-bitext-{name}",
        "BitextMining",
        _TRANSLATION,
        f"Synopses of Debian packages and their {language} translations.",
        max_queries=500,
        languages=("eng-Latn", code),
    )


def _sentiment(name: str, source: str, texts: str) -> TaskDefinition:
    return TaskDefinition(
        name, source, "Classification", _SENTIMENT, f"Sentiment of {texts}, rated by people.", max_queries=500
    )


TASKS: dict[str, TaskDefinition] = {
    definition.name: definition
    for definition in (
        TaskDefinition(
            "DocstringRetrieval",
            "python-docstrings",
            "Retrieval",
            _CODE,
            "Docstring of a standard library function to its source, in modules kept out of training.",
        ),
        TaskDefinition(
            "WordNetGlossRetrieval",
            "wordnet-glosses",
            "Retrieval",
            _GLOSS,
            "WordNet lemma or usage example to the gloss of its synset.",
            max_queries=500,
            max_documents=3000,
        ),
        _sentiment("VaderTweets", "vader-tweets", "tweets"),
        _sentiment("VaderAmazon", "vader-amazon", "sentences from product reviews"),
        _sentiment("VaderMovies", "vader-movies", "sentences from film reviews"),
        _sentiment("VaderNewYorkTimes", "vader-nytimes", "sentences from newspaper opinion pieces"),
        TaskDefinition(
            "WordNetLexnameClustering",
            "wordnet-lexnames",
            "Clustering",
            _FIELD,
            "WordNet glosses of nouns grouped by topic, such as noun.animal.",
            max_queries=1000,
        ),
        TaskDefinition(
            "WordSim353", "wordsim353", "STS", _WORDS, "Relatedness of two words, judged by people."
        ),
        TaskDefinition("SimLex999", "simlex999", "STS", _WORDS, "Similarity of two words, judged by people."),
        TaskDefinition(
            "WordNetLexnameClassification",
            "wordnet-lexnames",
            "Classification",
            _FIELD,
            "WordNet glosses of nouns sorted into 25 topics.",
            max_queries=500,
        ),
        TaskDefinition(
            "DocstringReranking",
            "python-docstrings",
            "Reranking",
            _CODE,
            "The function of a docstring among the twenty that BM25 finds most alike.",
            max_queries=200,
        ),
        TaskDefinition(
            "WordNetGlossReranking",
            "wordnet-glosses",
            "Reranking",
            _GLOSS,
            "The gloss of a word or a usage example among the twenty that BM25 finds most alike.",
            max_queries=200,
            max_documents=2000,
        ),
        TaskDefinition(
            "DocstringPairs",
            "python-docstrings",
            "PairClassification",
            _CODE,
            "Docstring and function: the right one or the one that BM25 finds most alike.",
            max_queries=200,
        ),
        TaskDefinition(
            "WordNetGlossPairs",
            "wordnet-glosses",
            "PairClassification",
            _GLOSS,
            "Word or usage example and gloss: the right one or the one that BM25 finds most alike.",
            max_queries=300,
            max_documents=2000,
        ),
        TaskDefinition(
            "DebianRetrieval",
            "debian-descriptions",
            "Retrieval",
            _PACKAGE,
            "Synopsis of a Debian package to its description.",
            max_queries=500,
            max_documents=3000,
        ),
        TaskDefinition(
            "DebianReranking",
            "debian-descriptions",
            "Reranking",
            _PACKAGE,
            "The description of a Debian package among the twenty that BM25 finds most alike.",
            max_queries=200,
            max_documents=2000,
        ),
        TaskDefinition(
            "DebianSectionClassification",
            "debian-sections",
            "Classification",
            _SECTION,
            "Descriptions of Debian packages sorted into 20 sections.",
            max_queries=500,
        ),
        TaskDefinition(
            "DebianSectionClustering",
            "debian-sections",
            "Clustering",
            _SECTION,
            "Descriptions of Debian packages grouped by section.",
            max_queries=1000,
        ),
        _bitext("de", "deu-Latn", "German"),
        _bitext("fr", "fra-Latn", "French"),
        TaskDefinition(
            "PerlQuestionRetrieval",
            "perlfaq",
            "Retrieval",
            "Given a question about Perl, retrieve the answer",
            "Frequently asked question about Perl to its answer.",
        ),
        TaskDefinition(
            "PerlMessageRetrieval",
            "perldiag",
            "Retrieval",
            "Given an error message of Perl, retrieve its explanation",
            "Message of the Perl interpreter to its explanation.",
        ),
    )
}


def load_task(name: str, data_dir: Path) -> Any:
    """Built-in task `name` with its rows, as an mteb task.

    Raises:
        DataError: its source has not been built in `data_dir` or has another form.
    """
    definition = TASKS[name]
    splits = ("train", "test") if definition.type == "Classification" else ("test",)
    tables = {split: read_split(data_dir, definition.source, split) for split in splits}
    content = BUILDERS[definition.type](tables, definition.max_queries, definition.max_documents)
    description = TaskDescription(
        definition.name,
        definition.type,
        definition.source,
        definition.instruction,
        definition.description,
        definition.languages,
    )
    return local_task(description, content)
