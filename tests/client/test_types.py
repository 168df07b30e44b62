"""What the clients' verbs give, as type checkers see it: `make lint` checks this file, and it runs besides."""

from __future__ import annotations

from typing import assert_type

import cellar_client
import numpy as np
from cellar_client import AsyncClient, CellarError, Client, Emissions


def test_the_client(address: str) -> None:
    with Client(address) as client:
        assert_type(client, Client)
        assert_type(client.models(), list[cellar_client.ModelInfo])
        assert_type(client.predict("counter", [1, 2]), Emissions)
        assert_type(client.predict_many("counter", [[1, 2]], bulk=True), list[Emissions | CellarError])
        assert_type(client.is_serving(timeout=5.0), bool)
        with client.session("counter", keep=False) as session:
            assert_type(session, cellar_client.Session)
            assert_type(session.step([1, 2], timeout=5.0), Emissions)
            assert_type(session.info(), cellar_client.SessionInfo)
            assert_type(session.state(), dict[str, np.ndarray])
            with session.fork() as fork:
                assert_type(fork, cellar_client.Session)
            assert_type(client.resume(session.id), cellar_client.Session)
        with client.stream("counter") as stream:
            assert_type(stream, cellar_client.FrameStream)
            assert_type(stream.open(1), list[str])
            assert_type(stream.step(np.ones((1, 2))), cellar_client.FrameAnswer)
            stream.close_sessions()
        with client.generate("counter", "x", seed=1) as generation:
            assert_type(generation, cellar_client.Generation)
            assert_type(generation.finish, str)


async def test_the_asynchronous_client(address: str) -> None:
    async with AsyncClient(address) as client:
        assert_type(client, AsyncClient)
        assert_type(await client.models(), list[cellar_client.ModelInfo])
        assert_type(await client.predict("counter", [1, 2]), Emissions)
        async with await client.session("counter", keep=False) as session:
            assert_type(session, cellar_client.AsyncSession)
            assert_type(await session.step([1, 2], timeout=5.0), Emissions)
            async with await session.fork() as fork:
                assert_type(fork, cellar_client.AsyncSession)
        async with await client.stream("counter") as stream:
            assert_type(stream, cellar_client.AsyncFrameStream)
            assert_type(await stream.open(1), list[str])
            await stream.close_sessions()
        async with client.generate("counter", "x", seed=1) as generation:
            assert_type(generation, cellar_client.AsyncGeneration)
