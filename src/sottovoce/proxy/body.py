"""Reading a request's body: bounded in bytes, time and nesting, and an object of JSON or a 400."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from .fields import object_of
from .problems import Problem

MAX_BODY = 4 << 20
_PATIENCE = 30.0


async def json_body(request: Request) -> dict[str, Any]:
    """The body as an object. Problem 400, 408 or 413."""
    try:
        async with asyncio.timeout(_PATIENCE):
            raw = await _bytes(request)
    except TimeoutError:
        raise Problem(408, f"the request's body did not come within {_PATIENCE:g} seconds") from None
    except ClientDisconnect:
        raise Problem(400, "the request's body is incomplete") from None
    try:
        return object_of(json.loads(raw, parse_constant=_no_constant))
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON", code="invalid_json") from None


async def _bytes(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise Problem(413, f"the body is larger than {MAX_BODY >> 20} MiB", code="body_too_large")
        parts.append(part)
    return b"".join(parts)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
