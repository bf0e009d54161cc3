"""Does what we ship work where there is no checkout?

    .venv/bin/python tools/check_install.py        (or: make dist)

Builds a source distribution, from it a wheel, installs the wheel into a fresh environment elsewhere, and
there asks a private question: native kernels, page, package data and entry point must all have come along.
Takes as long as the native module takes to compile, a minute or two. The files stay in dist/. With --quick
the wheel is made of the checkout, where most is compiled already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("sottovoce/proxy/page/app.js", "sottovoce/proxy/page/index.html", "sottovoce/py.typed")
# What is compiled in wants its notices shipped.
NOTICES = ("LICENSE", "nanobind.txt", "robin-map.txt")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sottovoce-install-") as name:
        place = Path(name)
        wheel = build(ROOT / "dist", "--quick" in sys.argv[1:])
        look_into(wheel)
        python = install(wheel, place / "venv")
        use(python, place)
    print(f"good: {wheel.relative_to(ROOT)} works on its own")


def build(target: Path, quick: bool) -> Path:
    """A wheel, made of nothing but the source distribution unless `quick`."""
    target.mkdir(exist_ok=True)
    for old in target.glob("sottovoce-*"):
        old.unlink()
    hook = "import sys, scikit_build_core.build as b; print(b.build_sdist(sys.argv[1]))"
    run(sys.executable, "-c", hook, target, where=ROOT)
    (source,) = target.glob("sottovoce-*.tar.gz")
    make = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target]
    run(*make, ROOT if quick else source)
    (wheel,) = target.glob("sottovoce-*.whl")
    print(f"{source.name}: {source.stat().st_size >> 10} KiB, {wheel.name}: {wheel.stat().st_size >> 10} KiB")
    return wheel


def look_into(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    missing = [name for name in NEEDED if name not in names]
    missing += [
        end for end in NOTICES if not any("/licenses/" in name and name.endswith(end) for name in names)
    ]
    native = [
        name for name in names if name.startswith("sottovoce/_native") and name.endswith((".so", ".pyd"))
    ]
    strays = [name for name in names if not name.startswith(("sottovoce/", "sottovoce-"))]
    if missing or not native or strays:
        raise SystemExit(f"the wheel lacks {missing or 'nothing'}, has natives {native} and strays {strays}")


def install(wheel: Path, place: Path) -> Path:
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", f"{wheel}[proxy]")
    return python


def use(python: Path, place: Path) -> None:
    """A demo of both parties, with a tiny model, in an empty directory."""
    model = place / "model"
    model.mkdir()
    make = "import pathlib, sys, tiny_model; tiny_model.save_tiny_model(pathlib.Path(sys.argv[1]))"
    run(sys.executable, "-c", make, model, where=ROOT / "tests")
    program = python.parent / "sottovoce"
    where = run(python, "-c", "import sottovoce; print(sottovoce.__file__)", where=place).strip()
    assert Path(where).is_relative_to(place), f"{where} is not the installed package"
    assert json.loads(run(program, "collect-env", "--json", where=place))["version"]
    answer = json.loads(run(program, "demo", "hi", "--model", model, "-n", "3", "--json", "-q", where=place))
    assert answer["tokens"] >= 1 and answer["server_received"]["frames"] > 0, answer
    print(f"demo: {answer['tokens']} private tokens, {answer['seconds_per_token']:.2f} s each")


def run(*command: object, where: Path | None = None) -> str:
    """Standard output of a command that must succeed, without this checkout's settings."""
    own = ("SOTTOVOCE_", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    if where is not None and where != ROOT:
        environment["SOTTOVOCE_CONFIG_DIR"] = str(where / "state")
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=where, env=environment, stdout=subprocess.PIPE, text=True, timeout=1800)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
