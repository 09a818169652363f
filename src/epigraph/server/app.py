"""The application: routes, what every request passes before and after them, and the errors that they raise.

It knows where each part goes; it opens no socket and starts no engine.
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from epigraph.errors import UserError
from epigraph.server import completions, health, models, prefixes, tenants
from epigraph.server.edge import GONE, Edge, refuse
from epigraph.server.gate import Gate
from epigraph.server.health import Readiness
from epigraph.server.serving import Serving

_ABOUT = "Answers behind trained virtual tokens: OpenAI's routes, and those of prefixes, tenants and keys."
# Only told of in OpenAPI here: the gate reads the key.
_BEARER = HTTPBearer(auto_error=False, description="An API key.")


class _App(FastAPI):
    """With a description that has what is answered here: a field that is wrong is a 400 like all that is."""

    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        if self.openapi_schema is None:
            made = super().openapi()
            for methods in made["paths"].values():
                for told in methods.values():
                    if "HTTPValidationError" in str(told["responses"].get("422")):
                        del told["responses"]["422"]
            for name in ("HTTPValidationError", "ValidationError"):
                made["components"]["schemas"].pop(name, None)
        return self.openapi_schema or {}


def make_app(serving: Serving) -> ASGIApp:
    """All of it, around ``serving``, which whoever calls opens and closes."""
    app = _App(title="Epigraph", version="1", description=_ABOUT, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.serving, app.state.readiness = serving, Readiness(serving=serving)
    for routes in (completions, models, prefixes, tenants):
        app.include_router(routes.router, dependencies=[Depends(_BEARER)])
    app.include_router(health.router)
    for kind in (UserError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(ClientDisconnect, _nobody_there)
    return Edge(Gate(app, serving), serving)


async def _nobody_there(request: Request, gone: Exception) -> Response:
    return Response(status_code=GONE)
