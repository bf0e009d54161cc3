"""Places, queue, quotas, API keys, turns."""

import threading
import time

import pytest

from sottovoce.errors import CorruptFileError, RefusedError, ServerBusyError
from sottovoce.net.frame import pack_error, parse_error
from sottovoce.parties.admission import Account, Admission, ApiKeys, hash_key
from sottovoce.parties.fair import FairGate

ANN, BOB = Account("ann"), Account("bob")


def test_places_are_counted_and_given_back():
    admission = Admission(2)
    with admission.place(ANN), admission.place(BOB):
        assert admission.running == 2
        with pytest.raises(ServerBusyError, match="full") as caught, admission.place(ANN):
            pass
        assert caught.value.retry_after == 20
    assert admission.running == 0
    with admission.place(ANN):
        assert admission.running == 1


def test_quotas_of_a_client():
    admission = Admission(8, per_client=1)
    with admission.place(ANN), admission.place(BOB):
        with pytest.raises(ServerBusyError, match="you have 1"), admission.place(ANN):
            pass
        with admission.place(Account("c", sessions=2)), admission.place(Account("c", sessions=2)):
            assert admission.running == 4
    limited = Admission(1, context=50)
    assert limited.context_for(ANN, 96) == 50
    assert limited.context_for(Account("a", context=20), 96) == 20
    assert limited.context_for(Account("a", context=500), 96) == 50
    assert Admission(1).context_for(ANN, 96) == 96


def test_the_queue_is_first_come_first_served_and_bounded():
    admission, order = Admission(1, waiting=2, patience=600), []

    def visit(name):
        with admission.place(Account(name)):
            order.append(name)

    threads = []
    with admission.place(ANN):
        for count, name in enumerate("xy", 1):
            threads.append(threading.Thread(target=visit, args=(name,)))
            threads[-1].start()
            while admission.queued < count:
                time.sleep(0.001)
        with pytest.raises(ServerBusyError, match="2 waiting"), admission.place(BOB):
            pass
    for thread in threads:
        thread.join()
    assert order == ["x", "y"] and admission.running == admission.queued == 0


def test_patience_ends_and_so_does_waiting_at_a_server_that_stops():
    admission = Admission(1, waiting=5, patience=0.01)
    with admission.place(ANN):
        with pytest.raises(ServerBusyError), admission.place(BOB):
            pass
    admission.patience = 600
    with admission.place(ANN):
        admission.close()
        with pytest.raises(ServerBusyError), admission.place(BOB):
            pass


def test_api_keys(tmp_path):
    path = tmp_path / "keys"
    digest = hash_key("second").hex()
    path.write_text(f"# who\nann first sessions=2\nbob sha256:{digest} context=32\n\n")
    keys = ApiKeys(path)
    assert keys.account("first") == Account("ann", 2, None, "ann")
    assert keys.account("second") == Account("bob", None, 32, "bob")
    for wrong in (None, "", "third", digest, f"sha256:{digest}"):
        with pytest.raises(RefusedError, match="API key") as caught:
            keys.account(wrong)
        assert "third" not in str(caught.value)


def test_api_keys_are_read_again(tmp_path):
    path = tmp_path / "keys"
    path.write_text("ann first\nbob second\n")
    keys = ApiKeys(path)
    path.write_text("ann third\n")
    assert keys.account("first").name == "ann" and keys.read() == 1 and keys.account("third").name == "ann"
    for gone in ("first", "second"):
        with pytest.raises(RefusedError):
            keys.account(gone)
    for broken in ("ann\n", None):
        path.unlink() if broken is None else path.write_text(broken)
        with pytest.raises(CorruptFileError):
            keys.read()
        assert keys.account("third").name == "ann"


@pytest.mark.parametrize("line", ["ann", "a/b key", "ann key sessions=0", "ann key tokens=3", "ann key x"])
def test_bad_files_of_keys(tmp_path, line):
    (tmp_path / "keys").write_text(line + "\n")
    with pytest.raises(CorruptFileError, match="line 1"):
        ApiKeys(tmp_path / "keys")
    with pytest.raises(CorruptFileError, match="cannot be read"):
        ApiKeys(tmp_path / "missing")


def test_busy_travels_with_its_time():
    error = parse_error(pack_error(ServerBusyError("full", 7)))
    assert type(error) is ServerBusyError and error.retry_after == 7 and str(error) == "full"
    assert parse_error(pack_error(ServerBusyError("full"))).retry_after is None
    assert type(parse_error(b'{"error": "ServerBusyError", "reason": "x", "retry_after": "y"}')) is not type(
        error
    )


def test_the_next_turn_goes_to_whoever_had_the_least():
    gate, order = FairGate(1), []
    holder = gate.member()
    holder.resume()

    def run(name, served):
        member = gate.member()
        member.served = served
        member.resume()
        order.append(name)
        member.pause()

    threads = []
    for count, (name, served) in enumerate((("much", 9.0), ("little", 1.0), ("some", 5.0)), 1):
        threads.append(threading.Thread(target=run, args=(name, served)))
        threads[-1].start()
        while len(gate._waiting) < count:
            time.sleep(0.001)
    holder.pause()
    for thread in threads:
        thread.join()
    assert order == ["little", "some", "much"]


def test_turns_end_up_free_whatever_the_order():
    gate = FairGate(2)
    members = [gate.member() for _ in range(6)]

    def work(member):
        for _ in range(200):
            member.resume()
            member.resume()
            member.pause()
            member.pause()

    threads = [threading.Thread(target=work, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gate._free == 2 and not gate._waiting
