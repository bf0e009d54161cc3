"""Results on disk: `<benchmark>.json` holds every run, `<benchmark>.md` the table made from it.

A run replaces the one before it that measured the same thing (`KEYS`), so tables stay small and every line in
them says when, where and by which command it was made.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sottovoce.bench.cells import Run
from sottovoce.bench.shaped import NETWORKS
from sottovoce.bench.tables import RENDERERS
from sottovoce.dense import DENSE
from sottovoce.engines.base import Progress
from sottovoce.errors import UsageError
from sottovoce.runs import add, load


@dataclass(frozen=True)
class Kind:
    """keys: what tells the runs of one table apart. says: what the table shows, in a sentence or two.

    notes: what explains the figures, behind them.
    """

    title: str
    keys: tuple[str, ...]
    says: str
    notes: str = ""


KINDS = {
    "agreement": Kind(
        "Greedy tokens, private and plain",
        ("model", "kv", "prepared"),
        "The private model answers prompts greedily; float32 reads the same text, the private model's own "
        "tokens included, and is asked for the next token at each position.",
    ),
    "bootstrap": Kind(
        "Bootstrapping beside Lattigo",
        ("set", "slots", "threads"),
        "One CKKS bootstrap in the ring of degree 65,536, here and in Lattigo, one after the other, each in "
        "a process of its own pinned to the same cores. Real slots, uniform in [−1, 1]; both treat them as "
        "complex. Medians without the first run; memory is the peak of the process.",
        "`bits` is −lg of the mean (and of the largest) absolute error of a slot. Levels are what is left "
        "for computing. Both sides keep 128 bits of security by their own tables: ours limits h = 192 to "
        "1,546 bits of modulus and uniform ternary secrets to 1,747.",
    ),
    "chunk": Kind(
        "Private tokens together under FHE",
        ("model",),
        "One layer of a model behind one public token, on ciphertexts of degree 65,536 under 128-bit "
        "parameters, in one process: the private tokens of a prompt in one chunk, against one token alone. "
        "The plain model of that layer checks the logits.",
        "A chunk refreshes as often as a single token as long as its scores fit one ciphertext (15 tokens "
        "behind a public one for stories260K). What grows is the work between refreshes.",
    ),
    "draft": Kind(
        "Draft and verify",
        ("model", "kv", "draft"),
        "One answer with and without guessed tokens that a secure pass verifies together; same tokens either "
        "way.",
    ),
    "e2e": Kind(
        "Decode, end to end",
        ("model", "engine", "kv", "context", "prepared"),
        "One private token: two processes over TLS on one machine, both parties and both directions counted.",
    ),
    "faults": Kind(
        "Faults",
        ("kv", "seed"),
        "Kept sessions of a tiny model between two processes in which one thing goes wrong at one random "
        "frame: the connection breaks, a frame is cut, doubled or late, one of the two gets SIGKILL. After "
        "an error the saved session is opened again. A failure would be another token, an error that says "
        "nothing, a hang, a frame of tokens sent twice, a row of prepared material handed out twice, or a "
        "damaged file. With `pool`, sessions spend what was prepared before.",
    ),
    "fhe": Kind(
        "Engine fhe",
        ("model",),
        "Tokens that a server chose alone, from ciphertexts under the client's key. The client encrypts the "
        "token chosen last and decrypts logits; two processes over TLS on one machine, everything counted. "
        "The plain model reads the same tokens: KL and the likeliest token from the prompt's last token on.",
        "Seconds by operation are the server's. `bootstraps` holds its own rotations and polynomials; "
        "`levels` is the adjustment of scales where a value drops levels.",
    ),
    "growth": Kind(
        "Growth with the context",
        ("model", "kv", "prepared"),
        "One decode step behind more and more private tokens, for every strategy of the key-value cache. "
        "`none` computes the whole context again for every token.",
    ),
    "he": Kind(
        "Lattice operations beside SEAL",
        (),
        "Both are measured in one run, taking turns, on one thread, medians. Ours is BGV with three 50-bit "
        "primes and a 50-bit special prime; SEAL's (through TenSEAL) is BFV with 54 + 54 + 54 bits and a "
        "56-bit special prime. Both have N = 8192, slots modulo a 43-bit prime, and 128-bit security.",
        "What bounds them: the transform is bound by the multiplier (three 52-bit products per butterfly "
        "and eight lanes). The product with a plaintext is bound by memory: 576 KB of operands per product; "
        "where several sums share the ciphertexts, as in a layer, 192 KB are left and a product takes about "
        "20 µs. BFV needs a base extension for a product of ciphertexts, BGV does not, which is most of "
        "the last line.",
    ),
    "layer": Kind(
        "One layer under FHE, by operation",
        ("shape",),
        "A decoder layer with random weights in a model's shapes, on ciphertexts of degree 65,536 and 32,768 "
        "slots, in one process: the last of the private tokens, alone and behind public ones whose keys and "
        "values are plaintexts. Growth is against the first row. The refreshes are placed by the planner.",
    ),
    "load": Kind(
        "Many sessions at once",
        ("model", "kv", "sessions", "tokens"),
        "One server process and one for each client, on one machine, over TLS; all answer from the same "
        "moment on, one more client dawdles. Then short sessions follow one another, and the server's memory "
        "is read.",
    ),
    "matrix": Kind(
        "Matrix products made ahead",
        (),
        "What the products of all matrices of SmolLM2-135M with one token cost, by how many tokens they are "
        "made for together, and made online. Both parties in two threads of one process; one block is "
        "measured and counted as often as there are blocks, of the head and the embedding a slice.",
    ),
    "network": Kind(
        "Slower networks",
        ("model", "kv", "context", "prepared"),
        "The same decode step with every frame held back for as long as it would travel.",
    ),
    "packings": Kind(
        "Vector times matrix under CKKS",
        ("width",),
        "One private token times a square matrix of random weights, N = 65,536, 32,768 slots, ten limbs, the "
        "same kernels for every layout. Weights are kept as polynomials of integers; "
        "their residues and transforms are timed.",
        "`irp` is interleaved replicated packing, `bsgs` plain diagonals with baby and giant steps on a "
        "replicated vector: these two compare like with like. `moai` (a ciphertext a column) and `thor` "
        "(tiles of 128 rows by diagonals) are made for many tokens at a time and carry one here; `when full` "
        "divides their figure by the tokens they could carry. They are timed on a slice of the outputs and "
        "scaled. MB: ciphertexts in and out. `irp` and `thor` use both parts of complex slots, which "
        "halves their plaintexts; THOR's authors do so too. Rotations, conjugations among them, are one key "
        "switch each: with t = 32,768/width slots to a value IRP needs 2·log2 t of them to replicate and "
        "fold, two for complex slots, and 2·√plaintexts − 2 between them (a few more, cheaper ones, where "
        "four are summed at once). *Of it s* is what they take, and so IRP's floor at width 1,024 however "
        "little plaintexts cost. 67.2, the published ratio of whole systems against THOR, asks for less than "
        "that there. At 4,096 plaintexts decide, of which THOR has 128 times as many.",
    ),
    "peers": Kind(
        "Against SPU Cheetah",
        ("kv", "context", "prepared"),
        "One decoder block shaped like GPT-2's (width 576, FFN 1,536, 4 heads, random weights), one token, "
        "from shares of its input to shares of its output; our preparation is counted. CPU seconds are of "
        "both parties together; on a busy machine they compare better than seconds.",
    ),
    "prefill": Kind(
        "Prefill",
        ("model", "kv", "tokens"),
        "Private tokens in one pass, products of matrices made online: with several tokens in a ciphertext "
        "(*matrix*) and with one (*vector*), as in decode.",
    ),
    "polynomials": Kind(
        "Polynomials of ciphertexts",
        ("period",),
        "Relative minimax fits evaluated by Paterson and Stockmeyer's method in the Chebyshev basis and by "
        "the slim method in the blocks of one ciphertext; ring of degree 32,768, one thread, medians.",
        "Key switches are relinearisations, and for the slim method rotations as well. Bits compare with the "
        "exact value of the same polynomial.",
    ),
    "proxy": Kind(
        "The proxy beside the engine",
        ("model",),
        "The same answer straight from a session and as a stream through the proxy, in turns, in the same "
        "session: server, proxy and the program that asks are three processes on one machine. Then the "
        "server is ended, and another proxy is asked for `/v1/models`.",
        "The difference of two times on a busy machine says little where it is smaller than the spread of "
        "the direct ones. The web server's own CPU time is measured by itself: it is what the proxy takes.",
    ),
    "quality": Kind(
        "Quality of text",
        ("model", "text"),
        "The same text read by float32, by the engine's fixed-point arithmetic, and (a sample) encrypted; "
        "then text that fixed point and the encrypted engine write on their own.",
    ),
    "ranges": Kind(
        "Extremes before and after outlier control",
        ("model",),
        "The largest absolute value in any layer, over text that the model writes itself: of the residual "
        "stream, of values, of what enters the activation, of attention scores. A public first token and "
        "rotations change nothing in the logits.",
    ),
    "ray": Kind(
        "Matrices on a Ray cluster",
        ("model", "workers", "nodes"),
        "One product of every kind of matrix with one private token (*online*), and one batch made ahead "
        "(*ahead*), by workers of a Ray cluster and by one process with one thread and with all; taking "
        "turns, medians. The ciphertexts that come back are compared bit for bit.",
        "Nodes of a cluster on one machine share its cores: such a run shows what the messages cost, and can "
        "show no speed-up over one process that uses all cores. One core is what a worker has. What more "
        "machines would give is [estimated](../guides/estimate.md#many-machines), not measured.",
    ),
    "scx": Kind(
        "Engine scx",
        ("what", "model", "profile", "context", "text", "start", "arrays"),
        "No cryptography: `paper` is the published scheme, which attacks read; `hardened` is ours. See the "
        "design note and the security page before the speeds. Plaintext is NumPy float32 in the same run, in "
        "turns.",
    ),
}


def save(name: str, result: Run, settings: Mapping[str, Any], directory: str | Path) -> Path:
    """Add a run to `<name>.json` and make its table again. settings: the flags that it was run with."""
    if name not in KINDS:
        raise UsageError(f"no table is made of {name!r}")
    folder = Path(directory)
    path = folder / f"{name}.json"
    made = {"date": datetime.now(UTC).date().isoformat(), "command": command(name, settings)}
    add(path, made | result, KINDS[name].keys)
    render(name, folder)
    return path


def render(name: str, folder: Path) -> None:
    """Write `<name>.md` (and the plot, where there is one) from `<name>.json`."""
    runs, kind = load(folder / f"{name}.json"), KINDS[name]
    lines = [f"# {kind.title}", "", f"{kind.says} [How it is measured](README.md).", ""]
    lines += RENDERERS[name](runs)
    if kind.notes:
        lines += [kind.notes, ""]
    lines += ["## Made by", "", *(f"- {origin(run)}" for run in runs), ""]
    lines += [f"Generated from `{name}.json`; do not edit."]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if name in ("growth", "matrix") and runs:
        from sottovoce.bench import plot

        try:
            getattr(plot, name)(runs, folder / f"{name}.svg")
        except UsageError:
            pass  # without matplotlib the plot stays as it is


def origin(run: Run) -> str:
    """Date, command, version and machine of a run, in one line."""
    machine = run["machine"]
    memory = machine["memory_bytes"] / 2**30
    # The load at the end of a run, its own processes included (two), says whether others were there too.
    busy = f", load {machine['load']}" if "load" in machine else ""
    return (
        f"{run['date']}, `{run['command']}`, version {run['version']}, {machine['cpu']} ({machine['isa']}), "
        f"{machine['cores']} cores for both parties, {memory:.0f} GiB{busy}"
    )


def command(name: str, settings: Mapping[str, Any]) -> str:
    """The command line that makes a result again. Places on this machine are left out of it."""
    words = ["sottovoce", "bench", settings.get("what", name)]
    for key, value in settings.items():
        if value is None or value is False or key == "what":
            continue
        if value is True:
            words.append("--" + key.replace("_", "-"))
            continue
        if key == "spu_python":
            value = "PYTHON"
        elif key == "peer_python":
            value = "PYTHON"
        elif key == "text":
            value = Path(value).name
        elif isinstance(value, tuple | list):
            value = ",".join(map(str, value))
        words += ["--" + key.replace("_", "-"), str(value)]
    return " ".join(words)


def suite(texts: str | Path | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Every benchmark of the documentation with its settings; quality for every text in a directory."""
    jobs: list[tuple[str, dict[str, Any]]] = [("he", {}), ("matrix", {}), ("polynomials", {})]
    jobs += [("bootstrap", {}), ("bootstrap", {"set": "engine16", "slots": 4096, "message_ratio": 5})]
    jobs += [("packings", {"width": 1024}), ("packings", {"width": 4096})]
    jobs.append(("ranges", {}))
    jobs += [("layer", {"shape": "smollm2-135m", "public": 1024}), ("layer", {"shape": "gpt2"})]
    prepared = {"kv": "masked", "prepared": DENSE.block}
    for how in ({"kv": "ciphertext"}, prepared, {"kv": "none"}):
        slow = how["kv"] == "none"
        jobs += [("e2e", how | {"context": c, "new_tokens": 1 if slow else 8}) for c in (64, 128)]
        contexts = (64, 128, 256, 512) if slow else (64, 128, 256, 512, 1024)
        jobs.append(("growth", how | {"contexts": contexts, "new_tokens": 1 if slow else 4}))
    for how in ({"kv": "ciphertext"}, prepared):
        jobs += [("network", how), ("peers", how), ("agreement", how)]
        jobs.append(("draft", {"kv": how["kv"], "networks": NETWORKS}))
    jobs.append(("prefill", {"kv": "ciphertext", "tokens": 64}))
    jobs.append(("faults", {"kv": "clear", "points": 1000, "seed": 1}))
    for seed in range(1, 4):
        jobs += [("faults", {"kv": kv, "points": 200, "seed": seed}) for kv in ("masked", "ciphertext")]
        jobs.append(("faults", {"kv": "masked", "pool": True, "points": 200, "seed": seed}))
    jobs += [("load", {"kv": kv}) for kv in ("clear", "masked")]
    jobs.append(("proxy", {}))
    for profile in ("paper", "hardened"):
        scx = {"what": "e2e", "engine": "scx", "profile": profile, "new_tokens": 12, "repeat": 2}
        jobs += [("scx", scx | {"context": context}) for context in (8, 1024)]
    jobs.append(("quality", {"chain": 128, "sample": 40}))
    for path in sorted(p for p in Path(texts).iterdir() if p.suffix in (".txt", ".jsonl")) if texts else []:
        jobs.append(("quality", {"text": str(path)}))
    # Last: their model's file may be missing, and they take the longest.
    jobs.append(("chunk", {}))
    jobs.append(("fhe", {"what": "e2e", "engine": "fhe", "model": "stories260K", "new_tokens": 8}))
    jobs.append(("ray", {}))  # needs an extra package
    return jobs


def run_all(
    output: str | Path = "docs/benchmarks",
    progress: Progress = lambda done, total, what: None,
    texts: str | Path | None = None,
) -> None:
    """Run the whole suite (hours) and write every table."""
    jobs = suite(texts)
    for done, (name, settings) in enumerate(jobs):
        progress(done, len(jobs), command(name, settings))
        save(name, run_one(name, settings, progress), settings, output)
    progress(len(jobs), len(jobs), "benchmarks")


def run_one(name: str, settings: Mapping[str, Any], progress: Progress) -> Run:
    """sottovoce.bench.<name>.run(**settings), with progress if it reports any."""
    run = importlib.import_module(f"sottovoce.bench.{name}").run
    if "progress" in run.__annotations__:
        settings = {**settings, "progress": progress}
    result: Run = run(**settings)
    return result
