"""The web server around the app: which errors are told, and which web pages may read from it."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.middleware import Middleware

from lib import errors


def prepare(server: FastAPI, origins: str = "") -> None:
    """Set up the web server.

    MONAI Label starts the app when the middleware is built already; without it the next request builds it anew.

    Args:
        server: MONAI Label's.
        origins: web pages that may read from this server beside its own, with commas. By itself MONAI Label lets every
            page do so that an annotator has open, and cannot start if its own setting for that is given.
    """
    allowed = [one.strip() for one in origins.split(",") if one.strip()]
    server.user_middleware = [one for one in server.user_middleware if one.cls is not CORSMiddleware]
    if allowed:
        server.user_middleware.append(Middleware(CORSMiddleware, allow_origins=allowed, allow_methods=["*"],
                                                 allow_headers=["*"]))
    errors.install(server)
    server.middleware_stack = None
