"""The six checks: each yields a row as soon as it is measured."""

import asyncio
import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from harness import Unwrapped
from workload import (
    GIBIBYTE,
    STAGE,
    Row,
    Workload,
    contrastive,
    counted_waits,
    difference,
    row,
    speed,
)

from rayembed.config.training import TrainingConfig
from rayembed.contract import Contract
from rayembed.contract.packing import PackedBatch, PackedLengths, split_packed
from rayembed.engine.engine import Engine
from rayembed.engine.quantization import quantize_weights
from rayembed.model.attention import _attend_grouped, _attend_varlen
from rayembed.model.checkpoint import LoadedModel
from rayembed.model.compilation import compile_token_wise_parts
from rayembed.model.configuration import LoraSettings, ModelConfig
from rayembed.model.mixed_precision import use_mixed_precision
from rayembed.model.pooling.blocks import CrossAttention
from rayembed.training.model import ModelSpec, prepare_for_stage
from rayembed.training.preflight import memory_of_worker
from rayembed.training.resources import StepTimer, Utilization
from rayembed.training.step import encode_and_backward

LORA = LoraSettings(dropout=0.1)


def attention(work: Workload) -> Iterator[Row]:
    """1. Variable-length against grouped attention: values and gradients against fp32, and time."""
    lengths = PackedLengths.of(sorted(work.lengths(work.sizes.row), reverse=True)).to(work.device)
    ways = {"grouped": _attend_grouped} | ({"varlen": _attend_varlen} if work.on_gpu else {})
    groups = work.sizes.backbone["num_key_value_heads"]
    heads = (work.sizes.backbone["num_attention_heads"], groups, groups)
    for width, causal in product(work.sizes.widths, (False, True)):
        torch.manual_seed(0)
        tensors = [torch.randn(count, work.sizes.row, width, device=work.device) for count in heads]
        settings = {"scaling": width**-0.5, "causal": causal, "dropout": 0.0}
        run = partial(_output_and_gradients, tensors=tensors, lengths=lengths, settings=settings)
        wanted = run(_attend_grouped, dtype=torch.float32)
        for name, attend in ways.items():
            measure = partial(_against, work, wanted, partial(run, attend, dtype=torch.bfloat16))
            yield row(f"{name}, width {width}, {'causal' if causal else 'bidirectional'}", measure)


def _output_and_gradients(
    attend: Callable,
    *,
    tensors: list[torch.Tensor],
    lengths: PackedLengths,
    settings: Any,
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    inputs = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    output = attend(*inputs, lengths, **settings)
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), inputs)]


def _against(work: Workload, wanted: list[torch.Tensor], run: Callable[[], list[torch.Tensor]]) -> Row:
    errors = [difference(mine, best) for mine, best in zip(run(), wanted, strict=True)]
    return {"errors": dict(zip(("output", "query", "key", "value"), errors, strict=True))} | work.timed(run)


def head(work: Workload) -> Iterator[Row]:
    """2. Attention of the latent head, plain and folded: gradients, time, memory, kernels."""
    hidden, settings = work.sizes.backbone["hidden_size"], work.sizes.pooling
    torch.manual_seed(0)
    with work.device:
        block = CrossAttention(hidden, settings.num_heads, settings.head_width or hidden).bfloat16()
        latents = torch.randn(1, settings.num_latents, hidden, dtype=torch.bfloat16)
        queries = torch.randn(1, work.sizes.row // 2, hidden, dtype=torch.bfloat16, requires_grad=True)
    ways = {
        "plain": lambda: block.attend_plainly(queries, latents),
        "folded": lambda: block.read(queries, block.fold(latents[0])),
    }
    gradients: dict[str, torch.Tensor] = {}
    for name, attend in ways.items():

        def both_ways(attend: Callable = attend) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(attend().float().square().sum(), (queries, *block.parameters()))

        def measure(name: str = name, both_ways: Callable = both_ways) -> Row:
            measured = work.timed(both_ways)
            gradients[name] = both_ways()[0]
            return measured | {"kernels": _kernels(both_ways, work.on_gpu)}

        yield row(name, measure)
    yield row("agreement", lambda: {"error": difference(gradients["folded"], gradients["plain"])})


def _kernels(run: Callable[[], Any], on_gpu: bool) -> list[str]:
    """The five operations that take longest."""
    with torch.profiler.profile() as profile:
        run()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: getattr(event, key), reverse=True)
    return [event.key[:120] for event in events[:5]]


