"""Both parties of a pool are killed with SIGKILL at hundreds of points, and nothing is ever handed out twice.

Two processes, joined by a socket, open their halves, store and take cheap items, and write down every item
that they are handed. One of them dies: at a random executed line of the pool's code, or after a random time
(in the middle of a system call, for example). The next trial goes on with what is left on the disk.
"""

import os
import random
import signal
import socket
import struct
import sys
import time

import numpy as np
import pytest

from sottovoce.correlations import agreement, marks, pool, producer, records, shelf
from sottovoce.correlations.producer import store
from sottovoce.correlations.records import Record
from sottovoce.correlations.shelf import ClientShelf, ServerShelf
from sottovoce.errors import PeerConnectionError
from sottovoce.net import Role, SocketChannel

KILLS = 200  # not every trial kills: a session can end before its point is reached
WATCHED = {module.__file__ for module in (agreement, marks, pool, producer, records, shelf)}
STREAMS = {"a": 24, "b": 16, "large": 3}


def tags(seed, stream, n):
    """Names of the items of a batch: both halves carry the same, so that they can be compared."""
    return np.random.default_rng([seed, len(stream), n]).integers(0, 1 << 64, n, np.uint64)


def batch(seed, role):
    """Halves of different shapes, as real ones are."""
    items = {}
    for name, n in STREAMS.items():
        own = tags(seed, name, n)
        noise = np.arange(n * (1 + role), dtype=np.uint64).reshape(n, -1) + np.uint64(seed)
        items[name] = Record((own, noise), granule=1 if name == "large" else 8)
    return items


def play(role, sock, home, trial, kill_at):
    """One session of one party; `kill_at`: the executed line at which it kills itself, None for never."""
    if kill_at is not None:
        sys.settrace(tracer(kill_at))
    channel = SocketChannel(role, sock, timeout=120.0)
    script = random.Random(trial)
    place = ClientShelf(home / "client", make=True) if role == Role.CLIENT else ServerShelf(home / "server")
    mine = place.borrow(channel)
    log = os.open(home / f"used-{int(role)}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for step in range(8):
        if script.random() < 0.4:
            store(channel, mine, batch(trial * 100 + step, int(role)))
        else:
            wanted = {name: script.choice([0, 1, 2, n]) for name, n in STREAMS.items()}
            for parts in mine.take(wanted).values():
                for part in parts:
                    for tag in part.arrays[0]:
                        os.write(log, struct.pack("<IIQ", trial, step, tag))
            assert channel.exchange(b"x", 1) == b"x"  # as a token would: both hear from each other
    mine.close()


def tracer(kill_at):
    left = [kill_at]

    def trace(frame, event, arg):
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def spawn(role, sock, other, home, trial, kill_at):
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        other.close()
        play(role, sock, home, trial, kill_at)
        code = 0
    except PeerConnectionError:
        code = 3
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(code)


def session(home, trial, victim, kill_at, delay):
    """Exit statuses of (client, server)."""
    near, far = socket.socketpair()
    client = spawn(Role.CLIENT, near, far, home, trial, kill_at if victim == 0 else None)
    server = spawn(Role.SERVER, far, near, home, trial, kill_at if victim == 1 else None)
    near.close()
    far.close()
    if delay is not None:
        time.sleep(delay)
        os.kill((client, server)[victim], signal.SIGKILL)
    return tuple(os.waitpid(pid, 0)[1] for pid in (client, server))


def used(home, role):
    path = home / f"used-{role}"
    raw = path.read_bytes() if path.exists() else b""
    return list(struct.iter_unpack("<IIQ", raw[: len(raw) // 16 * 16]))


def assert_exactly_once(home):
    by_step = []
    for role in (0, 1):
        entries = used(home, role)
        names = [tag for _, _, tag in entries]
        assert len(set(names)) == len(names), "an item was handed out twice"
        steps = {}
        for trial, step, tag in entries:
            steps.setdefault((trial, step), []).append(tag)
        by_step.append(steps)
    for key in by_step[0].keys() & by_step[1].keys():
        # A killed party may not have come to write all of its last step down.
        for mine, theirs in zip(by_step[0][key], by_step[1][key], strict=False):
            assert mine == theirs, "the two halves do not belong together"
    # What one party was handed the other was handed in the same step, or never.
    first = {tag: step for step, tags in by_step[0].items() for tag in tags}
    second = {tag: step for step, tags in by_step[1].items() for tag in tags}
    assert all(first[tag] == second[tag] for tag in first.keys() & second.keys())


def assert_wiped(home):
    """No byte of a used item is on the disk once both parties have opened their halves again."""
    gone = {struct.pack("<Q", tag) for role in (0, 1) for _, _, tag in used(home, role)}
    assert gone
    for path in home.rglob("*.items"):
        raw = path.read_bytes()
        assert not gone & {raw[i : i + 8] for i in range(0, len(raw), 8)}


def ran(home, trial):
    assert session(home, trial, 0, None, None) == (0, 0)


def test_kill_at_any_point_hands_nothing_out_twice(tmp_path):
    pick = random.Random(20261121)
    home = tmp_path / "0"
    home.mkdir()
    ran(home, 1)
    length = measured_lines(tmp_path)
    start = time.perf_counter()
    ran(home, 2)
    duration = time.perf_counter() - start
    killed, trial = 0, 2
    while killed < KILLS:
        trial += 1
        victim, by_line = pick.randrange(2), pick.random() < 0.6
        kill_at = pick.randrange(length) if by_line else None
        delay = None if by_line else pick.uniform(0, duration)
        status = session(home, trial, victim, kill_at, delay)
        killed += any(os.WIFSIGNALED(s) for s in status)
        # The survivor ends because the peer is gone, and for no other reason.
        assert all(os.WIFSIGNALED(s) or os.WEXITSTATUS(s) in (0, 3) for s in status), status
        if trial % 40 == 0:
            assert_exactly_once(home)
            ran(home, 10_000 + trial)
            assert_wiped(home)
            home = tmp_path / str(trial)
            home.mkdir()
    ran(home, 20_000)
    assert_exactly_once(home)
    assert_wiped(home)


def measured_lines(tmp_path):
    """How many lines of the pool's code one session executes (the first, with a creation in it)."""
    home = tmp_path / "measure"
    home.mkdir()
    low, high = 0, 1 << 16
    while high - low > 200:
        middle = (low + high) // 2
        status = session(home, 5, 0, middle, None)[0]
        low, high = (middle, high) if os.WIFSIGNALED(status) else (low, middle)
    return low


@pytest.mark.parametrize("victim", [0, 1])
def test_a_party_killed_before_everything_and_after_everything(tmp_path, victim):
    for trial, delay in enumerate((0.0, 0.5)):
        session(tmp_path, trial, victim, None, delay)
    ran(tmp_path, 9)
    assert_exactly_once(tmp_path)
