"""sentence-transformers behind FastAPI: fastapi_server.py FOLDER PORT THREADS PASSES_AT_ONCE DTYPE."""

import sys
import threading

import torch
import uvicorn
from bidirectional import attend_in_both_directions
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

attend_in_both_directions()
torch.set_num_threads(int(sys.argv[3]))
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"dtype": sys.argv[5]})
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
        vectors = model.encode(request.input, show_progress_bar=False)
    return {"data": [{"index": index, "embedding": vector.tolist()} for index, vector in enumerate(vectors)]}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
