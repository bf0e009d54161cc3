"""The benchmarks of bootstrapping and polynomials, on small rings and with a peer that is a script."""

import json
import sys
import types

import pytest

from sottovoce.bench import bootstrap, bootstrap_runner, lattigo_runner, polynomials
from sottovoce.ckks.parameters import ParametersSpec, chain, refreshing
from sottovoce.errors import UsageError

REFRESHING = refreshing(1 << 10, 2, (2, 10, 3), 6, "ternary", "unchecked")


def test_a_small_bootstrap_is_measured():
    result = bootstrap_runner.measure(REFRESHING, 512, repeat=1)
    assert result["levels"] == 2 and result["bits"] > 18 and result["worst_bits"] > 14
    assert result["steps"].keys() == {"raise", "to_slots", "sine", "to_coefficients"}
    assert result["memory_bytes"] > result["key_bytes"] > 0
    compared = bootstrap._compared(result, None)
    assert compared["ours_s"] > 0 and compared["peer_s"] is None and compared["ratio"] is None
    assert json.dumps(compared)


def test_too_little_memory_is_noticed_before_the_keys(monkeypatch):
    monkeypatch.setattr(bootstrap_runner, "available_bytes", lambda: 1000)
    monkeypatch.setattr(bootstrap_runner, "KeyGenerator", None)
    with pytest.raises(UsageError, match="keys"):
        bootstrap_runner.measure(REFRESHING, 8)


def test_both_sides_run_in_children_and_are_compared(monkeypatch, tmp_path):
    ours = bootstrap_runner.measure(REFRESHING, 8, ratio=5, repeat=1)
    calls = []

    def child(command, job, environment=None):
        calls.append((command, environment))
        if environment is None:
            return ours
        return ours | {"seconds": 2 * ours["seconds"], "memory_bytes": 5}

    monkeypatch.setattr(bootstrap, "_child", child)
    monkeypatch.setattr(bootstrap, "available_bytes", lambda: 1 << 40)
    monkeypatch.setenv(bootstrap.LIBRARY_VARIABLE, "library.so")
    result = bootstrap.run(slots=8, threads=2)
    assert result["message_ratio"] == 4 and result["ratio"] == pytest.approx(2)
    assert result["peer_memory_bytes"] == 5
    assert [environment for _, environment in calls] == [None, {"GOMAXPROCS": "2"}]
    monkeypatch.setattr(bootstrap, "available_bytes", lambda: 1 << 30)
    notes = []
    result = bootstrap.run(slots=8, progress=lambda done, total, what: notes.append(what))
    assert result["peer_s"] is None and any("skipped" in note for note in notes)
    monkeypatch.delenv(bootstrap.LIBRARY_VARIABLE)
    assert bootstrap.run(slots=8)["peer"] is None
    with pytest.raises(UsageError):
        bootstrap.run(set="none")


def test_children_that_fail_are_quoted(tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("import sys; print('noise'); print(sys.argv[1])")
    bad.write_text("import sys; sys.exit('no memory')")
    assert bootstrap._child([sys.executable, str(good)], {"a": 1}) == {"a": 1}
    with pytest.raises(UsageError, match="no memory"):
        bootstrap._child([sys.executable, str(bad)], {})
    with pytest.raises(UsageError, match="cannot run"):
        bootstrap._child([str(tmp_path / "absent")], {})


def test_the_peer_is_driven_and_its_copies_are_undone():
    """A stand-in for the library: bootstraps are exact to 2^-20, sparse slots come back as sums."""
    slots, made = 1 << 14, {}

    def encode(array, count, level, scale):
        made["values"] = [array[i] for i in range(count)]
        return 1

    def decode(_):
        values = [2 * value + 2.0**-19 for value in made["values"]]
        array = (lattigo_runner.ctypes.c_float * len(values))(*values)
        return types.SimpleNamespace(data=array, count=len(values))

    names = ("NewScheme", "NewBootstrapper", "NewKeyGenerator", "GenerateSecretKey", "GeneratePublicKey")
    names += ("GenerateRelinearizationKey", "GenerateEvaluationKeys", "NewEncoder", "NewEncryptor")
    names += ("NewDecryptor", "NewEvaluator", "Encrypt", "Decrypt", "Bootstrap")
    library = types.SimpleNamespace(**{name: (lambda *arguments: 7) for name in names})
    library.Encode, library.GetCiphertextLevel = encode, lambda _: 9

    class Decode:
        restype = None

        def __call__(self, value):
            return decode(value)

    library.Decode = Decode()
    result = lattigo_runner.measure(library, slots, repeat=1)
    assert result["levels"] == 9 and 19 < result["worst_bits"] <= result["bits"] < 21
    assert len(made["values"]) == 1 << 15


def test_polynomials_are_compared_on_a_small_ring(monkeypatch):
    monkeypatch.setattr(polynomials, "_CASES", ((15, 8), (31, 32)))
    primes = chain(1 << 10, [49, *[41] * 5, 50, 50, 50])
    small = ParametersSpec(1 << 10, primes[:6], primes[6:], security="unchecked").checked()
    result = polynomials.run(repeat=1, parameters=small, period=4)
    assert [row["degree"] for row in result["rows"]] == [15, 31] * 2
    for row in result["rows"]:
        assert row["slim_key_switches"] == 2 * row["slim_levels"] <= 10
        assert row["levels"] == row["slim_levels"]
        assert min(row["bits"], row["slim_bits"]) > 10
