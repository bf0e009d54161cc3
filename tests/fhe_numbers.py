"""A session of the fhe engine's program on numbers, and how far its logits are from the plain model's."""

import numpy as np

from sottovoce.bench.scores import log_softmax
from sottovoce.engines.fhe.placement import EMBED_LEVELS


class NumberSession:
    """Steps of `program` on the arithmetic `ar`; a subclass has these, model, shape and placement."""

    def public(self, tokens):
        cache = self.model.new_cache()
        self.model.hidden(tokens, cache)
        layers = range(self.model.config.layers)
        self.program.append_public([cache.k(i) for i in layers], [cache.v(i) for i in layers])
        return self

    def step(self, token):
        shape, blocks = self.shape, []
        for block in range(shape.vocabulary_blocks):
            one_hot = np.zeros(shape.vocabulary)
            if token // shape.vocabulary == block:
                one_hot[token % shape.vocabulary] = 1
            level = self.placement.entry + EMBED_LEVELS
            blocks.append(self.ar.fresh(shape.embed.place(one_hot), level))
        return self.read(self.program.step(blocks))

    def read(self, out):
        found = np.concatenate([self.shape.head.read(y.values).real for y in out])
        return found[: self.model.config.vocab_size]


def divergence(plain, mine):
    """KL(plain || mine) of every position, in nats."""
    p, q = log_softmax(np.asarray(plain)), log_softmax(np.asarray(mine))
    return (np.exp(p) * (p - q)).sum(axis=-1)
