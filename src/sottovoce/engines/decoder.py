"""The decoder graph on shares, written once.

Two parties run it in lockstep with `TwoPartyArithmetic`, homomorphic linear layers and an encrypted cache
(engine `hybrid`); one process runs it on both shares with `ModelArithmetic` (`clear`, fixed arithmetic).
Scales: residual stream and matrix products at 2^-23, everything that enters a matrix or the cache at 2^-12,
probabilities at 2^-14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sottovoce.engines.public import PublicModel
from sottovoce.models.fixed import ACTIVATION_BITS, ROPE_BITS, SCORE_BITS
from sottovoce.mpc.arithmetic import Arithmetic
from sottovoce.mpc.functions.gelu import gelu
from sottovoce.mpc.functions.norm import NormRange, layer_norm, rms_norm
from sottovoce.mpc.functions.silu import gated_silu
from sottovoce.mpc.functions.softmax import OUT_BITS as PROBABILITY_BITS
from sottovoce.mpc.functions.softmax import softmax
from sottovoce.mpc.requests import Share, Wrap, WrapOutput

Int64 = npt.NDArray[np.int64]
Operation = Callable[[str], AbstractContextManager[object]]


class Linears(Protocol):
    """The matrices of a model, applied to shares."""

    def apply(self, layer: int, name: str, x: Share) -> Share:
        """W·x + bias for name in 'qkv', 'o', 'gate_up', 'down'. x (T, inputs) at 2^-12 -> (T, outputs) at
        2^-23."""
        ...


class Cache(Protocol):
    """Keys and values of one layer; see `sottovoce.kvcache` for the encrypted ones."""

    def append(self, k: Share, v: Share) -> None:
        """k, v: (T, kv_heads, head_dim) at 2^-12, at the next T positions."""
        ...

    def scores(self, q: Share) -> Share:
        """q: (T, heads, head_dim), the last T positions. -> (T, heads, n) q·k; entries that row t may not see
        are 0."""
        ...

    def mix(self, p: Share) -> Share:
        """p: (T, heads, n) -> (T, heads, head_dim), Σ_m p_m·v_m."""
        ...


class Decoder:
    """Executes the blocks of `public` with `ar`. `softmax_shifts` (per block, (heads,)) is None at the
    client."""

    def __init__(
        self,
        public: PublicModel,
        ar: Arithmetic,
        linears: Linears,
        caches: Sequence[Cache],
        softmax_shifts: Sequence[Int64] | None,
        operation: Operation = lambda name: nullcontext(),
    ) -> None:
        self.public = public
        self.config = public.config
        self.ar = ar
        self.linears = linears
        self.caches = caches
        self.softmax_shifts = softmax_shifts
        self.operation = operation
        width = public.config.width
        self._ranges = [NormRange(width, norm.low, norm.high, norm.eps) for norm in public.norms]

    def block(self, i: int, x: Share, start: int) -> Share:
        """One decoder block. x: (T, width) at 2^-23, tokens at positions start, start + 1, …"""
        ar, run = self.ar, self.operation  # norms, softmax and activations name themselves in the ledger
        h = self._norm(x, 2 * i)
        with run("linear"):
            qkv = self.linears.apply(i, "qkv", h)
        with run("rotary"):
            q, k, v = self._split_heads(qkv, start)
        with run("cache append"):
            self.caches[i].append(k, v)
        with run("cache scores"):
            raw = self.caches[i].scores(q)
        p = self._softmax(raw, i, start)
        with run("cache mix"):
            mixed = self.caches[i].mix(p)
        with run("rescale"):
            tokens = ar.shape(x)[0]
            mixed = ar.reshape(mixed, (tokens, self.config.q_width))
            mixed = ar.rescale(mixed, PROBABILITY_BITS)
        with run("linear"):
            x = ar.add(x, self.linears.apply(i, "o", mixed))
        h = self._norm(x, 2 * i + 1)
        with run("linear"):
            gate_up = self.linears.apply(i, "gate_up", h)
        h = self._activation(gate_up)
        with run("linear"):
            return ar.add(x, self.linears.apply(i, "down", h))

    def final_norm(self, x: Share) -> Share:
        """x: (T, width) at 2^-23 -> (T, width) at 2^-12, ready for the head.

        Rounded exactly: the client sees the logits, and would know by which chance their input was rounded.
        """
        return self._norm(x, 2 * self.config.layers, exact=True)

    def _norm(self, x: Share, index: int, exact: bool = False) -> Share:
        function = rms_norm if self.config.norm == "rms" else layer_norm
        return function(self.ar, x, self._ranges[index], exact)

    def _split_heads(self, qkv: Share, start: int) -> tuple[Share, Share, Share]:
        """Rotate q and k on the shares (the tables are public integers), then one rescale to 2^-12 for all
        three."""
        ar, c = self.ar, self.config
        tokens = ar.shape(qkv)[0]
        qk = ar.reshape(qkv[..., : c.q_width + c.kv_width], (tokens, c.heads + c.kv_heads, c.head_dim))
        v = ar.reshape(qkv[..., c.q_width + c.kv_width :], (tokens, c.kv_heads, c.head_dim))
        w = self.public.weight_bits
        if c.rope is None:
            shift = w
        else:
            shift = w + ROPE_BITS
            qk = self._rotate(qk, start)
        requests = [Wrap(qk, (WrapOutput(shift),)), Wrap(v, (WrapOutput(w),))]
        (qk,), (v,) = ar.exchange(requests)
        return qk[..., : c.heads, :], qk[..., c.heads :, :], v

    def _rotate(self, qk: Share, start: int) -> Share:
        ar = self.ar
        tokens, _, dim = ar.shape(qk)
        cos, sin = self.public.rope_tables(np.arange(start, start + tokens))
        cos, sin = cos[:, None, :], sin[:, None, :]
        a, b = qk[..., : dim // 2], qk[..., dim // 2 :]
        left = ar.sub(ar.mul_public(a, cos), ar.mul_public(b, sin))
        right = ar.add(ar.mul_public(b, cos), ar.mul_public(a, sin))
        return np.concatenate([left, right], axis=-1)

    def _softmax(self, raw: Share, i: int, start: int) -> Share:
        """raw: (T, heads, n), row t sees the first start + t + 1 positions."""
        tokens, _, n = self.ar.shape(raw)
        live = np.arange(n)[None, :] <= start + np.arange(tokens)[:, None]
        bits = self.public.score_bits
        shift = None
        if self.softmax_shifts is not None:
            shift = self.softmax_shifts[i] << (bits - SCORE_BITS)
        p = softmax(self.ar, raw, shift, live[:, None, :], bits, self.public.score_range_bits)
        if start == 0:
            # The very first token sees only itself: its probability is 1 whatever its score, which no
            # calibrated shift covers (position 0 is unlike all others in these models).
            one = np.zeros((self.config.heads, n), dtype=np.int64)
            one[:, 0] = 1 << PROBABILITY_BITS
            p[..., 0, :, :] = self.ar.from_public(one)
        return p

    def _activation(self, gate_up: Share) -> Share:
        """(T, 2·ffn) or (T, ffn) at 2^-23 -> (T, ffn) at 2^-12."""
        ar, c = self.ar, self.config
        if not c.gated:
            return gelu(ar, gate_up)
        gate, up = gate_up[..., : c.ffn_width], gate_up[..., c.ffn_width :]
        if c.activation == "silu":
            return gated_silu(ar, gate, up)
        narrow = ar.rescale(up, self.public.weight_bits)
        return ar.rescale(ar.mul(gelu(ar, gate), narrow), ACTIVATION_BITS)
