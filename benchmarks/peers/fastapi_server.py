"""A model behind FastAPI: fastapi_server.py FOLDER PORT THREADS PASSES_AT_ONCE DTYPE torch|openvino.

torch runs sentence-transformers itself; openvino compiles the same model and feeds it as that library would.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import uvicorn
from bidirectional import attend_in_both_directions
from fastapi import FastAPI
from pydantic import BaseModel
from runtimes import load_runtime
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer


def load_encode(folder: Path, dtype: str, backend: str) -> Callable[[list[str]], np.ndarray]:
    """The function from texts to vectors."""
    if backend == "openvino":
        precision = "bf16" if dtype == "bfloat16" else "fp32"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return load_runtime("openvino", folder, tokenizer, precision, folder).encode
    attend_in_both_directions()
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    return lambda texts: model.encode(texts, show_progress_bar=False)


torch.set_num_threads(int(sys.argv[3]))
encode = load_encode(Path(sys.argv[1]), sys.argv[5], sys.argv[6])
passes = threading.Semaphore(int(sys.argv[4]))
app = FastAPI()


class EmbeddingRequest(BaseModel):
    """The part of OpenAI's body that the benchmark sends."""

    model: str
    input: list[str]


@app.post("/embeddings")
def embeddings(request: EmbeddingRequest) -> dict:
    """Vectors of one request; FastAPI runs this in a thread."""
    with passes:
        vectors = encode(request.input)
    return {"data": [{"index": index, "embedding": vector.tolist()} for index, vector in enumerate(vectors)]}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
