"""Oblivious transfers between two parties in two threads."""

import copy
import pickle

import numpy as np
import pytest
from nacl import bindings as sodium

from sottovoce import _native
from sottovoce.errors import IntegrityError, ParameterError, ProtocolError
from sottovoce.net import Role, memory_pair, run_pair
from sottovoce.ot import OtExtension
from sottovoce.ot.base import BaseReceiver, BaseSender
from sottovoce.ot.ggm import chosen_sides, full_trees, punctured_trees
from sottovoce.ot.modular import add_mod, sub_mod

BATCH = 1 << 14
ROLES = (Role.CLIENT, Role.SERVER)


def play(send, receive, sender=Role.CLIENT, batch=BATCH, channels=None):
    """Both parties set up OTs; `sender` runs send(ot), the other receive(ot). Results in that order."""

    def party(channel):
        ot = OtExtension(channel, batch)
        return (send if channel.role == sender else receive)(ot)

    results = run_pair(party, party, channels)
    return results[sender], results[1 - sender]


def test_base_transfers():
    choices = np.random.default_rng(1).integers(0, 2, 40, np.uint8)
    sender = BaseSender()
    receiver = BaseReceiver(b"session", sender.public, choices)
    both = sender.keys(b"session", receiver.answers)
    assert np.array_equal(both[np.arange(40), choices], receiver.keys)
    assert len(np.unique(both.reshape(-1, 16), axis=0)) == 80
    assert not np.array_equal(sender.keys(b"another", receiver.answers), both)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32, b"\x02" + bytes(31)])
def test_base_transfers_refuse_bad_points(point):
    sender = BaseSender()
    with pytest.raises(IntegrityError):
        sender.keys(b"session", point)
    with pytest.raises(IntegrityError):
        BaseReceiver(b"session", point, np.zeros(1, np.uint8))


def test_base_transfers_refuse_the_senders_own_point():
    """B = A makes B − A the neutral element, from which a key would be a public constant."""
    sender = BaseSender()
    assert sodium.crypto_core_ed25519_is_valid_point(sender.public)
    with pytest.raises(IntegrityError):
        sender.keys(b"session", sender.public)


def test_punctured_trees_miss_exactly_one_leaf():
    leaves, sums = full_trees(16)
    points = np.array([0, 1, 2, 127, 128, 254, 255, *range(30, 39)], np.uint8)
    sides = chosen_sides(points)
    chosen = np.take_along_axis(sums, sides[:, :, None, None].astype(np.int64), axis=2)[:, :, 0]
    punctured = punctured_trees(points, chosen)
    for tree, point in enumerate(points):
        known = np.arange(256) != point
        assert np.array_equal(punctured[tree, known], leaves[tree, known])
        assert not punctured[tree, point].any()
    assert len(np.unique(leaves.reshape(-1, 16), axis=0)) == 16 * 256


@pytest.mark.parametrize("sender", ROLES)
def test_correlated_rows(sender):
    n = 20000
    (first, q, delta), (same, b, t) = play(lambda ot: ot.send_cots(n), lambda ot: ot.receive_cots(n), sender)
    assert first == same == 0
    assert np.array_equal(t, q ^ (b.astype(np.uint64)[:, None] * delta))
    assert abs(int(b.sum()) - n / 2) < 3.5 * n**0.5
    # Every column of q is balanced: the rows are uniform, also across the sixteen trees.
    columns = np.unpackbits(q.view(np.uint8), axis=1).sum(axis=0)
    assert np.abs(columns - n / 2).max() < 3.5 * n**0.5


@pytest.mark.parametrize("sender", ROLES)
@pytest.mark.parametrize("m_bits, words", [(1, 1), (1, 5), (2, 1), (3, 2), (4, 1), (4, 3), (6, 1), (8, 2)])
def test_random_transfers(sender, m_bits, words):
    n = 500

    def receive(ot):
        return ot.receive_random(n, m_bits, words)

    pads, (index, chosen) = play(lambda ot: ot.send_random(n, m_bits, words), receive, sender)
    assert pads.shape == (n, 1 << m_bits, words)
    assert np.array_equal(pads[np.arange(n), index], chosen)
    assert len(np.unique(pads)) == pads.size
    counts = np.bincount(index.astype(np.int64), minlength=1 << m_bits)
    assert counts.max() < n / (1 << m_bits) * 2 + 20


