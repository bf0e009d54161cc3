"""`sottovoce verify`: who answers, with which model and engine, and what it could see."""

import json
from typing import Any

import click

from .generate import read_api_key
from .options import json_option, option


@click.command()
@click.argument("server")
@option("--model-commitment", help="Fail unless the model has this commitment; 32 digits or more.")
@option("--fingerprint", help="Fail unless the certificate has this fingerprint.")
@option("--insecure-plaintext", is_flag=True, help="The server has no TLS.")
@option("--api-key", metavar="KEY|@FILE", help="For servers that want one; @FILE reads it from a file.")
@option(
    "--client-certificate", type=click.Path(exists=True, dir_okay=False), help="For servers that want one."
)
@json_option
def verify(
    server: str,
    model_commitment: str | None,
    fingerprint: str | None,
    insecure_plaintext: bool,
    api_key: str | None,
    client_certificate: str | None,
    as_json: bool,
) -> int:
    """Ask SERVER (host:port) what it offers, and compare with what you expect. Nothing is pinned.

    A commitment says which weights the server announces; that it computes with them is nothing that this
    program can prove.
    """
    from pathlib import Path

    from ..net.tls import KnownHosts
    from ..parties.address import Address, Route
    from ..parties.paths import known_hosts_path
    from ..parties.protocol import Caller, Wish, ask_offer, check_commitment

    check_commitment(model_commitment)
    address, known = Address.parse(server), KnownHosts(known_hosts_path(), pins=False)
    pin: Any = None if insecure_plaintext else fingerprint or known
    route = Route(address, pin, None if client_certificate is None else Path(client_certificate))
    channel, identity = route.open()
    with channel:
        offer = ask_offer(channel, Wish(), Caller("describe", None, read_api_key(api_key)))
    found = {
        "server": str(address),
        "fingerprint": None if identity is None else identity.fingerprint,
        "pinned": known.lookup(address.host, address.port) is not None,
        **_described(offer),
    }
    if as_json:
        print(json.dumps(found))
    else:
        _say(found, fingerprint)
    return _judged(offer.model, model_commitment)


def _described(offer: Any) -> dict[str, Any]:
    from ..bgv import SIMD
    from ..engines.explain import engine_line, what_the_server_sees
    from ..parties.protocol import PROTOCOL, parameters_digest

    options = offer.options
    return {
        "release": offer.release,
        "protocol": PROTOCOL,
        "model_commitment": offer.model,
        "context": offer.context,
        "engine": options.engine,
        "kv": options.kv if options.engine == "hybrid" else None,
        "correlations": options.correlations,
        "profile": options.profile if options.engine == "scx" else None,
        # The engine's own statement, where it makes one (scx), compared with what this release says of it.
        "privacy": _own_statement(options, offer.public),
        "parameters": {
            "digest": parameters_digest(),
            "ring_degree": SIMD.degree,
            "modulus_bits": [int(q).bit_length() for q in SIMD.key_primes],
            "plaintext_prime": int(SIMD.plaintext),
        },
        "statement": [engine_line(options), what_the_server_sees(options)],
    }


def _own_statement(options: Any, public: dict[str, Any]) -> Any:
    if options.engine != "scx":
        return None
    from ..engines.scx import check_public

    check_public(options, public)
    return public["privacy"]


def _say(found: dict[str, Any], fingerprint: str | None) -> None:
    trust = "no TLS: anybody on the way can read and change what is sent"
    if found["fingerprint"]:
        if fingerprint:
            how = "as you asked for"
        elif found["pinned"]:
            how = "pinned here before"
        else:
            how = "not pinned yet: compare it with what `serve` printed"
        trust = f"{found['fingerprint']} ({how})"
    parameters = found["parameters"]
    print(f"server       {found['server']}, release {found['release']}, protocol {found['protocol']}")
    print(f"certificate  {trust}")
    print(f"model        {found['model_commitment']}")
    print(f"context      {found['context']} tokens")
    print(f"engine       {found['statement'][0]}")
    sizes = ", ".join(map(str, parameters["modulus_bits"]))
    print(f"parameters   N = {parameters['ring_degree']}, moduli of {sizes} bits,")
    print(f"             p = {parameters['plaintext_prime']}; the same as here")
    print(f"privacy      {found['statement'][1]}")


def _judged(model: str, expected: str | None) -> int:
    from ..errors import ModelMismatchError
    from ..parties.protocol import is_model

    if expected is not None and not is_model(model, expected):
        raise ModelMismatchError(
            f"the server's model has commitment {model:.64}, you expect {expected:.64}; do not use this"
            " server, or ask its operator which model it serves"
        )
    return 0
