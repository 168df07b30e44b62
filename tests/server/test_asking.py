"""What a generation's reader gets from the engine's replies, and what the engine is told of it."""

import asyncio

import pytest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.sampling_pb2 import FINISH_END
from cellar_server.errors import CellarError
from cellar_server.front.asking import CREDITS, generate
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.messages import Cancel, Credit, GenerateReply, GenerateRequest

OPTIONS = Options(0.0, 0, 0.0, 7, 60)


class Engine:
    """Keeps what was posted to it."""

    def __init__(self):
        self.posted = []

    def post(self, request):
        self.posted.append(request)

    def say(self, *replies):
        for reply in replies:
            self.posted[0].to.receive(reply)


def word(position, **more):
    return GenerateReply(None, [position], [-1.0], b"w", position, 7, **more)


def run(coroutine):
    async def begun():
        return await coroutine()

    return asyncio.run(begun())


async def begin(engine, **options):
    """A generation's replies, once the engine was asked for it."""
    replies = generate(engine, b"", b"", OPTIONS, **options)
    first = asyncio.ensure_future(anext(replies))
    await asyncio.sleep(0)
    assert isinstance(engine.posted[0], GenerateRequest)
    return replies, first


def test_emissions_that_waited_for_their_reader_are_one_reply():
    async def read():
        engine = Engine()
        replies, first = await begin(engine, joins=True)
        engine.say(word(0), word(1))
        got = [await first]
        engine.say(word(2), GenerateReply(None, [], [], b"", 3, 7, finish=FINISH_END))
        return got + [reply async for reply in replies]

    got = run(read)
    assert [(reply.position, reply.ids, reply.text, reply.finish) for reply in got] == [
        (0, [0, 1], b"ww", 0),
        (2, [2], b"w", FINISH_END),
    ]
    assert [len(reply.log_probabilities) for reply in got] == [2, 1]


def test_each_is_a_reply_of_its_own_where_nothing_is_joined():
    async def read():
        engine = Engine()
        replies, first = await begin(engine)
        engine.say(word(0), word(1), word(2, finish=FINISH_END))
        return [await first] + [reply async for reply in replies]

    assert [reply.ids for reply in run(read)] == [[0], [1], [2]]


def test_what_came_before_an_error_is_given_first():
    async def read():
        engine = Engine()
        replies, first = await begin(engine, joins=True)
        error = CellarError(Reason.INTERNAL, "no")
        engine.say(word(0), word(1), GenerateReply(None, [], [], b"", 2, 7, error=error))
        assert (await first).ids == [0, 1]
        with pytest.raises(CellarError, match="no"):
            await anext(replies)
        assert len(engine.posted) == 1

    run(read)


def test_the_engine_is_told_before_it_has_to_wait_and_of_all_that_was_taken():
    async def read():
        engine = Engine()
        replies, first = await begin(engine)
        engine.say(word(0))
        await first
        for position in range(1, 3 * CREDITS):
            engine.say(word(position))
            await anext(replies)
        credits = [each.count for each in engine.posted if isinstance(each, Credit)]
        # it may be CREDITS ahead of what it was told of
        assert 3 * CREDITS - 1 - sum(credits) < CREDITS
        assert len(credits) < 3 * CREDITS / 8
        await replies.aclose()
        assert isinstance(engine.posted[-1], Cancel)

    run(read)
