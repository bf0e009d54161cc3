"""Untrusted bytes: any stream gives a frame of the expected size or an error of our tree, and never hangs."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import SottovoceError
from sottovoce.net import socket_pair
from sottovoce.net.frame import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    Kind,
    pack_error,
    pack_header,
    parse_error,
    parse_header,
)

headers = st.builds(
    lambda magic, version, kind, length: magic + bytes([version, kind]) + length.to_bytes(4, "little"),
    st.sampled_from([b"SV", b"SV", b"VS", b"\0\0"]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)),
)


@given(st.one_of(st.binary(max_size=12), headers))
def test_header_parser(raw):
    try:
        header = parse_header(raw)
    except SottovoceError:
        return
    assert header.length <= MAX_PAYLOAD and pack_header(header.kind, header.length, header.number) == raw


@given(st.binary(max_size=200))
def test_error_parser_on_noise(raw):
    assert isinstance(parse_error(raw), SottovoceError)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    )
)
def test_error_parser_on_any_json(value):
    assert isinstance(parse_error(json.dumps(value).encode()), SottovoceError)


@given(st.text())
def test_error_text_is_harmless(text):
    for error in (
        SottovoceError(text),
        parse_error(json.dumps({"error": "FrameError", "reason": text}).encode()),
    ):
        shown = str(parse_error(pack_error(error)))
        assert shown.isprintable() and len(shown) <= 600


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(headers, st.binary(max_size=40)), max_size=6), st.integers(0, 40))
def test_socket_reader_on_noise(pieces, size):
    client, server = socket_pair()
    raw = b"".join(pieces)
    client._sock.send(raw)
    client.close()
    server.timeout = 5
    try:
        for number in range(10):
            frame = server.recv(size)
            assert len(frame) == size
            consumed = HEADER_SIZE + size
            assert raw[:HEADER_SIZE] == pack_header(Kind.DATA, size, number)
            assert bytes(frame) == raw[HEADER_SIZE:consumed]
            raw = raw[consumed:]
    except SottovoceError:
        pass
    else:
        pytest.fail("ten frames out of six pieces")
    finally:
        server.close()
