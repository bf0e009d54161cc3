"""Saved sessions as a user meets them: chat and generate with --session, lists, files, kill -9."""

import json
import signal
import subprocess
from typing import NamedTuple

import pytest

from sottovoce.cli.errors import run_guarded
from sottovoce.cli.root import cli
from sottovoce.errors import CorruptFileError, UsageError
from sottovoce.models.model import greedy
from sottovoce.parties import portable, vault
from sottovoce.parties.portable import export_session, import_session
from sottovoce.parties.saved import SavedSession
from sottovoce.parties.store import SessionStore
from test_cli import BASE, Serving, environment, model_path, run, serving  # noqa: F401  (fixtures)
from test_resume import engine, go_on, greedy_tokens, host  # noqa: F401  (fixtures)
from tiny_model import tiny_model

PROMPT = [3, 31, 8, 12]
RAW = ("--raw", "--insecure-clear", "-n", "4")


def texts(prompts):
    """What one conversation in plain text answers."""
    model, tokens, answers = tiny_model(), [256], []
    for prompt in prompts:
        tokens += model.card.tokenizer.encode(prompt)
        answer = greedy(model, tokens, 4, model.card.tokenizer.eos_ids)
        answers.append(model.card.tokenizer.decode(answer))
        tokens += answer
    return answers


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def session(monkeypatch, capsys):
    """`sottovoce session …` in this process."""

    def invoke(*arguments, env):
        monkeypatch.setenv("SOTTOVOCE_CONFIG_DIR", env["SOTTOVOCE_CONFIG_DIR"])
        words = ["session", *map(str, arguments)]
        code = run_guarded(lambda: cli.main(words, standalone_mode=False))
        return Done(code, *capsys.readouterr())

    return invoke


