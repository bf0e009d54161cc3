"""BGV with slots modulo p: the scheme of the online linear layers, the encrypted cache and element products.

Shapes: slots are ``np.uint64`` (..., N) below p, two rows of N/2, slot (r, c) = index r·N/2 + c. NTT
plaintexts are (..., L, M), M = N unless periodic. Ciphertext data are (*batch, S, L, N) in NTT form.
Everything takes a batch.

    SIMD: Parameters                                N 8192, Q 3x50 bits, special 50 bits, p = P_FIELD
    ParametersSpec(degree, primes, special, plaintext, security=128 | "unchecked").checked() -> Parameters

    KeyGenerator(parameters, secret=None)
      .secret_key, .public_key(), .relinearization_key(), .galois_keys(steps); ROW_SWAP = -1 is a step too
    every key: .to_bytes(), .from_bytes(parameters, data);  GaloisKeys.steps

    Encoder(parameters)
      .encode(slots (..., N)) / .encode_periodic(slots (..., M)) -> Plaintext;   .decode(plaintext) -> slots
      .to_ntt(plaintext, limbs=None, out=None) / .encode_ntt(slots (..., M)) -> (..., L, M) uint64
    Encryptor(parameters, SecretKey | PublicKey)
      .encrypt(plaintext) -> Ciphertext;   .encrypt_many(slots (B, N)) -> bytes of fresh_bytes(parameters, B)
    load_many(parameters, data, B) -> Ciphertext (batch B)
    Decryptor(parameters, SecretKey)
      .decrypt(ct) -> Plaintext;   .decrypt_slots(ct) -> (*batch, N);   .noise(ct);   .budget()
    Evaluator(parameters, relinearization_key=None, galois_keys=None); plain: Plaintext, or (L, M) from to_ntt
      .add(a, b) .sub(a, b) .sum(batch) .negate(a) .add_plain(a, plain) .sub_plain(a, plain)
      .trivial(plain, batch=())                                a "ciphertext" of public or own data
      .mul_plain(a, plain)
      .mul_plain_accumulate(cts, plains, into=None)            Σ_k cts[k]·plains[k], plains K arrays (L, M)
      .mul_plain_matrix(cts, plains, into=None)                G such sums over the same cts -> batch of G
      .tensor_accumulate(a, b, into=None) .relinearize(ct)     Σ_k a[k]·b[k], of three components; back to two
      .rotate(ct, step) .rotate_hoisted(ct, steps) -> list     new[c] = old[(c + step) mod N/2] in both rows
      .rotate_sum(cts, steps)                                  Σ_k rotate(cts[k], steps[k]), one division by P
      .mod_switch(ct)
    Ciphertext(parameters, data, noise, factor=1)
      .batch .size .limbs, indexing and len() over the first batch axis;   stack(list) -> one batch
      .to_bytes(), .from_bytes(parameters, data), for one's own storage

    recipe Z, for products with weights: masked_bytes(parameters, B), failure_bits(parameters, noise)
      mask_and_pack(ct, public_key) -> (bytes, share (*batch, N))
      unmask_and_decode(data, secret_key, B) -> share (B, N)
    recipe F, for products of one-time masks: flooded_bytes(parameters, B)
      flood_and_pack(ct, public_key) -> (bytes, share);   unpack(data, secret_key, B) -> share
    the two shares add up to the slots modulo p.

Rotation keys must exist for every step used (`galois_keys([1, 2, …])`, steps in [1, N/2)). Periodic
plaintexts are those whose rows repeat: slot (r, c) = values[r·M/2 + c mod M/2].
"""

from sottovoce.bgv.ciphertext import Ciphertext, Plaintext, stack
from sottovoce.bgv.decryptor import Decryptor
from sottovoce.bgv.encoder import Encoder
from sottovoce.bgv.encryptor import Encryptor, fresh_bytes, load_many
from sottovoce.bgv.evaluator import Evaluator
from sottovoce.bgv.parameters import SIMD
from sottovoce.bgv.recipe_f import flood_and_pack, flooded_bytes, unpack
from sottovoce.bgv.recipe_z import failure_bits, mask_and_pack, masked_bytes, unmask_and_decode
from sottovoce.rlwe import (
    ROW_SWAP,
    GaloisKeys,
    KeyGenerator,
    Parameters,
    ParametersSpec,
    PublicKey,
    RelinearizationKey,
    SecretKey,
)

__all__ = [
    "Ciphertext",
    "Decryptor",
    "Encoder",
    "Encryptor",
    "Evaluator",
    "GaloisKeys",
    "KeyGenerator",
    "Parameters",
    "ParametersSpec",
    "Plaintext",
    "PublicKey",
    "ROW_SWAP",
    "RelinearizationKey",
    "SIMD",
    "SecretKey",
    "failure_bits",
    "flood_and_pack",
    "flooded_bytes",
    "fresh_bytes",
    "load_many",
    "mask_and_pack",
    "masked_bytes",
    "stack",
    "unmask_and_decode",
    "unpack",
]
