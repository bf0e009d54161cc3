"""One decoder block shaped like GPT-2's, with random weights: what `bench peers` measures on both sides.

Measured is the block alone: from shares of its input to shares of its output, for one token, attending to
`context` cached ones. Embedding, last norm and head are neither run nor counted. Weights belong to the
server, input and cache are private to both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.cost import by_operation, per_token
from sottovoce.bench.e2e import BATCH, POINT, batch_at, opening
from sottovoce.bench.parties import Party
from sottovoce.bench.session import run_job
from sottovoce.bench.steps import Call, Fill, Job, Prepare, Step, passes_of
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.engines.hybrid.linears import NAMES
from sottovoce.models import Model
from sottovoce.models.config import Config
from sottovoce.models.model import build
from sottovoce.models.weights import BlockWeights, Weights
from sottovoce.mpc import field
from sottovoce.net import Role, recv_field, send_field
from sottovoce.ring.primes import P_FIELD

WIDTH, HEADS, FFN = 576, 4, 1536
WEIGHT_SCALE, CACHE_SCALE = 0.03, 0.5
BLOCK_MATRICES = tuple((name, 0) for name in NAMES)
_VOCABULARY, _POSITIONS = 256, 4096  # only there to make it a model

Array = npt.NDArray[np.float32]


def block_model() -> Model:
    """A one-layer model: matrices N(0, 0.03²), gains 1, biases 0, rows of the embedding N(0, 1)."""
    rng = np.random.default_rng(0)
    config = Config(
        model_type="gpt2",
        vocab_size=_VOCABULARY,
        width=WIDTH,
        layers=1,
        heads=HEADS,
        kv_heads=HEADS,
        head_dim=WIDTH // HEADS,
        ffn_width=FFN,
        context_length=_POSITIONS,
        norm="layer",
        mlp="gelu",
        activation="gelu_tanh",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tied_head=True,
    )

    def matrix(outputs: int, inputs: int) -> Array:
        return (rng.standard_normal((outputs, inputs)) * WEIGHT_SCALE).astype(np.float32)

    ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    square = [matrix(WIDTH, WIDTH) for _ in range(4)]
    block = BlockWeights(
        norm1=ones,
        norm1_bias=zeros,
        q=square[0],
        q_bias=zeros,
        k=square[1],
        k_bias=zeros,
        v=square[2],
        v_bias=zeros,
        o=square[3],
        o_bias=zeros,
        norm2=ones,
        norm2_bias=zeros,
        up=matrix(FFN, WIDTH),
        up_bias=np.zeros(FFN, np.float32),
        down=matrix(WIDTH, FFN),
        down_bias=zeros,
    )
    embedding = rng.standard_normal((_VOCABULARY, WIDTH)).astype(np.float32)
    positions = np.zeros((_POSITIONS, WIDTH), np.float32)
    weights = Weights(embedding=embedding, positions=positions, blocks=(block,), norm=ones, norm_bias=zeros)
    return build("gpt2-block", config, weights)


def tokens(context: int) -> list[int]:
    """Tokens whose keys and values are cached, and the one whose embedding is the block's input."""
    return [i % _VOCABULARY for i in range(context + 1)]


def reference(context: int) -> Array:
    """The block's output (WIDTH,) in float32."""
    seen: dict[str, Array] = {}

    def note(name: str, layer: int, value: Array) -> Array:
        seen[name] = value
        return value

    block_model().hidden(tokens(context), hook=note)
    return np.asarray(seen["norm_in"][-1])


class Block:
    """One party's part in the measurement, as actions of a benchmark session (`session.Call`)."""

    def __init__(self, context: int) -> None:
        self.input = block_model().weights.embedding[tokens(context)[-1:]]
        self.output = np.zeros((1, WIDTH), np.uint64)

    def step(self, party: Party) -> None:
        """One token through the block. First the correlations that the token before consumed are replaced."""
        execution = party.execution
        x = _share(party, self.input, execution.public.residual_bits)
        with party.channel.ledger.operation("correlations"):
            execution.source.refill(1)
        self.output = execution.decoder.block(0, x, execution.length)
        execution.length += 1

    def reveal(self, party: Party) -> Array | None:
        """The output of the last step, (1, WIDTH), opened to the client."""
        if party.channel.role is Role.SERVER:
            send_field(party.channel, self.output)
            return None
        other = recv_field(party.channel, (1, WIDTH))
        values = field.centred(field.add(self.output, other, P_FIELD), P_FIELD)
        return np.asarray(values * 2.0**-party.execution.public.residual_bits, np.float32)


def measure(kv: str, context: int, repeat: int, progress: Progress, prepared: int = 0) -> dict[str, Any]:
    """Cost of the block per token (medians of `repeat` tokens behind `context` cached ones) and its error."""
    block = Block(context)
    cached = Fill(tuple(tokens(context)[:-1]))
    ready = Prepare(max(BATCH, repeat + 1), prepared, repeat + 1, BLOCK_MATRICES, POINT)
    steps: list[Step] = [*opening(kv, (), prepared), cached, ready, Call(block.step)]
    steps.append(Call(block.reveal, "output"))
    steps += [Call(block.step, POINT)] * repeat
    job = Job(EngineOptions(kv=kv), block_model, tuple(steps))
    client, server = run_job(job, progress)
    mine, theirs = passes_of(job, client, POINT), passes_of(job, server, POINT)
    (revealed,) = passes_of(job, client, "output")
    assert revealed.logits is not None
    batches = [batch_at(job, outcome, POINT) for outcome in (client, server)]
    return {
        **per_token(mine, theirs, zip(*batches, strict=True)),
        "max_error": float(np.abs(revealed.logits - reference(context)).max()),
        "by_operation": by_operation(mine, batches[0]),
    }


def _share(party: Party, values: Array, bits: int) -> npt.NDArray[np.uint64]:
    """This party's share of values at 2^-bits; the client's is the same random one at both."""
    client = party.generator.integers(0, P_FIELD, values.shape, dtype=np.uint64)
    if party.channel.role is Role.CLIENT:
        return client
    fixed = np.rint(values.astype(np.float64) * 2.0**bits).astype(np.int64)
    return field.sub(field.from_signed(fixed, P_FIELD), client, P_FIELD)
