"""`python tools/fuzz TARGET --runs 1000000`: feed a target until something else than a refusal happens.

With `--tally tools/fuzz/tally.json` counts are added up over several runs, each with the next seed, until a
target has had `--runs` inputs. With `--atheris` (pip install atheris) inputs follow the coverage of the code.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
_SLOW = 10  # seconds for one input: a hang
_MEMORY = 2 << 30  # bytes by which the process may grow


def main() -> int:
    sys.path.insert(0, str(HERE))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="names of targets.py with commas between, or all")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each target, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tally", type=Path, help="a file to add the counts to")
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument(
        "--write-corpus", action="store_true", help="save the well-formed inputs, run nothing"
    )
    arguments = parser.parse_args()
    if arguments.atheris:
        return _atheris(arguments.target, arguments.runs)
    from targets import TARGETS

    names = list(TARGETS) if arguments.target == "all" else arguments.target.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
    if arguments.write_corpus:
        for name in names:
            if not TARGETS[name].made:
                _write(name, TARGETS[name].seeds())
        return 0
    if arguments.tally is None:
        return max(run(name, arguments.runs, arguments.seed, arguments.seconds).status for name in names)
    return max(_continued(name, arguments.runs, arguments.seconds, arguments.tally) for name in names)


def corpus(name: str) -> list[bytes]:
    """The committed inputs of a target, findings of the past among them."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


@dataclass(frozen=True)
class Outcome:
    """status: 1 after a finding. grown: bytes of memory."""

    status: int
    inputs: int
    refused: int
    seconds: float
    grown: int


def run(name: str, runs: int, seed: int, seconds: float = float("inf")) -> Outcome:
    """Up to the first finding, which is written to a file."""
    from mutate import inputs
    from targets import REFUSALS, TARGETS

    target = TARGETS[name]
    signal.signal(signal.SIGALRM, _too_slow)
    before, start, refused, done, status = _resident(), time.monotonic(), 0, 0, 0
    for data in inputs(corpus(name) or target.seeds(), target.words, seed, target.json):
        if done >= runs or time.monotonic() - start > seconds:
            break
        signal.alarm(_SLOW)
        try:
            target.run(data)
        except REFUSALS:
            refused += 1
        except Exception as error:  # noqa: BLE001
            status = _found(name, data, f"{type(error).__name__}: {error}")
            break
        finally:
            signal.alarm(0)
        done += 1
    grown = max(0, _resident() - before)
    if grown > _MEMORY:
        print(f"{name}: memory grew by {grown >> 20} MiB", file=sys.stderr)
        status = 1
    spent = time.monotonic() - start
    print(f"{name}: {done} inputs in {spent:.0f} s, {refused} refused, memory +{grown >> 20} MiB", flush=True)
    return Outcome(status, done, refused, spent, grown)


def _continued(name: str, runs: int, seconds: float, tally: Path) -> int:
    """What is missing to `runs` inputs, with a seed that was not used yet."""
    from tally import Tally

    before = Tally.load(tally).of(name)
    if before.inputs >= runs:
        return 0
    outcome = run(name, runs - before.inputs, before.seeds + 1, seconds)
    Tally.load(tally).add(name, outcome).store(tally)
    return outcome.status


def _too_slow(number: int, frame: object) -> None:
    raise TimeoutError(f"one input took more than {_SLOW} seconds")


def _found(name: str, data: bytes, what: str) -> int:
    path = Path(f"finding-{name}-{abs(hash(data)):x}")
    path.write_bytes(data)
    print(f"{name}: {what}; the input is in {path}", file=sys.stderr)
    return 1


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write(name: str, seeds: list[bytes]) -> None:
    for i, data in enumerate(seeds):
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        (CORPUS / name / f"{i:02}").write_bytes(data)


def _atheris(name: str, runs: int) -> int:
    import atheris

    with atheris.instrument_imports(include=["sottovoce", "json"]):
        from targets import REFUSALS, TARGETS
    target = TARGETS[name]

    def one(data: bytes) -> None:
        try:
            target.run(data)
        except REFUSALS:
            pass

    with tempfile.TemporaryDirectory() as found, tempfile.TemporaryDirectory() as known:
        for i, data in enumerate(corpus(name) or target.seeds()):
            Path(known, str(i)).write_bytes(data)
        # New inputs go into the first directory.
        atheris.Setup([sys.argv[0], f"-atheris_runs={runs}", "-timeout=10", found, known], one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
