"""The kernels of oblivious transfer as plain NumPy over `cryptography`: slow, obvious, and what the tests
compare with.

Shapes and byte order are those of the kernels in `_native` (see native/aes.h).
"""

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]


def aes(key: bytes, blocks: U8) -> U8:
    """AES-128 of every 16-byte block."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  (a block function, no mode)
    result = np.frombuffer(encryptor.update(np.ascontiguousarray(blocks).tobytes()), np.uint8)
    return result.reshape(blocks.shape)


def aes_ctr(keys: U8, first: int, blocks: int) -> U8:
    """(count, blocks, 16): the counters first, first + 1, … (little-endian) under each key (count, 16)."""
    counters = np.zeros((blocks, 2), np.uint64)
    counters[:, 0] = np.arange(first, first + blocks, dtype=np.uint64)
    return np.stack([aes(key.tobytes(), counters.view(np.uint8)) for key in keys])


def ggm_fold(leaves: U8, first: int, blocks: int) -> tuple[U8, U8]:
    """For leaves (trees, 256, 16):

    per tree the XOR of all streams, and of those with bit j of the leaf number set.
    """
    sums, weighted = [], []
    for tree in leaves:
        streams = aes_ctr(tree, first, blocks).reshape(256, -1)
        sums.append(np.bitwise_xor.reduce(streams))
        number = np.arange(256)
        weighted += [np.bitwise_xor.reduce(streams[number >> j & 1 == 1]) for j in range(8)]
    return np.stack(sums), np.stack(weighted)


def ot_hash(key: bytes, rows: U64, offsets: U64, first: int, words: int) -> U64:
    """(n, entries, words): H(t, x) = π(σ(x) ⊕ t) ⊕ σ(x) with t = (first + i, block), x = row ⊕ offset."""
    x = rows[:, None, :] ^ offsets[None, :, :]
    sigma = np.stack([x[..., 1], x[..., 0] ^ x[..., 1]], axis=-1)
    blocks = []
    for number in range((words + 1) // 2):
        tweak = np.zeros_like(sigma)
        tweak[..., 0] = np.arange(first, first + len(rows), dtype=np.uint64)[:, None]
        tweak[..., 1] = number
        state = np.ascontiguousarray(sigma ^ tweak).view(np.uint8)
        blocks.append(aes(key, state).view(np.uint64).reshape(sigma.shape) ^ sigma)
    return np.concatenate(blocks, axis=-1)[..., :words]


def transpose_128(columns: U8) -> U8:
    """Bit matrix (128, bytes) to (8·bytes, 16)."""
    bits = np.unpackbits(columns, axis=1, bitorder="little")
    return np.packbits(bits.T, axis=1, bitorder="little")


def gf_combine(rows: U64, m: int) -> U64:
    """Σ_t X^t · rows[i·m + t] in GF(2^128) modulo X^128 + X^7 + X^2 + X + 1, one Python integer at a time."""
    out = np.zeros((len(rows) // m, 2), np.uint64)
    for i in range(len(out)):
        total = 0
        for low, high in rows[i * m : (i + 1) * m][::-1].tolist():
            total = total << 1 ^ (0x87 | 1 << 128 if total >> 127 else 0) ^ low ^ high << 64
        out[i] = total & (1 << 64) - 1, total >> 64
    return out


def scale_to_modulus(blocks: U64, modulus: int) -> U64:
    """floor(x·modulus / 2^128) for 128-bit words given as (n, 2) low and high halves."""
    values = [(low + (high << 64)) * modulus >> 128 for low, high in blocks.tolist()]
    return np.array(values, np.uint64)
