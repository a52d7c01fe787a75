from __future__ import annotations

import asyncio
import os
import signal
import threading

from enabler.mailbox import Mailbox

MANY = 5_000


def test_a_signal_is_not_lost_among_many_letters() -> None:
    """The loop is busy while thousands are posted and a signal comes: all arrive, in order."""
    found: list[int] = []

    async def play() -> None:
        loop = asyncio.get_running_loop()
        stop, last = asyncio.Event(), asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, stop.set)
        mailbox = Mailbox(loop)

        def post() -> None:
            for number in range(MANY):
                mailbox.post(found.append, number)
            mailbox.post(last.set)

        poster = threading.Thread(target=post)
        poster.start()
        poster.join()  # in the loop's own thread, which so does nothing else
        os.kill(os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(60):
            await stop.wait()
            await last.wait()

    asyncio.run(play())
    assert found == list(range(MANY))


def test_a_letter_that_fails_takes_no_other_with_it() -> None:
    async def play() -> list[str]:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        mailbox, found = Mailbox(loop), asyncio.Event()
        mailbox.post(int, "none")
        mailbox.post(found.set)
        async with asyncio.timeout(60):
            await found.wait()
        return ["arrived"]

    assert asyncio.run(play()) == ["arrived"]
