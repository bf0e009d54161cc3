"""Every kernel of oblivious transfer against its reference, on every instruction set of this machine."""

import numpy as np
import pytest

from sottovoce import _native
from sottovoce.ot import reference

ISAS = ["portable", "avx2", "avx512"]


@pytest.fixture(params=ISAS)
def isa(request):
    before = _native.active_isa()
    if ISAS.index(request.param) > ISAS.index(_native.detected_isa()):
        pytest.skip(f"this machine has no {request.param}")
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def words(rng, *shape):
    return rng.integers(0, 2**64 - 1, shape, np.uint64, endpoint=True)


def raw(rng, *shape):
    return rng.integers(0, 256, shape, np.uint8)


def test_fips_197_vector(isa):
    """Appendix C.1 of the standard, through the hash kernel: H(0, x) ⊕ σ(x) is AES of σ(x)."""
    key = bytes(range(16))
    plain = np.frombuffer(bytes.fromhex("00112233445566778899aabbccddeeff"), np.uint64)
    # σ(x) = (high, low ^ high) in words; choose x so that σ(x) = plain and undo the feed-forward.
    x = np.array([[plain[1] ^ plain[0], plain[0]]], np.uint64)
    out = np.empty((1, 1, 2), np.uint64)
    _native.ot_hash(np.frombuffer(key, np.uint8), x, np.zeros((1, 2), np.uint64), 0, out)
    assert (out[0, 0] ^ plain).tobytes().hex() == "69c4e0d86a7b0430d8cdb78070b4c55a"


@pytest.mark.parametrize("blocks", [1, 2, 7, 16, 33, 70])
def test_ctr(isa, rng, blocks):
    keys = raw(rng, 5, 16)
    out = np.empty((5, blocks, 16), np.uint8)
    for first in (0, 2**40 + 3, 2**64 - 70):
        _native.aes_ctr(keys, first, out)
        assert np.array_equal(out, reference.aes_ctr(keys, first, blocks))


@pytest.mark.parametrize("blocks, threads", [(8, 1), (24, 2), (40, 5)])
def test_fold(isa, rng, blocks, threads):
    leaves = raw(rng, 3, 256, 16)
    sums, weighted = np.empty((3, 16 * blocks), np.uint8), np.empty((24, 16 * blocks), np.uint8)
    _native.ggm_fold(leaves, 12345, sums, weighted, threads)
    expected = reference.ggm_fold(leaves, 12345, blocks)
    assert np.array_equal(sums, expected[0]) and np.array_equal(weighted, expected[1])


@pytest.mark.parametrize("entries", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_hash(isa, rng, entries, count):
    key = raw(rng, 16)
    for n in (1, 7, 32, 45):
        rows, offsets = words(rng, n, 2), words(rng, entries, 2)
        out = np.empty((n, entries, count), np.uint64)
        _native.ot_hash(key, rows, offsets, 2**33 - 3, out)
        assert np.array_equal(out, reference.ot_hash(key.tobytes(), rows, offsets, 2**33 - 3, count))


@pytest.mark.parametrize("nbytes", [64, 192])
def test_transpose(isa, rng, nbytes):
    columns = raw(rng, 128, nbytes)
    rows = np.empty((8 * nbytes, 16), np.uint8)
    _native.transpose_128(columns, rows)
    assert np.array_equal(rows, reference.transpose_128(columns))


def test_xor_selected(rng):
    columns, corrections, selection = raw(rng, 128, 50), raw(rng, 16, 50), raw(rng, 16)
    mask = np.unpackbits(selection, bitorder="little").astype(bool)
    expected = columns ^ np.where(mask[:, None], np.repeat(corrections, 8, axis=0), np.uint8(0))
    _native.xor_selected(columns, corrections, selection)
    assert np.array_equal(columns, expected)


@pytest.mark.parametrize("m", [1, 3, 4, 8])
def test_gf_combine(rng, m):
    rows = words(rng, 20 * m, 2)
    out = np.empty((20, 2), np.uint64)
    _native.gf_combine(rows, m, out)
    assert np.array_equal(out, reference.gf_combine(rows, m))


@pytest.mark.parametrize("modulus", [2, 3, 268369921, 8796092858369, 1 << 17, (1 << 63) - 25, 1 << 64])
def test_scale_to_modulus(rng, modulus):
    blocks = words(rng, 1000, 2)
    blocks[0], blocks[1] = 0, 2**64 - 1
    out = np.empty(1000, np.uint64)
    _native.scale_to_modulus(np.hstack([blocks[::-1], blocks]), 2, modulus % 2**64, out)
    assert np.array_equal(out, reference.scale_to_modulus(blocks, modulus))
    assert out[0] == 0 and int(out[1]) == modulus - 1


def test_kernels_reject_wrong_shapes(rng):
    zero = np.zeros((1, 2), np.uint64)
    with pytest.raises(ValueError, match="entries"):
        _native.ot_hash(raw(rng, 16), zero, words(rng, 3, 2), 0, np.empty((1, 3, 1), np.uint64))
    with pytest.raises(ValueError, match="leaves"):
        _native.ggm_fold(raw(rng, 1, 255, 16), 0, raw(rng, 1, 128), raw(rng, 8, 128), 1)
    with pytest.raises(ValueError, match="bytes"):
        _native.transpose_128(raw(rng, 128, 8), raw(rng, 64, 16))