def training(work: Workload) -> Iterator[Row]:
    """3. LoRA and head of the whole model: speed and memory by chunk, on paper too; then a step in chunks."""
    embedder = work.embedder(lora=LORA).train()
    optimizer = torch.optim.AdamW([p for p in embedder.parameters() if p.requires_grad], fused=True)
    utilization = Utilization(embedder, work.device)

    def step(batch: PackedBatch, tokens_per_chunk: int | None) -> None:
        encode_and_backward(Unwrapped(embedder), batch, contrastive, StepTimer(), tokens_per_chunk)
        optimizer.step()
        optimizer.zero_grad()

    rows: list[Row] = []
    for checkpointing in (False, True):
        settings = TrainingConfig(activation_checkpointing=checkpointing)
        prepare_for_stage(embedder, STAGE, settings)
        for tokens in work.sizes.chunks:

            def measure(tokens: int = tokens, settings: TrainingConfig = settings) -> Row:
                batch = work.batch(tokens)
                step(batch, None)
                held = work.held()
                measured = speed(tokens, work.timed(partial(step, batch, None)), "gpu_training_pass")
                measured |= {"utilization": utilization.of(batch, measured["seconds"])}
                kept = None if held is None else measured["peak_gib"] - held
                return measured | {"activations_gib": kept, "paper": _on_paper(work, settings, tokens)}

            rows.append(row(f"{tokens} tokens, checkpointing {checkpointing}", measure))
            rows[-1] |= {"tokens": tokens, "checkpointing": checkpointing}
            yield rows[-1]
    best = max((each for each in rows if "error" not in each), key=lambda each: each["tokens_per_second"])
    if not best["checkpointing"]:
        embedder.backbone.gradient_checkpointing_disable()
        embedder.checkpoints_pooling = False
    batch = work.batch(work.sizes.step)
    yield row(
        f"step of {work.sizes.step} tokens in chunks of {best['tokens']}",
        lambda: speed(
            work.sizes.step, work.timed(partial(step, batch, best["tokens"]), rounds=2), "gpu_training"
        ),
    )

    def waits() -> Row:
        one = work.batch(work.sizes.chunks[0])
        with counted_waits(work.device) as found:
            step(one, None)
        return {"host_waits": sorted(set(found))}

    yield row("places where a step makes the host wait", waits)


def _on_paper(work: Workload, settings: TrainingConfig, tokens: int) -> dict[str, float]:
    """GiB of each part of a worker's memory, from shapes alone."""
    with tempfile.TemporaryDirectory() as folder:
        work.config.save_pretrained(folder)
        spec = ModelSpec(folder, folder, None, ModelConfig(pooling=work.sizes.pooling), LORA, 0)
        memory = memory_of_worker(spec, settings, device=work.device.type, tokens=tokens)
    return {name: value / GIBIBYTE for name, value in vars(memory).items()}


