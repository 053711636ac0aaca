"""The memory that requests may take together: who gets it, who does not, and that all of it comes back."""

from __future__ import annotations

import json
import sys
import threading
import unittest
from typing import Any

from inferless_shim.budget import LEFT, SMALL, Budget, Hold
from inferless_shim.errors import ContentTooLarge, Unavailable
from inferless_shim.weights import READING, Weight

from .support import Client, FakeApp, Puppet, TestCase, ask, eventually, request_bytes, serving_app

MIB = 1024 * 1024


class HoldTests(unittest.TestCase):
    def setUp(self) -> None:
        self.budget = Budget(4 * MIB)
        self.room = 4 * MIB - 4 * MIB // LEFT  # for large ones

    def hold(self, size: int) -> Hold:
        hold = self.budget.hold()
        hold.cover(size)
        return hold

    def test_cover_takes_what_is_lacking(self) -> None:
        """A hold grows to what it is asked to cover, never shrinks by that, and gives all back once."""
        hold = self.hold(1000)
        hold.cover(3000)
        hold.cover(2000)
        self.assertEqual((self.budget.held, hold.size), (3000, 3000))
        hold.release()
        hold.release()
        self.assertEqual((self.budget.held, hold.size), (0, 0))

    def test_cover_without_room(self) -> None:
        """What does not fit now is 503 with Retry-After, and leaves the hold as it was; once there is room it fits."""
        first, second = self.hold(self.room - MIB), self.hold(MIB)
        with self.assertRaises(Unavailable) as caught:
            second.cover(MIB + 1)
        self.assertIn("Retry-After", dict(caught.exception.headers))
        self.assertEqual((self.budget.held, second.size), (self.room, MIB))
        first.release()
        second.cover(2 * MIB)
        self.assertEqual(self.budget.held, 2 * MIB)

    def test_cover_what_never_fits(self) -> None:
        """What is more than a large hold may ever have is 413, even if nobody holds anything."""
        hold = self.budget.hold()
        hold.cover(self.room)
        self.assertRaises(ContentTooLarge, hold.cover, self.room + 1)
        self.assertEqual(self.budget.held, self.room)

    def test_cover_small(self) -> None:
        """Large holds leave a part to small ones, which may take all there is."""
        self.hold(self.room)
        small = [self.hold(SMALL) for _ in range(MIB // SMALL)]
        self.assertEqual(self.budget.held, self.budget.total)
        self.assertRaises(Unavailable, self.hold, 1)
        small[0].release()
        self.assertRaises(Unavailable, self.hold, SMALL + 1)
        self.hold(1)

    def test_require_takes_nothing(self) -> None:
        """`require` raises what `cover` would, and takes nothing."""
        hold = self.hold(self.room)
        self.assertRaises(Unavailable, self.budget.hold().require, SMALL + 1)
        self.assertRaises(ContentTooLarge, self.budget.hold().require, self.room + 1)
        hold.release()
        self.budget.hold().require(self.room)
        self.assertEqual(self.budget.held, 0)

    def test_hand_over(self) -> None:
        """What is handed over is what the values keep; the rest is given back by the one who had the peak."""
        hold = self.hold(1000)
        hold.weigh(Weight(5000, 700))
        hold.weigh(Weight(2000, 100))
        self.assertEqual(self.budget.held, 7000)
        kept = hold.hand_over()
        self.assertEqual(self.budget.held, 7000)
        hold.release()
        self.assertEqual((self.budget.held, kept.size), (800, 800))
        kept.release()
        self.assertEqual(self.budget.held, 0)

    def test_any_number_of_threads(self) -> None:
        """Holds of many threads never exceed the budget together, and at the end nothing is held."""
        highest = []

        def work() -> None:
            for size in range(SMALL, 20 * SMALL, 1000):
                hold = self.budget.hold()
                try:
                    hold.cover(size)
                    hold.cover(2 * size)
                except Unavailable:
                    pass
                highest.append(self.budget.held)
                hold.release()

        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertLessEqual(max(highest), self.room)
        self.assertEqual(self.budget.held, 0)


class EveryEndTests(TestCase):
    """However a request ends, what it held comes back."""

    def setUp(self) -> None:
        self.puppet = Puppet()
        self.server = self.serve(
            self.puppet.infer, body_total=4 * MIB, max_body=4 * MIB // 6, queue=2, linger=0.05, retention=5
        )
        self.budget = self.server.service.budget
        self.body = {"TEXT": "x" * 100_000}

    def post(self, body: Any = None, **fields: str) -> Client:
        """Post on a connection of its own, which is left open."""
        client = Client(self.server.port)
        self.addCleanup(client.__exit__)
        client.send(request_bytes("POST", "/infer", self.body if body is None else body, fields))
        return client

    def all_back(self) -> None:
        eventually(lambda: self.budget.held == 0, what="nothing is held")

    def occupy(self) -> Client:
        """Have the one slot taken; return whose stream runs."""
        begun = len(self.puppet.inputs)
        client = self.post()
        eventually(lambda: len(self.puppet.inputs) > begun)
        return client

    def test_held_while_it_runs(self) -> None:
        """A job holds what its inputs keep, not what it took to read them, from the queue to the end of infer."""
        self.occupy()
        eventually(lambda: 100_000 <= self.budget.held < 120_000, what="the inputs of one job")
        self.post()
        eventually(lambda: 200_000 <= self.budget.held < 240_000, what="the inputs of two jobs")
        self.puppet.end()
        eventually(lambda: 100_000 <= self.budget.held < 120_000, what="those of the second one")
        self.puppet.end()
        self.all_back()

    def test_infer_raises(self) -> None:
        """An app that raises gives back what its request held."""
        self.occupy()
        self.puppet.fail(ValueError("no"))
        self.all_back()

    def test_refused_requests(self) -> None:
        """Wrong inputs, no JSON, no such path, too large a body: nothing stays held."""
        for body in ({"TEXT": [1] * 50_000}, b"[" * 50_000, b'{"TEXT": "' + b"x" * 200_000, b"x" * 2 * MIB):
            self.assertIn(ask(self.server.port, "POST", "/infer", body).status, (400, 413))
        self.assertEqual(ask(self.server.port, "POST", "/nothing", self.body).status, 404)
        self.all_back()

    def test_cut_in_a_body(self) -> None:
        """A client that leaves in the middle of its body held what had come, and no more."""
        whole = request_bytes("POST", "/infer", b"x" * 600_000)
        client = Client(self.server.port)
        client.send(whole[: 300_000 + whole.index(b"\r\n\r\n") + 4])
        eventually(lambda: self.budget.held == 300_000 * READING, what="what has come is held")
        client.__exit__()
        self.all_back()

    def test_full_queue(self) -> None:
        """A request that is told that the queue is full holds nothing."""
        clients = [self.occupy(), self.post(), self.post()]
        eventually(lambda: self.server.service.engine.position(self.server.service.store.running()[-1]) == 2)
        held = eventually(lambda: 300_000 <= self.budget.held < 360_000 and self.budget.held)
        self.assertEqual(ask(self.server.port, "POST", "/infer", self.body).status, 503)
        eventually(lambda: self.budget.held == held, what="only the jobs hold anything")
        for client in clients:
            client.__exit__()
        self.all_back()

    def test_cancelled_in_the_queue(self) -> None:
        """A job that is cancelled while it waits gives back what it held, though nobody runs it."""
        self.occupy()
        waiting = self.post(Prefer="respond-async")
        stream = json.loads(waiting.read_until(b"}").partition(b"\r\n\r\n")[2])["stream"]
        eventually(lambda: 200_000 <= self.budget.held < 240_000)
        self.assertEqual(ask(self.server.port, "DELETE", f"/streams/{stream}").status, 204)
        eventually(lambda: self.budget.held < 120_000, what="only the job that runs holds anything")
        self.puppet.end()
        self.all_back()

    def test_gone_while_it_waits(self) -> None:
        """The job of a client that does not come back gives back what it held."""
        running = self.occupy()
        self.post().__exit__()
        running.__exit__()
        self.all_back()

    def test_same_idempotency_key(self) -> None:
        """A repeated POST holds nothing beside the job that the first one started."""
        first = self.post(**{"Idempotency-Key": "k"})
        first.read_until(b"\r\n\r\n")
        eventually(lambda: 100_000 <= self.budget.held < 120_000)
        again = self.post(**{"Idempotency-Key": "k"})
        again.read_until(b"\r\n\r\n")
        eventually(lambda: 100_000 <= self.budget.held < 120_000)
        self.puppet.end()
        self.all_back()

    def test_no_room(self) -> None:
        """Past the budget a request is told 503 before its body is asked for, and a small one still comes through."""
        hold = self.budget.hold()
        hold.cover(3 * MIB)
        with Client(self.server.port) as client:
            client.send(request_bytes("POST", "/infer", None, {"Content-Length": "100000", "Expect": "100-continue"}))
            refused = client.read_until(b"\r\n\r\n")
        self.assertTrue(refused.startswith(b"HTTP/1.1 503 "), refused)
        self.assertIn(b"\r\nRetry-After: ", refused)
        self.puppet.end()
        self.assertEqual(ask(self.server.port, "POST", "/infer", {"TEXT": "small"}).status, 200)
        hold.release()
        self.all_back()

    def test_no_room_in_the_middle(self) -> None:
        """A chunked body, whose size nobody announces, is refused where it finds no room."""
        hold = self.budget.hold()
        hold.cover(3 * MIB)
        with Client(self.server.port) as client:
            client.send(b"POST /infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            self.assertTrue(client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 503 "))
        hold.release()
        self.all_back()

    def test_values_that_weigh_too_much(self) -> None:
        """A body is refused for what its values would take, however few its bytes: 413 if they never fit."""
        lists = b'{"TEXT": [' + b"[]," * 30_000 + b"[]]}"
        answer = ask(self.server.port, "POST", "/infer", lists)
        self.assertEqual(answer.status, 413, answer.body)
        self.assertIn("--body-total", answer.json["error"])
        text = {"TEXT": json.dumps([[]] * 30_000)}  # the same in a text, which stays one
        self.puppet.end()
        self.assertEqual(ask(self.server.port, "POST", "/infer", text).status, 200)
        self.all_back()


class AnswerTests(TestCase):
    def test_slow_reader(self) -> None:
        """An answer that its client does not take is held until it is left, beside others that were made.

        None is thrown away because others hold the room: it is sent, and it is the next request that waits.
        """
        size = 12 * MIB  # more than the kernel's buffers take

        def infer(inputs: dict[str, Any]) -> dict[str, Any]:
            return {"OUT": "x" * size}

        server = self.serve(infer, streaming=False, body_total=20 * MIB, stall=0.5)
        budget = server.service.budget
        with Client(server.port, receive_buffer=4096) as client:
            client.send(request_bytes("POST", "/infer", {"TEXT": "a"}))
            eventually(lambda: size < budget.held < 1.1 * size, what="the answer is held, and no copy")
            with Client(server.port, receive_buffer=4096) as other:
                other.send(request_bytes("POST", "/infer", {"TEXT": "b"}))
                eventually(lambda: budget.held > 2 * size, what="the second is held beside it")
                self.assertTrue(other.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 "))
                refused = ask(server.port, "POST", "/infer", {"TEXT": "c"})
                self.assertEqual(refused.status, 503)
                self.assertIn("retry-after", refused.fields)
            eventually(lambda: budget.held == 0, what="who takes nothing is left")
        self.assertEqual(len(ask(server.port, "POST", "/infer", {"TEXT": "d"}).body), size + 10)


class BatchTests(TestCase):
    def test_batch(self) -> None:
        """The jobs of a batch that raised hold on until each was run alone."""
        seen: list[int] = []

        def infer(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
            seen.append(server.service.budget.held)
            if len(batch) > 1:
                raise ValueError("not together")
            return [{"OUT": len(batch[0]["TEXT"])}]

        with serving_app(FakeApp(infer, streaming=False, batch_size=2, batch_window=10_000)) as server:
            statuses: list[int] = []
            body = {"TEXT": "x" * 100_000}
            threads = [
                threading.Thread(target=lambda: statuses.append(ask(server.port, "POST", "/infer", body).status))
                for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(statuses, [200, 200])
            self.assertEqual(len(seen), 3)
            self.assertGreaterEqual(min(seen[:2]), 200_000)
            self.assertTrue(100_000 <= seen[2] < 200_000, seen)
            eventually(lambda: server.service.budget.held == 0)


if __name__ == "__main__":
    unittest.main()
