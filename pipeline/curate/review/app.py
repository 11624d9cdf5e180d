"""The review over HTTP: the page, JSON and pictures. See `pipeline.curate.local_page`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, Field

from pipeline.curate import local_page
from pipeline.curate.local_page import CHANGES, picture
from pipeline.curate.review.session import ReviewSession
from pipeline.curate.verdicts import Verdict


class Decisions(BaseModel, frozen=True, extra="forbid"):
    """Verdicts by key; null removes one."""

    verdicts: dict[str, Verdict | None] = Field(min_length=1, max_length=1000)


_routes = APIRouter()


def make_app(sessions: dict[str, ReviewSession]) -> FastAPI:
    """The application that serves reviews, by target."""
    app = local_page.make_app(_routes, package=__package__, command="infineg review")
    app.state.sessions = sessions  # the first is the default
    return app


def _find_session(request: Request, target: str = "") -> ReviewSession:
    sessions: dict[str, ReviewSession] = request.app.state.sessions
    if target and target not in sessions:
        raise HTTPException(404, f"unknown target: this review has {', '.join(sessions)}")
    return sessions[target or next(iter(sessions))]


Session = Annotated[ReviewSession, Depends(_find_session)]


@_routes.get("/", response_class=HTMLResponse)
def show_page(request: Request, session: Session) -> str:
    state = request.app.state
    session.refresh()
    page: str = state.page.render(session=session, targets=list(state.sessions), token=state.token)
    return page


@_routes.get("/api/page/{number}")
def read_page(number: int, session: Session) -> dict[str, Any]:
    return session.page(max(number, 0))


@_routes.get("/api/undecided")
def find_undecided(session: Session, after: int = -1) -> dict[str, int | None]:
    return {"position": session.next_undecided(after)}


@_routes.get("/api/nearest/{key}")
def find_nearest(key: str, session: Session) -> list[dict[str, Any]]:
    return session.nearest(key)


@_routes.get("/suspects/{key}")
def read_suspect(key: str, session: Session) -> Response:
    return picture(session.suspect_image(key))


@_routes.get("/positives/{content_hash}")
def read_positive(content_hash: str, session: Session) -> Response:
    return picture(session.positive_image(content_hash))


@_routes.post("/api/verdicts", dependencies=CHANGES)
def save_verdicts(decisions: Decisions, session: Session) -> dict[str, Any]:
    return session.decide(decisions.verdicts)


@_routes.post("/api/apply", dependencies=CHANGES)
def apply_verdicts(session: Session) -> dict[str, int]:
    generation, num_applied = session.apply()
    return {"generation": generation.number, "num_applied": num_applied}
