"""The load test runs and reports; what it reports on a busy machine is nobody's to assert."""

from sottovoce.bench import load


def test_sessions_side_by_side():
    outcome = load.run(sessions=2, tokens=3, kv="clear", after=3)
    assert len(outcome["seconds"]) == 2 and min(outcome["seconds"]) > 0 and outcome["ratio"] >= 1
    assert outcome["sessions_after"] == 3 and outcome["memory_last"] > 0
    assert outcome["throughput"] > 0 and outcome["machine"]["cores"] > 0
