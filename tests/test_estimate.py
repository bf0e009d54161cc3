"""`sottovoce estimate`: sound figures for any model's shapes, and words that follow from them."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from sottovoce.cli.estimate import estimate as command
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.estimates import NAMED, Network, Phase
from sottovoce.engines.registry import make_engine
from sottovoce.errors import (
    CorruptFileError,
    PromptTooLongError,
    UnknownModelError,
    UnsupportedModelError,
    UsageError,
)
from sottovoce.models.describe import describe_model
from sottovoce.models.nearest import nearest_model
from sottovoce.models.shapes import SHAPES
from sottovoce.net import run_pair, socket_pair
from sottovoce.parties import Client, Welcome, Wish
from sottovoce.parties.estimate import estimate, typical
from sottovoce.parties.forecast import Course
from sottovoce.parties.machine import MachineSpeed
from sottovoce.parties.session import ServerSession
from sottovoce.parties.spread import Nodes, pass_share, spread
from tiny_model import CONFIG, save_tiny_model, tiny_model

COURSE = Course(public=2, private=5, new=4)


@pytest.fixture
def config_file(tmp_path):
    """A Hugging Face config.json alone, as anybody can fetch it."""
    whole = save_tiny_model(tmp_path)
    file = tmp_path / "only" / "config.json"
    file.parent.mkdir()
    file.write_text((whole / "config.json").read_text())
    return file


def run(*arguments):
    done = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done


def test_clear_sessions_to_the_byte():
    engine = make_engine(EngineOptions(engine="clear"), tiny_model())
    engine.prepare()
    welcome = Welcome(engine.options, engine.public(), engine._model.card)

    def server(channel):
        ServerSession(channel, engine.session, welcome).run()

    def client(channel):
        with Client(channel, Wish(engine="clear")) as session:
            session.setup()
            session.prefill([1, 2], [3, 4, 5, 6, 7])
            for token in (1, 2, 3):
                session.decode(token)
            return session.ledger

    ledger = run_pair(client, server, socket_pair())[0]
    for phase in estimate(typical(CONFIG), "clear", "-", COURSE).phases:
        real = ledger.total(phase.name)
        assert (phase.bytes_up, phase.bytes_down, phase.rounds) == (
            real.wire_up,
            real.wire_down,
            real.rounds,
        )


def test_phases_on_networks():
    phase = Phase("decode", 2, 1_000_000, 250_000, 100, 3.0)
    assert phase.seconds(Network("free")) == 3.0
    assert phase.seconds(Network.parse("10,100")) == pytest.approx(3.0 + 1.0 + 0.1)
    shared = Phase("prefill", 1, 0, 0, 0, compute=5.0, parallel=4.0)
    assert shared.seconds(Network("free")) == 5.0 and shared.seconds(Network("free"), cores=4) == 2.0
    assert Network.parse("lan") == NAMED["lan"]
    for text in ("moon", "1", "1,0", "-1,5", "1,2,3", "nan,1"):
        with pytest.raises(UsageError):
            Network.parse(text)


@pytest.mark.parametrize("kv", ["ciphertext", "masked"])
def test_more_of_everything_costs_more(kv):
    public = typical(CONFIG)

    def total(*course):
        found = estimate(public, "hybrid", kv, Course(*course), MachineSpeed())
        return sum(p.bytes_up + p.bytes_down for p in found.phases)

    # Material comes in batches, so that single tokens may cost nothing more.
    assert total(2, 4, 3) < total(2, 40, 3) < total(2, 40, 40)


def test_a_bare_config_is_enough(config_file):
    arguments = [config_file, "--prompt-tokens", 5, "-n", 3, "--no-calibration", "-q", "--net", "5,500"]
    answer = json.loads(run(*arguments, "--json").stdout)
    names = [(one["engine"], one["kv"]) for one in answer["estimates"]]
    assert {("hybrid", "ciphertext"), ("hybrid", "masked"), ("clear", "-")} <= set(names)
    for one in answer["estimates"]:
        assert one["server_memory"] > 0 and all(phase["seconds"] > 0 for phase in one["phases"])
    assert answer["network"] == {"name": "5,500", "rtt_ms": 5.0, "mbit": 500.0} and answer["advice"]
    text = run(*arguments, "--engine", "hybrid", "--kv", "masked").stdout
    assert "prepare" in text and "fastest with cryptographic privacy" in text


def test_the_directory_and_the_file_are_the_same(config_file):
    assert describe_model(config_file) == describe_model(config_file.parent)
    assert describe_model(config_file).width == CONFIG.width


def test_what_cannot_be_estimated(config_file, tmp_path):
    with pytest.raises(PromptTooLongError):
        run(config_file, "--prompt-tokens", 96, "-n", 2, "-q")
    with pytest.raises(UnknownModelError):
        describe_model(tmp_path / "nothing" / "config.json")
    with pytest.raises(UnsupportedModelError, match="no estimates"):
        estimate(typical(CONFIG), "other", "-", COURSE)
    mamba = tmp_path / "config.json"
    mamba.write_text('{"model_type": "mamba"}')
    with pytest.raises(UnsupportedModelError, match="mamba"):
        describe_model(mamba)


def test_a_calibration_gives_speeds():
    speed = MachineSpeed.measured(1)
    assert speed.lattice > 0 and speed.transfer > 0


def test_many_machines(config_file):
    public, speed = typical(CONFIG), MachineSpeed(lattice=2.0)
    alone = estimate(public, "hybrid", "ciphertext", COURSE, speed)
    for count in (1, 4):
        nodes = Nodes(count, cores=1, rtt_ms=0.0, mbit=1e12)
        there = spread(alone, CONFIG, COURSE, nodes, speed)
        for phase, before in zip(there.phases, alone.phases, strict=True):
            assert (phase.bytes_up, phase.rounds, phase.parallel) == (
                before.bytes_up,
                before.rounds,
                before.parallel,
            )
        share = pass_share(CONFIG, 1, nodes, speed.lattice) * (COURSE.new - 1)
        # The counted work of the forecast is the planned work of the cluster, and one node makes all of it.
        assert share.alone == pytest.approx(there.phase("decode").parallel, rel=1e-3)
        assert share.seconds == pytest.approx(share.alone, rel=0.01) if count == 1 else True
        assert there.phase("decode").elsewhere == pytest.approx(share.seconds)
    far = spread(alone, CONFIG, COURSE, Nodes(4, rtt_ms=50.0), speed)
    assert far.phase("decode").elsewhere > alone.phase("decode").parallel  # it does not pay on a slow network
    ahead = replace(COURSE, prepared=9)
    prepared = spread(estimate(public, "hybrid", "masked", ahead, speed), CONFIG, ahead, Nodes(2), speed)
    assert prepared.phase("prepare").elsewhere > 0 and prepared.phase("decode").elsewhere is None
    large = SHAPES["smollm2-135m"]
    one, four = (pass_share(large, 1, Nodes(count, rtt_ms=0.0, mbit=1e12)) for count in (1, 4))
    assert one.alone == four.alone and four.shared == pytest.approx(one.shared / 4, rel=0.05)
    assert four.repeated == one.repeated  # by every worker for itself
    clear = estimate(public, "clear", "-", COURSE)
    assert spread(clear, CONFIG, COURSE, Nodes(2)) is clear


def test_many_machines_on_the_command_line(config_file):
    arguments = [config_file, "--prompt-tokens", 4, "-n", 2, "--no-calibration", "-q", "--kv", "ciphertext"]
    done = run(*arguments, "--engine", "hybrid", "--nodes", 3, "--cores-per-node", 2, "--json")
    answer = json.loads(done.stdout)
    assert answer["cluster"] == {"count": 3, "cores": 2, "rtt_ms": 0.1, "mbit": 10000.0}
    assert answer["estimates"][0]["node_memory"] > 0
    assert any("3 nodes of 2 cores" in line for line in answer["advice"])
    with pytest.raises(UsageError, match="between nodes"):
        run(*arguments, "--nodes", 3, "--cluster-net", "local")
    with pytest.raises(UsageError, match="is no network"):
        run(*arguments, "--nodes", 3, "--cluster-net", "fast")


SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"model_type": "mistral", "intermediate_size": 96, "num_key_value_heads": 2}, ("swiglu", 96, 2)),
        ({"model_type": "gemma", "intermediate_size": 96, "hidden_act": "gelu"}, ("geglu", 96, 4)),
        ({"model_type": "gpt_neox", "hidden_act": "gelu"}, ("gelu", 256, 4)),
        (
            {
                "model_type": "llama",
                "intermediate_size": 96,
                "max_position_embeddings": 128,
                "rope_scaling": {"rope_type": "llama3"},
            },
            ("swiglu", 96, 4),
        ),
        (
            {"model_type": "paligemma", "text_config": SHAPE | {"hidden_activation": "gelu"}},
            ("geglu", 256, 4),
        ),
    ],
)
def test_models_that_no_engine_runs_have_estimates(tmp_path, entries, expected):
    file = tmp_path / "config.json"
    outer = {} if "text_config" in entries else SHAPE
    file.write_text(json.dumps(outer | entries))
    shapes, assumed = nearest_model(file)
    assert (shapes.mlp, shapes.ffn_width, shapes.kv_heads) == expected
    assert entries["model_type"] in assumed


def test_what_is_assumed_is_said(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SHAPE | {"model_type": "mistral"}))
    done = run(file, "--prompt-tokens", 4, "-n", 2, "--no-calibration", "-q", "--json")
    answer = json.loads(done.stdout)
    assert not any(one["exact"] for one in answer["estimates"]) and "mistral" in answer["advice"][0]
    file.write_text(json.dumps(SHAPE | {"model_type": "mixtral", "num_local_experts": 8}))
    with pytest.raises(UnsupportedModelError, match="experts"):
        nearest_model(file)
    file.write_text("[")
    with pytest.raises(CorruptFileError):
        nearest_model(file)