def generate(server, prompt, environment, *more):  # noqa: F811
    done = run("generate", server.address, prompt, *RAW, "--json", *more, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["text"], done.stderr


def test_a_conversation_over_several_commands(serving, environment, session, tmp_path):  # noqa: F811
    wanted = texts(["one", "two", "three"])
    answer, notes = generate(serving, "one", environment, "--session", "mine")
    assert answer == wanted[0] and "saved here and at the server" in notes
    answer, notes = generate(serving, "two", environment, "--session", "mine")
    assert answer == wanted[1] and "goes on behind" in notes
    listed = json.loads(session("ls", "--json", env=environment).stdout)
    assert [entry["name"] for entry in listed] == ["mine"] and listed[0]["server"] == serving.address
    assert "mine" in session("ls", env=environment).stdout
    asked = session("status", "mine", "--json", "--insecure-clear", env=environment)
    held = listed[0]["tokens"]
    assert json.loads(asked.stdout) == {"state": "idle", "tokens": held, "here": held}, asked.stderr
    asked = session("status", "mine", "--insecure-clear", env=environment)
    assert asked.stdout == f"mine: the server holds {held} tokens\n"
    # Carried to another machine and back under another name.
    (tmp_path / "pass").write_text("open sesame\n")
    protected = ("--file-passphrase-file", tmp_path / "pass")
    there = {**environment, "SOTTOVOCE_CONFIG_DIR": str(tmp_path / "elsewhere")}
    assert session("save", "mine", tmp_path / "s", *protected, env=environment).returncode == 0
    again = session("save", "mine", tmp_path / "s", *protected, env=environment)
    assert again.returncode == 2 and "exists already" in again.stderr
    done = session("load", tmp_path / "s", "--name", "yours", *protected, env=there)
    assert done.returncode == 0, done.stderr
    answer, _ = generate(serving, "three", there, "--session", "yours")
    assert answer == wanted[2]
    assert session("rm", "yours", "--insecure-clear", env=there).returncode == 0
    assert json.loads(session("ls", "--json", env=there).stdout) == []
    assert "forgotten" in serving.report.read_text()
    # The server's half is gone: the first machine's session computes everything again.
    answer, notes = generate(serving, "three", environment, "--session", "mine")
    assert answer == wanted[2] and "will be computed again" in notes
    missing = session("rm", "nobody", env=environment)
    assert missing.returncode == 2 and "no saved session" in missing.stderr


def test_chat_saves_and_loads(serving, environment):  # noqa: F811
    wanted = texts(["one", "two", "three"])
    chat = ("chat", serving.address, *RAW)
    done = run(*chat, env=environment, stdin="one\n/save mine\ntwo\n/load nobody\n")
    assert done.returncode == 2 and "no saved session 'nobody'" in done.stderr
    assert done.stdout == f"{wanted[0]}\n{wanted[1]}\n"
    done = run(*chat, env=environment, stdin="/load mine\nthree\n/quit\n")
    assert (done.returncode, done.stdout) == (0, f"{wanted[2]}\n"), done.stderr
    done = run(*chat, env=environment, stdin="/load mine\n/save again\n")
    assert done.returncode == 2 and "saved already" in done.stderr


def test_passphrases(serving, environment, session, tmp_path):  # noqa: F811
    (tmp_path / "pass").write_text("open sesame\n")
    (tmp_path / "wrong").write_text("close sesame\n")
    prompt = "one secret"  # long enough that no sealed bytes hold it by chance
    generate(serving, prompt, environment, "--session", "mine", "--passphrase-file", str(tmp_path / "pass"))
    done = run("generate", serving.address, "two", *RAW, "--session", "mine", env=environment)
    assert done.returncode == 2 and "passphrase" in done.stderr
    done = session("protect", "--passphrase-file", tmp_path / "wrong", env=environment)
    assert done.returncode == 2 and "wrong" in done.stderr
    done = session("protect", "--passphrase-file", tmp_path / "pass", env=environment)
    assert done.returncode == 0 and "file" in done.stdout
    answer, _ = generate(serving, "two", environment, "--session", "mine")
    assert answer == texts([prompt, "two"])[1]
    secret = b"".join(
        p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "config/sessions" in str(p)
    )
    assert prompt.encode() not in secret


@pytest.mark.parametrize("who", ["client", "server"])
def test_kill_9(who, model_path, tmp_path, environment, session):  # noqa: F811
    """In the middle of an answer; whoever is killed, the session goes on."""
    first = Serving(model_path, tmp_path, environment)
    arguments = [
        "generate",
        first.address,
        "one",
        "--raw",
        "--insecure-clear",
        "-n",
        "80",
        "--session",
        "mine",
    ]
    client = subprocess.Popen(
        [*BASE, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert client.stdout.read(1)  # the answer has begun
        victim = client if who == "client" else first.process
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        if who == "server":
            client.kill()
        client.communicate()
        if who == "server":
            (tmp_path / "ready.json").unlink()
            first.process.communicate()
            first = Serving(model_path, tmp_path, environment)
        listed = json.loads(session("ls", "--json", env=environment).stdout)
        assert listed[0]["tokens"] >= 4
        if listed[0]["tokens"] >= 4 + 79:
            return  # the answer was finished before the signal came
        # No answer was finished, so the conversation begins again. The session holds some of it already,
        # unless the signal fell into the middle of writing that down: then it is computed again.
        done = run(
            "generate", first.address, "one", *RAW, "--json", "--session", "mine",
            "--fingerprint", first.info["fingerprint"], env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outcome = json.loads(done.stdout)
        assert outcome["text"] == texts(["one"])[0]
    finally:
        client.kill()
        client.communicate()
        first.process.kill()
        first.process.communicate()


def test_files_that_travel(host, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(vault, "_COST", {"n": 16, "r": 8, "p": 1})
    client = host.client()
    client.keep(host.mine, "mine")
    tokens = greedy_tokens(client, PROMPT, 3)
    client.close()
    path = tmp_path / "session"
    saved = SavedSession.open(host.mine, "mine")
    with pytest.raises(UsageError, match="passphrase"):
        export_session(saved, path, "")
    export_session(saved, path, "pass")
    raw = path.read_bytes()
    with pytest.raises(UsageError, match="here already"):
        import_session(host.mine, path, "pass", "again")
    other = SessionStore(tmp_path / "other")
    damaged = {"flip": raw[:-1] + bytes([raw[-1] ^ 1]), "cut": raw[:30], "wrong": b"x" + raw}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((UsageError, CorruptFileError)):
            import_session(other, tmp_path / name, "pass", "mine")
    for passphrase in ("", "word"):
        with pytest.raises(UsageError, match="wrong"):
            import_session(other, path, passphrase, "mine")
    with pytest.raises(UsageError, match="cannot be read"):
        import_session(other, tmp_path / "nothing", "pass", "mine")
    assert other.entries() == []
    for junk in (
        b"",
        b"junk",
        portable.save({"head": saved.head.stamps}),
        portable.save({"about": saved.head.stamps}),
    ):
        with pytest.raises(CorruptFileError):
            portable._parsed(junk, path)
    import_session(other, path, "pass", "mine")
    host.mine = other
    again = host.client("mine")
    assert go_on(again, 3) == greedy(tiny_model(), PROMPT, 5)[2:] and tokens == greedy(
        tiny_model(), PROMPT, 3
    )
    again.close()
