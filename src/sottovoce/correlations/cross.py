"""Correlations made from slot-wise products of one-time masks under homomorphic encryption.

The client holds uniform factors f, the server g. The client sends Enc(f); the server computes Σ_t
Enc(f_t)·g_t and returns it under recipe F (re-randomised, masked, flooded): both end with shares of Σ_t
f_t·g_t in every slot. All field correlations are local combinations of such sums. Source: protocols.md 4.4
and section 2.
"""

from typing import TYPE_CHECKING

import numpy as np

from sottovoce.bgv import (
    Encoder,
    Encryptor,
    Evaluator,
    Parameters,
    PublicKey,
    SecretKey,
    flood_and_pack,
    flooded_bytes,
    fresh_bytes,
    load_many,
    unpack,
)
from sottovoce.correlations.interface import U64
from sottovoce.correlations.stock import Arrays
from sottovoce.errors import ParameterError
from sottovoce.net import Channel, Role
from sottovoce.ot.modular import add_mod, mul_field
from sottovoce.ring.primes import P_FIELD
from sottovoce.ring.sampling import Stream

if TYPE_CHECKING:
    from sottovoce.packing import DataSide, ModelSide


class CrossMaker:
    """Makes field correlations in whole batches of N slots; counts must be multiples of what fills them.

    Cost per batch: terms · 154 KB up and 104 KB down (SIMD set); one message up, one down, for all batches of
    a call.
    """

    def __init__(self, channel: Channel, side: "DataSide | ModelSide") -> None:
        key = getattr(side, "secret", None) or getattr(side, "public_key", None)
        expected = SecretKey if channel.role == Role.CLIENT else PublicKey
        if not isinstance(key, expected) or side.parameters.plaintext != P_FIELD:
            raise ParameterError(
                "element products need slots modulo P_FIELD, the secret key at the client, the public one at"
                " the server"
            )
        self._channel = channel
        self._key: SecretKey | PublicKey = key
        self._stream = Stream(purpose=b"correlation factors")

    @property
    def slots(self) -> int:
        """N: products per batch."""
        return self._parameters.degree

    def cross_products(self, n: int, terms: int) -> Arrays:
        """(own factors (n, terms), shares of the sums (n,)); n a multiple of N."""
        factors = self._stream.uniform(P_FIELD, n // self.slots, terms, self.slots)
        sums = self._sums(factors).reshape(n)
        return np.ascontiguousarray(factors.transpose(0, 2, 1)).reshape(n, terms), sums

    def triples(self, n: int) -> Arrays:
        """(a, b, c): the client's factors are (a0, b0), the server's (b1, a1); n a multiple of N."""
        a, b = self._stream.uniform(P_FIELD, 2, n)
        mixed = self._sums(self._pairs(a, b)).reshape(n)
        return a, b, add_mod(mixed, mul_field(a, b), P_FIELD)

    def squares(self, n: int) -> Arrays:
        """(a, c): a² = a0² + a1² + 2·a0·a1; n a multiple of N."""
        factors, mixed = self.cross_products(n, 1)
        a = np.ascontiguousarray(factors[:, 0])
        return a, add_mod(add_mod(mixed, mixed, P_FIELD), mul_field(a, a), P_FIELD)

    def scalars(self, groups: int, length: int) -> Arrays:
        """(r (groups, length), t (groups,), r·t): triples with one factor the same in a whole group."""
        r, t = self._stream.uniform(P_FIELD, groups, length), self._stream.uniform(P_FIELD, groups)
        n = -(-groups * length // self.slots) * self.slots
        vectors, repeated = np.zeros((2, n), np.uint64)
        vectors[: groups * length] = r.reshape(-1)
        repeated[: groups * length] = np.repeat(t, length)
        mixed = self._sums(self._pairs(vectors, repeated)).reshape(n)[: groups * length]
        own = mul_field(r.reshape(-1), np.repeat(t, length))
        return r, t, add_mod(mixed, own, P_FIELD).reshape(groups, length)

    def _pairs(self, a: U64, b: U64) -> U64:
        """Factors (batches, 2, N) such that the two terms are a0·b1 and b0·a1."""
        both = (a, b) if self._channel.role == Role.CLIENT else (b, a)
        return np.stack([x.reshape(-1, self.slots) for x in both], axis=1)

    def _sums(self, factors: U64) -> U64:
        """Own factors (batches, terms, N) to shares (batches, N) of Σ_terms client's · server's."""
        self._channel.ledger.count("he_encrypt", factors.shape[0] * factors.shape[1])
        if isinstance(self._key, SecretKey):
            return self._ask(factors, self._key)
        return self._answer(factors, self._key)

    def _ask(self, factors: U64, secret: SecretKey) -> U64:
        """One frame a batch: the server multiplies the first while the client encrypts the second."""
        encryptor, size = Encryptor(self._parameters, secret), flooded_bytes(self._parameters, 1)
        for batch in factors:
            self._channel.send(encryptor.encrypt_many(batch))
        return np.concatenate([unpack(self._channel.recv(size), secret, 1) for _ in factors])

    def _answer(self, factors: U64, public_key: PublicKey) -> U64:
        """All batches are taken before the first is returned: one message each way, however many frames."""
        terms = factors.shape[1]
        encoder, evaluator = Encoder(self._parameters), Evaluator(self._parameters)
        shares, replies = np.empty((len(factors), self.slots), np.uint64), []
        for i, own in enumerate(factors):
            plains = encoder.encode_ntt(own)
            fresh = load_many(
                self._parameters, self._channel.recv(fresh_bytes(self._parameters, terms)), terms
            )
            packed, shares[i] = flood_and_pack(evaluator.mul_plain_accumulate(fresh, plains), public_key)
            replies.append(packed)
        for packed in replies:
            self._channel.send(packed)
        return shares

    @property
    def _parameters(self) -> Parameters:
        return self._key.parameters
