"""Labelling over HTTP: the page, JSON and pictures. See `pipeline.curate.local_page`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, Field

from pipeline.curate import local_page
from pipeline.curate.label.log import LabelVerdict
from pipeline.curate.label.session import LabelSession
from pipeline.curate.local_page import CHANGES, picture


class Ratings(BaseModel, frozen=True, extra="forbid"):
    """Verdicts by content hash; null takes one back."""

    verdicts: dict[str, LabelVerdict | None] = Field(min_length=1, max_length=1000)


_routes = APIRouter()


def make_app(session: LabelSession, *, is_local: bool) -> FastAPI:
    app = local_page.make_app(
        _routes, package=__package__, command="infineg label", is_local=is_local
    )
    app.state.session = session
    return app


def _find_session(request: Request) -> LabelSession:
    session: LabelSession = request.app.state.session
    return session


Session = Annotated[LabelSession, Depends(_find_session)]


@_routes.get("/", response_class=HTMLResponse)
def show_page(request: Request, session: Session) -> str:
    session.refresh()
    state = request.app.state
    page: str = state.page.render(session=session, token=state.token)
    return page


@_routes.get("/api/state")
def read_state(session: Session) -> dict[str, Any]:
    return session.state()


@_routes.get("/api/learned")
def read_learned(session: Session) -> dict[str, Any]:
    return session.learned()


@_routes.get("/pictures/{content_hash}")
def read_picture(content_hash: str, session: Session) -> Response:
    return picture(session.picture(content_hash))


@_routes.get("/previews/{content_hash}")
def read_preview(content_hash: str, session: Session) -> Response:
    return picture(session.preview(content_hash))


@_routes.post("/api/verdicts", dependencies=CHANGES)
def save_verdicts(ratings: Ratings, session: Session) -> dict[str, Any]:
    return session.decide(ratings.verdicts)


@_routes.post("/api/next", dependencies=CHANGES)
def choose_next(session: Session) -> dict[str, Any]:
    return session.next_round()


@_routes.post("/api/apply", dependencies=CHANGES)
def apply_verdicts(session: Session) -> dict[str, int]:
    generation, number = session.apply()
    return {"generation": generation.number, "num_applied": number}
