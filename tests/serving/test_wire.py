"""Calls between two processes: many at once, failures, callers that leave, and a process that dies."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError

from rayembed.serving.wire import CallClient, CallServer


class Target:
    def __init__(self):
        self.cancelled = False

    async def double(self, value, seconds=0.0):
        await asyncio.sleep(seconds)
        return value * 2

    async def fail(self):
        raise KeyError("inside")

    async def no_message(self):
        return lambda: None

    async def wait(self):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def connected(target):
    return await CallClient.connect(await CallServer(target).listen())


def test_answers_find_their_callers_whatever_their_order():
    async def scenario():
        client = await connected(Target())
        large = b"x" * 2**20
        return await asyncio.gather(
            client.call("double", 1, 0.05), client.call("double", large), client.call("double", 3)
        )

    first, large, third = asyncio.run(scenario())
    assert (first, len(large), third) == (2, 2**21, 6)


def test_failures_and_callers_that_leave():
    async def scenario():
        target = Target()
        client = await connected(target)
        with pytest.raises(RuntimeError, match="KeyError: 'inside'"):
            await client.call("fail")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.call("wait"), 0.05)
        assert await client.call("double", 1) == 2
        return target.cancelled

    assert asyncio.run(scenario())


def test_a_call_ends_whatever_becomes_of_its_answer():
    async def scenario():
        server = CallServer(Target())
        client = await CallClient.connect(await server.listen())
        with pytest.raises(RuntimeError, match="lambda"):
            await client.call("no_message")
        for _ in range(3):  # the call and its end arrive together
            left = asyncio.create_task(client.call("wait"))
            await asyncio.sleep(0)
            left.cancel()
        assert await client.call("double", 1) == 2
        await asyncio.sleep(0.05)
        assert not server._running
        waiting = asyncio.create_task(client.call("wait"))
        await asyncio.sleep(0)
        client.close()
        with pytest.raises(ActorDiedError):
            await waiting

    asyncio.run(asyncio.wait_for(scenario(), 5))


def test_a_process_that_dies_fails_every_call():
    async def scenario():
        async def dying(reader, writer):
            await reader.readexactly(8)
            writer.close()

        server = await asyncio.start_server(dying, "127.0.0.1", 0)
        client = CallClient(*await asyncio.open_connection(*server.sockets[0].getsockname()))
        answers = await asyncio.gather(*(client.call("double", 1) for _ in range(3)), return_exceptions=True)
        with pytest.raises(ActorDiedError):
            await client.call("double", 1)
        return answers

    assert all(isinstance(answer, ActorDiedError) for answer in asyncio.run(scenario()))
