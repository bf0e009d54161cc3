"""Who could learn what, in words: shown before anything private is sent."""

from sottovoce.engines.base import EngineOptions

CLEAR_BANNER = (
    "engine 'clear' has NO cryptography: the server sees every token. It is for comparisons, not for secrets"
)
PLAINTEXT_BANNER = "no TLS (--insecure-plaintext): anybody on the way can read and change what is sent"
DEALER_BANNER = (
    "one-time material comes from a dealer (--insecure-dealer): whoever runs it can, together with one party,"
    " read what the other one hides. Use it only if you trust it not to collude"
)

_KV = {
    "ciphertext": "keys and values stay at the server, encrypted under your key",
    "masked": "keys and values stay at both parties, hidden by shared one-time masks",
    "none": "nothing is kept between tokens; everything is computed again",
}

_SCX = {
    "paper": "the server can read every token: attacks on this published encoding recover them",
    "hardened": "the server sees vectors under one-time masks 2^21 times as long: tokens are hidden from it, "
    "statistically",
}
# What the user's side is given; a worker keeps it from the users.
_WEIGHTS = {"paper": "embedding, head, parts of two blocks", "hardened": "all of them"}


def engine_line(options: EngineOptions) -> str:
    """One line: engine, security level, cache."""
    if options.engine == "clear":
        return f"engine clear ({options.arithmetic} arithmetic, no cryptography)"
    if options.engine == "scx":
        return f"engine scx, profile {options.profile} (no cryptography)"
    parties = "semi-honest parties"
    if options.correlations == "dealer":
        parties += " AND a dealer that colludes with neither"
    return f"engine {options.engine}, 128-bit security, {parties}; {_KV.get(options.kv, options.kv)}"


def what_the_server_sees(options: EngineOptions) -> str:
    if options.engine == "clear":
        return "the server sees every token of the prompt and of the answer"
    if options.engine == "scx":
        return _SCX.get(
            options.profile, "an unknown profile of the engine scx: assume that the server sees everything"
        )
    if options.engine == "fhe":
        return "the server sees ciphertexts under your key, never a private token"
    line = "the server sees ciphertexts under your key and uniformly random numbers, never a private token"
    if options.correlations == "dealer":
        line += "; with the help of the dealer it could see every token"
    return line


def who_learns_what(
    options: EngineOptions, public: int, private: int, new: int
) -> list[tuple[str, str, str]]:
    """Rows (what, you, server) for one answer."""
    readable = options.engine == "clear" or options.profile == "paper"
    hidden = "everything" if readable else "nothing but the number of tokens"
    return [
        (f"public prefix ({public} tokens)", "knows it", "knows it: it is public"),
        (f"private prompt ({private} tokens)", "knows it", hidden),
        (f"answer ({new} tokens)", "knows it", hidden),
        ("activations, keys, values", *(_activations(options))),
        (
            "logits of each new position",
            "all of them",
            "everything" if readable else "nothing",
        ),
        ("weights", _WEIGHTS.get(options.profile, "only what logits tell"), "owns them"),
        ("timing, sizes, architecture", "public", "public"),
    ]


def _activations(options: EngineOptions) -> tuple[str, str]:
    if options.engine == "clear":
        return "nothing", "everything"
    if options.engine == "scx":
        seen = "all of the middle blocks" if options.profile == "paper" else "vectors under one-time masks"
        return "those it computes itself", seen
    if options.engine == "fhe":
        return "nothing", "ciphertexts only"
    return "random shares only", "random shares and ciphertexts only"
