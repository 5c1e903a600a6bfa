"""The application: the API below the guard, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from spared_fm import __version__
from spared_fm.errors import InputError
from spared_fm.explore import colours, pictures, programs, search
from spared_fm.explore.answers import ERRORS, Refused, error
from spared_fm.explore.desk import Desk
from spared_fm.explore.guard import Guard

if TYPE_CHECKING:
    from spared_fm.explore.answers import Json

STATIC = Path(__file__).parent / "static"
MAX_UPLOAD = 20 << 20
MAX_PIXELS = 25e6
_FORM = 1 << 16  # bytes of a form beside its file


def create_app(store: str | Path, *, max_upload: int = MAX_UPLOAD, max_pixels: float = MAX_PIXELS) -> FastAPI:
    """Make the application that shows a store. It only reads.

    Parameters
    ----------
    store
        The store's folder or URL.
    max_upload, max_pixels
        Most bytes, and most pixels, of a picture that is sent to be searched for.

    Returns
    -------
    FastAPI
        To be served on 127.0.0.1; its description is at ``/openapi.json``.

    Raises
    ------
    InputError
        There is no store.
    """
    app = FastAPI(
        title="spared-fm explore",
        version=__version__,
        description="A store of histology embeddings and expression, to look at and to read. Read-only, this machine only.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        responses=ERRORS,
    )
    app.state.desk = Desk(store, max_upload=max_upload, max_pixels=max_pixels)
    for part in (pictures, colours, programs, search):
        app.include_router(part.router)

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(InputError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OSError, _unreadable)
    app.add_middleware(Guard, uploads=(search.UPLOAD,), most_upload=max_upload + _FORM)
    return app


def _refused(_: Request, problem: Exception) -> Json:
    return error(problem.status if isinstance(problem, Refused) else 422, str(problem))


def _invalid(_: Request, problem: Exception) -> Json:
    """Name the first thing that is wrong, without repeating what was sent."""
    assert isinstance(problem, RequestValidationError)
    first = problem.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("query", "path"))
    return error(422, f"{place}: {first['msg']}")


def _http(_: Request, problem: Exception) -> Json:
    assert isinstance(problem, HTTPException)
    return error(problem.status_code, str(problem.detail))


def _unreadable(_: Request, problem: Exception) -> Json:
    reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else type(problem).__name__
    return error(409, f"the store changed, or a file of it can't be read ({reason}); try again")