def gradcache(work: Workload) -> Iterator[Row]:
    """4. A step in chunks with dropout has the gradient of one graph over the same chunks."""
    tokens = work.sizes.chunks[0]
    for name, settings in {
        "plain": TrainingConfig(),
        "checkpointing": TrainingConfig(activation_checkpointing=True),
        "compiled": TrainingConfig(compiled=True),
    }.items():
        if settings.compiled and not work.on_gpu:
            continue

        def measure(settings: TrainingConfig = settings) -> Row:
            small = work.sizes.small_layers
            embedder = work.embedder(dtype=torch.float32, lora=LORA, layers=small).train()
            prepare_for_stage(embedder, STAGE, settings)
            packed = work.batch(tokens)

            def gradients(run: Callable[[], Any]) -> list[torch.Tensor]:
                embedder.zero_grad()
                torch.manual_seed(1)
                run()
                return [p.grad.clone() for p in embedder.parameters() if p.grad is not None]

            def one_graph() -> None:
                vectors = [embedder(chunk) for chunk in split_packed(packed, tokens // 4)]
                contrastive(torch.cat(vectors)[packed.order_N]).loss.backward()

            def in_chunks() -> None:
                encode_and_backward(Unwrapped(embedder), packed, contrastive, StepTimer(), tokens // 4)

            wanted, found = gradients(one_graph), gradients(in_chunks)
            pairs = zip(found, wanted, strict=True)
            return {"largest_error": max(difference(mine, best) for mine, best in pairs)}

        yield row(name, measure)


def deepspeed(work: Workload) -> Iterator[Row]:
    """5. DeepSpeed on one rank: create, step, read and write state; then a step of the whole model."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": work.device.type}
    from rayembed.training import deepspeed as ours

    def start(zero_stage: int, layers: int | None) -> Any:
        embedder = work.embedder(lora=LORA, layers=layers).train()
        settings = TrainingConfig(zero_stage=zero_stage)
        wrapped = ours.wrap(embedder, STAGE, settings, rows_per_rank=8, dtype=torch.bfloat16)
        ours.set_learning_rate(wrapped, 1.0)
        return wrapped

    def step(wrapped: Any, batch: PackedBatch) -> float:
        encode_and_backward(wrapped, batch, contrastive, StepTimer())
        return float(ours.take_step(wrapped))

    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if work.on_gpu else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        batch = work.batch(work.sizes.chunks[0] // 2)

        def state_survives(stage: int) -> Row:
            wrapped = start(stage, work.sizes.small_layers)
            norms = [step(wrapped, batch) for _ in range(2)]
            weights, moments = ours.read_state(wrapped)
            again = start(stage, work.sizes.small_layers)
            ours.prime_optimizer(again, again(batch))
            ours.write_weights(again, weights)
            ours.write_moments(again, moments, 2)
            copies = ours.read_state(again)
            for kept, read in zip((weights, moments), copies, strict=True):
                assert kept.keys() == read.keys()
                assert all(torch.equal(value, read[name]) for name, value in kept.items()), "state was lost"
            return {"gradient_norms": norms, "tensors": len(weights)}

        for stage in (1, 2, 3):
            yield row(f"ZeRO {stage}", partial(state_survives, stage))

        def whole() -> Row:
            wrapped, tokens = start(1, None), work.sizes.chunks[0] // 2
            measured = speed(tokens, work.timed(lambda: step(wrapped, batch)))
            return measured | {"paper": _on_paper(work, TrainingConfig(), tokens)}

        yield row("whole model at ZeRO 1", whole)
        dist.destroy_process_group()


def engine(work: Workload) -> Iterator[Row]:
    """6. Inference: 16 bits against fp32, tokens a second, one text, a lack of memory, 8 bits."""
    embedder = work.embedder(dtype=torch.float32)
    budget = work.sizes.budgets[-1]
    model = LoadedModel(embedder, None, Contract(append_eos=False), "random")  # type: ignore[arg-type]
    ours = Engine(model, name="random", device=work.device, token_budget=budget)
    sample = work.texts(work.lengths(work.sizes.row // 4))
    wanted = torch.from_numpy(ours.encode_tokens(sample))
    use_mixed_precision(embedder)

    def cosines() -> Row:
        found = (torch.from_numpy(ours.encode_tokens(sample)) * wanted).sum(dim=1)
        return {"smallest_cosine": float(found.min()), "mean_cosine": float(found.mean())}

    def tokens_per_second(bar: str | None = None, longest: int | None = None) -> Row:
        [(_, batch), *_] = ours.packed_batches(work.texts(work.lengths(ours.token_budget, longest)))
        return speed(batch.num_tokens, work.timed(lambda: ours.forward(batch)), bar)

    yield row("bf16 against fp32", cosines)
    for ours.token_budget in work.sizes.budgets:
        yield row(f"bf16, passes of {ours.token_budget} tokens", partial(tokens_per_second, "gpu_inference"))
    yield row("bf16, texts of up to 32 tokens", partial(tokens_per_second, "gpu_short_texts", 32))
    one = work.texts([min(12, work.sizes.longest)])
    yield row("one text of 12 tokens", lambda: work.timed(lambda: ours.encode_tokens(one), rounds=20))

    def waits() -> Row:
        [(_, batch)] = ours.packed_batches(one)
        batch = batch.to(work.device)
        with torch.inference_mode(), counted_waits(work.device) as found:
            embedder(batch)
        return {"host_waits": sorted(set(found))}

    yield row("places where a pass makes the host wait", waits)
    if work.on_gpu:
        yield row("too little memory, then halves", lambda: _halves(work, ours, budget))
    plain = copy.deepcopy(embedder)
    for name, quantise in {
        "int8 weights": partial(quantize_weights, quantization="int8"),
        "fp8 weights": partial(quantize_weights, quantization="fp8"),
        "fp8": _use_fp8,
    }.items():

        def eight_bits(name: str = name, quantise: Callable = quantise) -> Row:
            ours._embedder = copy.deepcopy(plain)
            quantise(ours._embedder.backbone)
            accuracy = cosines()
            if work.on_gpu:
                compile_token_wise_parts(ours._embedder.backbone)
            return accuracy | tokens_per_second("gpu_inference_fp8" if name == "fp8" else None)

        yield row(name, eight_bits)
    if work.on_gpu:
        ours._embedder = plain
        compile_token_wise_parts(plain.backbone)
        yield row("bf16, compiled", partial(tokens_per_second, "gpu_inference"))


def _use_fp8(backbone: Any) -> None:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    quantize_(backbone.layers, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))


def _halves(work: Workload, ours: Engine, tokens: int) -> Row:
    """The service's batcher over an engine whose passes find memory for a third of the tokens."""
    from rayembed.serving.batching import TokenBatcher
    from rayembed.serving.metrics import ReplicaMetrics

    texts, sizes = work.texts(work.lengths(tokens)), []
    [(_, third)] = ours.packed_batches(work.texts(work.lengths(tokens // 3)))
    work.timed(lambda: ours.forward(third), rounds=1)

    def encode(batch: Any, adapter: str) -> Any:
        sizes.append(sum(batch.lengths))
        return ours.encode_tokens(batch)

    async def serve() -> Any:
        batcher = TokenBatcher(encode, tokens, ReplicaMetrics("gpu"), ThreadPoolExecutor(1))
        return await batcher.encode(texts)

    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.05 * peak / total))
    try:
        vectors = asyncio.run(serve())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"texts": len(vectors), "passes_of_tokens": sizes}


CHECKS: dict[str, tuple[Callable[[Workload], Iterator[Row]], int]] = {
    "attention": (attention, 45),
    "head": (head, 30),
    "training": (training, 150),
    "gradcache": (gradcache, 60),
    "deepspeed": (deepspeed, 90),
    "engine": (engine, 180),
}
"""Each check in order, with its budget in seconds: together less than ten minutes."""
