"""`python tools/fuzz TARGET --runs 1000000`: feed a target until something else than a refusal happens.

With `--atheris` (pip install atheris) inputs follow the coverage of the code instead of chance.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
_SLOW = 10.0  # seconds for one input: a hang
_MEMORY = 2 << 30  # bytes by which the process may grow


def main() -> int:
    sys.path.insert(0, str(Path(__file__).parent))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="a name from targets.py, or all")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument(
        "--write-corpus", action="store_true", help="save the well-formed inputs, run nothing"
    )
    arguments = parser.parse_args()
    if arguments.atheris:
        return _atheris(arguments.target, arguments.runs)
    from targets import TARGETS

    names = list(TARGETS) if arguments.target == "all" else [arguments.target]
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
    if arguments.write_corpus:
        for name in names:
            _write(name, TARGETS[name].seeds())
        return 0
    return max(run(name, arguments.runs, arguments.seed, arguments.seconds) for name in names)


def corpus(name: str) -> list[bytes]:
    """The committed inputs of a target, findings of the past among them."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def run(name: str, runs: int, seed: int, seconds: float = float("inf")) -> int:
    """0, or 1 after the first finding, which is written beside the corpus."""
    from mutate import inputs
    from targets import REFUSALS, TARGETS

    target = TARGETS[name]
    before, start, refused, done = _resident(), time.monotonic(), 0, 0
    for data in inputs(corpus(name) or target.seeds(), target.words, seed):
        if done >= runs or time.monotonic() - start > seconds:
            break
        begun = time.monotonic()
        try:
            target.run(data)
        except REFUSALS:
            refused += 1
        except Exception as error:  # noqa: BLE001
            return _found(name, data, f"{type(error).__name__}: {error}")
        if time.monotonic() - begun > _SLOW:
            return _found(name, data, f"took {time.monotonic() - begun:.0f} seconds")
        done += 1
    grown = _resident() - before
    if grown > _MEMORY:
        print(f"{name}: memory grew by {grown >> 20} MiB", file=sys.stderr)
        return 1
    spent = time.monotonic() - start
    print(f"{name}: {done} inputs in {spent:.0f} s, {refused} refused, memory +{max(0, grown) >> 20} MiB")
    return 0


def _found(name: str, data: bytes, what: str) -> int:
    path = Path(f"finding-{name}-{abs(hash(data)):x}")
    path.write_bytes(data)
    print(f"{name}: {what}; the input is in {path}", file=sys.stderr)
    return 1


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write(name: str, seeds: list[bytes]) -> None:
    for i, data in enumerate(seeds):
        if len(data) <= 1 << 16:  # larger ones are made again when they are needed
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

    with tempfile.TemporaryDirectory() as found:  # new inputs go into the first directory
        known = [str(CORPUS / name)] if (CORPUS / name).is_dir() else []
        atheris.Setup([sys.argv[0], f"-atheris_runs={runs}", found, *known], one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
