"""The endpoint: embeddings through the interfaces of OpenAI, Cohere and text-embeddings-inference.

A request travels through five files:

1. `body.py` takes in the body within limits; `api/openai.py` (or another dialect) checks it and answers.
2. `router.py` finds the model behind the name and asks one of its replicas, again if that one dies.
3. `replica.py` admits the request, looks into the cache, and cuts the vectors.
4. `tokenizing.py` makes token ids under the checkpoint's contract.
5. `batching.py` forms batches from all waiting requests and gives each to the engine.

`local.py` runs all this on one machine, with `wire.py` between the processes, and `deploy.py` on Ray Serve.
"""
