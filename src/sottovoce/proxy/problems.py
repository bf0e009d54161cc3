"""Errors as OpenAI's clients expect them: an HTTP status and an `error` object."""

from __future__ import annotations

from typing import Any

from .. import errors


class Problem(Exception):
    """What a request is answered with when it cannot be served.

    kind and code: OpenAI's `type` and `code`. retry_after: seconds, for the header of that name.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.retry_after = param, code, retry_after

    def to_json(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def wrong(param: str, message: str, code: str | None = None) -> Problem:
    """400 about one field."""
    return Problem(400, message, param=param, code=code)


def busy(seconds: int) -> Problem:
    return Problem(
        429,
        f"all sessions of this proxy are busy; try again in about {seconds} seconds, or start it with more "
        "--sessions",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after=seconds,
    )


def problem_of(error: BaseException) -> Problem:
    """What an error of the package means to an HTTP client. Texts of foreign exceptions may quote data: they
    stay here."""
    match error:
        case Problem():
            return error
        case errors.PromptTooLongError():
            return Problem(400, str(error), param="messages", code="context_length_exceeded")
        case errors.UsageError():
            return Problem(400, str(error))
        case errors.ServerBusyError():
            seconds = error.retry_after or 10
            return Problem(429, str(error), kind="rate_limit_error", code="server_busy", retry_after=seconds)
        case errors.PeerConnectionError():
            return Problem(
                503, str(error), kind="api_connection_error", code="server_unreachable", retry_after=5
            )
        case errors.RefusedError():
            return Problem(502, str(error), kind="api_error", code="refused_by_policy")
        case errors.ProtocolError():
            return Problem(502, str(error), kind="api_error", code="protocol_error")
        case _:
            return Problem(
                500,
                f"internal error of the proxy ({type(error).__name__}); this is a bug",
                kind="api_error",
                code="internal_error",
            )
