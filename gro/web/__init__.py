"""Pages for the browser of the person at this machine: a guarded application and the server for it."""

from gro.web.app import create_app, json_body, page
from gro.web.serve import serve

__all__ = ["create_app", "json_body", "page", "serve"]
