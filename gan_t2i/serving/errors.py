"""Errors in OpenAI's envelope, ``{"error": {message, type, param, code}}``, which its clients turn into exceptions of their own."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter", "json_invalid": "invalid_json"}


class AsciiJSONResponse(JSONResponse):
    """JSON with escapes for all that is not ASCII, so that half a character in a value that is sent back does not fail."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content).encode()


class ApiError(Exception):
    """An answer other than a success. It is no ValueError, which pydantic would wrap."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    @property
    def envelope(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> AsciiJSONResponse:
        """Return the answer."""
        return AsciiJSONResponse(self.envelope, self.status, headers=dict(self.headers or {}))


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """Return the error of a parameter with a value that is not allowed."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def from_validation(error: RequestValidationError) -> ApiError:
    """Return the first fault of a request. Values are not repeated."""
    fault = error.errors()[0]
    code = _CODES.get(fault["type"], "invalid_value")
    if len(fault["loc"]) < 2 or code == "invalid_json":  # the body itself
        return ApiError(400, "the body must be a JSON object, sent with Content-Type: application/json", code="invalid_json")
    param = ".".join(map(str, fault["loc"][1:]))
    message = "there is no such parameter" if code == "unknown_parameter" else str(fault["msg"])
    return invalid(param, message, code)