def test_sixteen_pads_are_pairwise_and_fourwise_independent():
    """XORs of two and of four pads of one transfer look uniform.

    Pads built as an XOR of one hash for each bit of the index would fail: i, i^a, i^b, i^a^b would cancel.
    """
    n = 2000
    pads, _ = play(lambda ot: ot.send_random(n, 4), lambda ot: ot.receive_random(n, 4))
    pads = pads[:, :, 0]
    rng = np.random.default_rng(5)
    sets = [(i, j) for i in range(16) for j in range(i)]
    sets += [(0, a, b, a ^ b) for a, b in ((1, 2), (1, 4), (2, 4), (3, 12), (5, 10), (8, 7))]
    sets += [tuple(rng.choice(16, 4, replace=False)) for _ in range(30)]
    for chosen in sets:
        total = np.bitwise_xor.reduce(pads[:, list(chosen)], axis=1)
        assert total.all()
        ones = np.unpackbits(total.view(np.uint8).reshape(n, 8), axis=1).sum(axis=0)
        assert np.abs(ones - n / 2).max() < 4 * n**0.5  # eight standard deviations
        assert len(np.unique(total)) == n


@pytest.mark.parametrize("agreed", [(b"x", b"x"), (b"x", b"y"), (b"x", b"")])
def test_keys_depend_on_what_the_handshake_agreed_on(agreed):
    channels = memory_pair()
    for channel, digest in zip(channels, agreed, strict=True):
        channel.establish(digest)
    pads, (index, chosen) = play(
        lambda ot: ot.send_random(200, 2), lambda ot: ot.receive_random(200, 2), channels=channels
    )
    fits = pads[np.arange(200), index] == chosen
    assert fits.all() if agreed[0] == agreed[1] else not fits.any()


@pytest.mark.parametrize("sender", ROLES)
def test_correlated_transfers(sender):
    n = 3000
    rng = np.random.default_rng(3)
    moduli = [8796092858369, 268369921, 1 << 17, 1 << 64, 2]
    inputs = [rng.integers(0, modulus - 1, n, np.uint64, endpoint=True) for modulus in moduli]

    def send(ot):
        return ot.send_correlated(n, list(zip(inputs, moduli, strict=True)), [7, 1 << 64])

    (shares, free), (bits, values, chosen) = play(
        send, lambda ot: ot.receive_correlated(n, moduli, [7, 1 << 64]), sender
    )
    for c, modulus, r, value in zip(inputs, moduli, shares, values, strict=True):
        difference = sub_mod(value, r, modulus)
        assert np.array_equal(difference, c * bits)
        assert int(r.max()) < modulus and (modulus == 2 or int(r.max()) > 0.99 * modulus)
    for (zero, one), pad, modulus in zip(free, chosen, (7, 1 << 64), strict=True):
        assert np.array_equal(pad, np.where(bits, one, zero))
        assert int(zero.max()) < modulus and np.mean(zero == one) < 0.2


def test_free_residues_need_no_message():
    n = 1000
    channels = memory_pair()
    play(
        lambda ot: ot.send_correlated(n, [], [2]),
        lambda ot: ot.receive_correlated(n, [], [2]),
        channels=channels,
    )
    assert channels[0].ledger.total().frames_up == 3  # the setup; the server sent the indices


