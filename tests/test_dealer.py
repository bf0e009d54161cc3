"""The dealer: right items, cheap messages, no trust in strangers, and never used without being asked for."""

import json
import struct
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from chance import all_new
from correlation_checks import CHECKS
from sottovoce.correlations.dealer import DealerSource, deal, new_token, read_hello
from sottovoce.correlations.dealing import Hand, explicit_part, random_part
from sottovoce.errors import IntegrityError, ParameterError, ProtocolError, SottovoceError
from sottovoce.net import Role, memory_pair, run_pair
from sottovoce.ring.primes import P_FIELD


class Table:
    """Two parties and a dealer in threads."""

    def __init__(self):
        self.to_dealer = {role: memory_pair() for role in Role}
        self.error = None
        self.thread = threading.Thread(target=self._deal, daemon=True)
        self.thread.start()

    def _deal(self):
        at_dealer = [self.to_dealer[role][1] for role in Role]
        try:
            hellos = [read_hello(channel) for channel in at_dealer]
            assert [role for role, _ in hellos] == list(Role) and hellos[0][1] == hellos[1][1]
            deal(at_dealer[0], at_dealer[1], hellos[0][1])
        except SottovoceError as error:
            self.error = error
        finally:
            for channel in at_dealer:
                channel.close()

    def run(self, fn, channels=None):
        def party(channel):
            source = DealerSource(channel, self.to_dealer[channel.role][0], new_token(channel))
            try:
                return fn(source)
            finally:
                source.close()

        result = run_pair(party, party, channels)
        self.thread.join(300)
        return result


def run(fn, channels=None):
    return Table().run(fn, channels)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_each_kind_is_what_it_says(check):
    check(run)


def test_nothing_is_dealt_twice():
    def party(source):
        items = [source.triples(500).c for _ in range(3)]
        items += [source.send_ots(50, 3) if source.role else source.receive_ots(50, 3).pads for _ in range(3)]
        return items

    for items in run(party):
        values = np.concatenate([item.reshape(-1) for item in items])
        assert all_new(values)


def test_the_parties_say_nothing_to_each_other_but_the_token():
    channels = memory_pair()
    run(lambda source: (source.triples(100), source.wraps(10, [(3, P_FIELD)]), source.refill()), channels)
    total = channels[0].ledger.total()
    assert (total.bytes_up, total.bytes_down) == (32, 0)


def test_most_of_a_half_comes_from_a_seed():
    """The server is sent one residue for a triple, the client nothing."""
    table = Table()
    table.run(lambda source: source.triples(8000))
    down = [table.to_dealer[role][1].ledger.total().bytes_down for role in Role]
    assert down == [32, 32 + 8000 * 43 // 8]


def test_refill_asks_ahead():
    def party(source):
        source.ands(100)
        source.refill()
        return source.in_stock("ands")

    assert run(party) == (100, 100)


def test_parties_out_of_step_are_cut_off():
    table = Table()

    def party(source):
        source.ands(100 + source.role)

    with pytest.raises(SottovoceError):
        table.run(party)
    table.thread.join(300)
    assert isinstance(table.error, ProtocolError) and "different items" in str(table.error)


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\x01\x00\x00",
        struct.pack("<I", 0) + b'["ands"]',
        struct.pack("<I", 1 << 31) + b'["ands"]',
        struct.pack("<I", 8) + b'["ands", 1]',
        struct.pack("<I", 8) + b'["nothing"]',
        struct.pack("<I", 8) + b'["__class__"]',
        struct.pack("<I", 8) + b'["b2a", 1]',
        struct.pack("<I", 8) + b'["b2a", 36893488147419103232]',
        struct.pack("<I", 8) + b'["b2a", true]',
        struct.pack("<I", 8) + b'["wraps", [[1, 2, 3]]]',
        struct.pack("<I", 8) + b'["wraps", 5]',
        struct.pack("<I", 8) + b'["ots", 2, 4, 1]',
        struct.pack("<I", 8) + b'["ots", 1, 9, 1]',
        struct.pack("<I", 1 << 20) + b'["scalars", 100000]',
        struct.pack("<I", 8) + b'["scalars", -5]',
        struct.pack("<I", 8) + b"[" * 4000,
    ],
)
def test_a_dealer_checks_what_it_is_asked(request_):
    ends = [memory_pair(), memory_pair()]
    for party, _ in ends:
        party.send(request_)
    with pytest.raises(IntegrityError, match="does not exist"):
        deal(ends[0][1], ends[1][1], bytes(32))


def test_a_dealer_checks_who_comes():
    near, far = memory_pair()
    near.send(b"GET / HTTP/1.1\r\n" + bytes(22))
    with pytest.raises(IntegrityError, match="wrong bytes"):
        read_hello(far)


def test_a_party_checks_what_it_asks_for():
    source = DealerSource.__new__(DealerSource)
    with pytest.raises(ParameterError, match="does not deal"):
        source.make(("ands",), 1 << 30)


def test_items_are_spent_with_the_party_they_were_dealt_for():
    def party(source):
        with pytest.raises(ProtocolError, match="another"):
            source.bind(memory_pair()[0])

    run(party)


def test_a_dealer_that_sends_no_residues_is_refused():
    key = ("b2a", P_FIELD)
    hands = [Hand(role, bytes([role]) * 32, bytes(16)) for role in Role]
    halves = [random_part(hand, key, 8) for hand in hands]
    assert len(explicit_part(key, *halves)) == 43
    near, far = memory_pair()
    far.send(b"\x00" * 32)
    far.send(b"\xff" * 43)
    source = DealerSource(SimpleNamespace(role=Role.SERVER, ledger=near.ledger), near, bytes(32))
    with pytest.raises(IntegrityError, match="not a residue"):
        source.make(key, 8)


def test_requests_name_kinds_as_pools_do():
    near, far = memory_pair()
    far.send(bytes(32))
    source = DealerSource(SimpleNamespace(role=Role.CLIENT, ledger=near.ledger), near, bytes(32))
    far.recv(38)
    source.make(("wraps", ((5, 1 << 17),)), 8)
    raw = bytes(far.recv_message(1000))
    assert struct.unpack_from("<I", raw) == (8,) and json.loads(raw[4:]) == ["wraps", [[5, 1 << 17]]]
