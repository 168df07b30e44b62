"""Client of Cellar: trained recurrent networks over gRPC, whose hidden state the server keeps."""

from cellar_client.aio import AsyncClient, AsyncFrameStream, AsyncGeneration, AsyncSession
from cellar_client.beams import Beam, async_beam_search, beam_search
from cellar_client.client import Client, FrameStream, Generation, Session
from cellar_client.credentials import Credentials
from cellar_client.emissions import Emissions
from cellar_client.errors import (
    AnswerExpired,
    CellarError,
    DeadlineExceeded,
    ModelNotFound,
    NonFiniteInput,
    NotAllowed,
    Overloaded,
    PositionConflict,
    PositionGap,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    ShapeMismatch,
    StaleHandle,
    Unauthenticated,
    Unavailable,
)
from cellar_client.frame import FrameAnswer
from cellar_client.messages import ModelInfo, SessionInfo, Token
from cellar_client.surprisal import Surprisal

__all__ = [
    "AnswerExpired",
    "AsyncClient",
    "AsyncFrameStream",
    "AsyncGeneration",
    "AsyncSession",
    "Beam",
    "CellarError",
    "Client",
    "Credentials",
    "DeadlineExceeded",
    "Emissions",
    "FrameAnswer",
    "FrameStream",
    "Generation",
    "ModelInfo",
    "ModelNotFound",
    "NonFiniteInput",
    "NotAllowed",
    "Overloaded",
    "PositionConflict",
    "PositionGap",
    "Session",
    "SessionClosed",
    "SessionExists",
    "SessionExpired",
    "SessionInfo",
    "SessionNotFound",
    "ShapeMismatch",
    "StaleHandle",
    "Surprisal",
    "Token",
    "Unauthenticated",
    "Unavailable",
    "async_beam_search",
    "beam_search",
]
