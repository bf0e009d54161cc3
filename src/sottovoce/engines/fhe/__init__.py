"""Non-interactive generation under CKKS: the client encrypts a token, the server computes alone, the client
decrypts logits.

- `shape`, `weights`, `functions`, `calibration`, `scores`: a model as slots, plaintexts and polynomials.
- `program`: the decoder, written once on an abstract slot arithmetic (`sottovoce.packing.slots`).
- `flow`, `placement`, `costs`: where values are refreshed, found by shortest path over counted operations.
- `ciphertexts`: the arithmetic on CKKS. `description`, `keyring`, `data_party`, `parties`: both halves of a
  session. `returned`, `answer`: what goes back, and how it is kept.
"""

from sottovoce.engines.fhe.data_party import FheDataParty
from sottovoce.engines.fhe.parties import FheEngine, FheModelParty

__all__ = ["FheDataParty", "FheEngine", "FheModelParty"]