def test_residues_are_checked():
    """A peer that sends p or more instead of a residue is refused."""
    n, modulus = 100, 8796092858369

    def cheat(ot):
        ot.send_cots(n)
        ot.channel.send(b"\xff" * ((43 * n + 7) // 8 - 1) + b"\x0f")

    with pytest.raises(IntegrityError, match="residue"):
        play(cheat, lambda ot: ot.receive_correlated(n, [modulus]))


def test_no_index_is_used_twice():
    """Indices and rows of many calls of every kind and size never repeat, in either direction."""
    rng = np.random.default_rng(8)
    sizes = [int(x) for x in rng.integers(1, 3000, 40)]

    def party(channel):
        ot = OtExtension(channel, 2048)
        seen = {"send": [], "receive": []}
        for i, n in enumerate(sizes):
            mine = (i + channel.role) % 2
            if mine:
                first, rows, _ = ot.send_cots(n)
            else:
                first, _, rows = ot.receive_cots(n)
            seen["send" if mine else "receive"].append((first, rows.copy()))
        assert ot.sent + ot.received == sum(sizes)
        return seen

    client, server = run_pair(party, party)
    for seen in (*client.values(), *server.values()):
        at = 0
        for first, rows in seen:
            assert first == at
            at += len(rows)
        everything = np.concatenate([rows for _, rows in seen])
        assert len(np.unique(everything, axis=0)) == len(everything)
    for direction in ("send", "receive"):
        peer = "receive" if direction == "send" else "send"
        assert [f for f, _ in client[direction]] == [f for f, _ in server[peer]]


def test_cannot_be_copied_saved_or_overdrawn():
    def party(channel):
        ot = OtExtension(channel)
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                attempt(ot._send)
        with pytest.raises(ProtocolError):
            ot._send.take(1)
        with pytest.raises(ParameterError):
            ot.send_random(1, 9)
        return ot._send.delta.tolist(), bytes(ot._send.hash_key), bytes(ot._receive.hash_key)

    seen = [value for _ in range(3) for result in run_pair(party, party) for value in result[:1]]
    assert len({tuple(delta) for delta in seen}) == 6  # Δ of both parties and of every session differ
    client, server = run_pair(party, party)
    assert client[1] == server[2] and client[2] == server[1] and client[1] != client[2]


def test_cost_in_the_ledger():
    """Setup: 3 exchanges, 8256 bytes each way. An index: 15 bits from receiver to sender, in one message."""
    channels = memory_pair()
    n = 1 << 14
    play(lambda ot: ot.send_cots(n), lambda ot: ot.receive_cots(n), channels=channels)
    for channel in channels:
        rows = {row.operation: row for row in channel.ledger.rows()}
        setup, cot = rows["ot-setup"], rows["cot"]
        assert (setup.bytes_up, setup.bytes_down, setup.rounds) == (8256, 8256, 3)
        assert (cot.bytes_up, cot.bytes_down, cot.rounds) == (0, n * 15 // 8, 1)
        assert cot.counters == {"cots": n}


def test_both_directions_are_filled_in_one_exchange():
    def party(channel):
        ot = OtExtension(channel)
        before = channel.ledger.total().rounds
        ot.reserve(5000, 70000) if channel.role == Role.CLIENT else ot.reserve(70000, 5000)
        assert channel.ledger.total().rounds == before + 1
        ot.reserve(10, 10)
        return channel.ledger.total().bytes_up, channel.ledger.total().bytes_down

    up, down = run_pair(party, party)[0]
    assert (up - 8256, down - 8256) == (70656 * 15 // 8, 65536 * 15 // 8)


@pytest.mark.parametrize("modulus", [3, 268369921, (1 << 63) - 25, 2, 1 << 17, 1 << 64])
def test_modular_sums(modulus):
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, modulus - 1, 500, np.uint64, endpoint=True) for _ in range(2))
    a[:2], b[:2] = (0, modulus - 1), (0, modulus - 1)
    wide = a.astype(object), b.astype(object)
    assert np.array_equal(add_mod(a, b, modulus), (wide[0] + wide[1]) % modulus)
    assert np.array_equal(sub_mod(a, b, modulus), (wide[0] - wide[1]) % modulus)


def test_each_party_sees_uniform_bytes():
    """After the setup the sender sees corrections, the receiver masked differences: both uniform.

    χ² over byte values, 255 degrees of freedom: below 400 with probability 1 − 10^-8.
    """
    n, seen = 1 << 14, {}

    def party(channel):
        ot = OtExtension(channel, BATCH)
        parts = seen[channel.role] = []
        channel.tap = lambda payload: parts.append(np.frombuffer(bytes(payload), np.uint8))
        if channel.role == Role.CLIENT:
            ot.send_correlated(n, [(np.zeros(n, np.uint64), 1 << 64), (np.full(n, 7, np.uint64), 1 << 40)])
        else:
            ot.receive_correlated(n, [1 << 64, 1 << 40])

    run_pair(party, party)
    for role in ROLES:
        data = np.concatenate(seen[role])
        counts = np.bincount(data, minlength=256)
        assert len(data) >= n * 15 // 8
        assert ((counts - len(data) / 256) ** 2).sum() / (len(data) / 256) < 400


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_parties_on_different_machines_agree(isa):
    """Same results whatever the instruction set, so a server with VAES serves a client without."""
    if isa != "portable" and _native.detected_isa() == "portable":
        pytest.skip("this machine has the portable kernels only")
    leaves, _ = full_trees(2)
    outputs = []
    for name in (isa, _native.detected_isa()):
        _native.set_isa(name)
        sums, weighted = np.empty((2, 256), np.uint8), np.empty((16, 256), np.uint8)
        _native.ggm_fold(leaves, 64, sums, weighted)
        outputs.append(weighted)
    assert np.array_equal(*outputs)
