import mteb
import pytest

from rayembed.common.errors import CheckpointError, ConfigError
from rayembed.contract import Contract
from rayembed.evaluation.instructions import InstructionPolicy
from rayembed.evaluation.results import overlap_note, trained_sources

UNTRAINED = Contract()


def sides(policy: str, task: str, contract: Contract = UNTRAINED) -> tuple[str | None, str | None]:
    found = InstructionPolicy.named(policy).instructions(mteb.get_task(task).metadata, contract)
    return found.query, found.document


def test_the_policies_differ_where_the_published_model_and_the_paper_do():
    prompt = "Retrieve duplicate questions from AskUbuntu forum"
    assert sides("mteb", "AskUbuntuDupQuestions") == (prompt, None)
    assert sides("paper", "AskUbuntuDupQuestions") == (prompt, None)
    assert sides("mteb-entry", "AskUbuntuDupQuestions") == (prompt, prompt)

    query, document = sides("mteb-entry", "CQADupstackTexRetrieval")
    assert query == document == "Retrieve text based on user query."
    query, document = sides("paper", "CQADupstackTexRetrieval")
    assert "duplicates" in query
    assert document is None

    assert sides("mteb-entry", "ArguAna")[1] is None
    query, document = sides("paper", "QuoraRetrieval")
    assert query == document
    assert sides("mteb", "QuoraRetrieval")[1] is None
    assert sides("paper", "STS12")[0] == "Retrieve semantically similar text."


def test_a_checkpoint_is_asked_as_it_was_trained():
    trained = Contract(instructions={"SciFact": "Find evidence"}, symmetric=("SciFact",))
    assert sides("auto", "SciFact", trained) == ("Find evidence", "Find evidence")
    assert sides("auto", "NFCorpus", trained)[0] == mteb.get_task("NFCorpus").metadata.prompt["query"]
    assert sides("contract", "SciFact", trained) == ("Find evidence", "Find evidence")
    with pytest.raises(CheckpointError, match="no instruction for NFCorpus; it has some for SciFact"):
        sides("contract", "NFCorpus", trained)
    prompted = Contract(
        instruction_template="{instruction}", instructions={"query": "query: ", "document": "passage: "}
    )
    assert sides("auto", "NFCorpus", prompted) == ("query: ", "passage: ")
    assert sides("auto", "NFCorpus", Contract(instructions={"query": ""})) == (None, None)


def test_a_users_file_decides_by_task_then_by_type(tmp_path):
    path = tmp_path / "instructions.yaml"
    path.write_text("SciFact: {query: Find it, document: Keep it}\nSTS: Compare\n")
    assert sides(str(path), "SciFact") == ("Find it", "Keep it")
    assert sides(str(path), "STS12") == ("Compare", None)
    with pytest.raises(ConfigError, match="no entry for NFCorpus or its type Retrieval"):
        sides(str(path), "NFCorpus")
    path.write_text("SciFact: {question: Find it}\n")
    with pytest.raises(ConfigError, match="not a table of instructions"):
        InstructionPolicy.named(str(path))
    with pytest.raises(ConfigError, match="'papers' is no instruction policy"):
        InstructionPolicy.named("papers")


def test_overlap_with_the_training_data_is_noted():
    sources = trained_sources({"provenance": {"sources": ["wordnet-glosses", "scifact"]}})
    task = mteb.get_task("SciFact").metadata
    assert overlap_note(task, sources) == "trained on a source named scifact"
    assert overlap_note(mteb.get_task("STS12").metadata, sources) is None
    assert overlap_note(task, trained_sources({"provenance": {}})) == "training data not recorded"
