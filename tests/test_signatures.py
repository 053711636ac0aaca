"""Promises about how `infer` and `finalize` are called, whatever parameters they have."""

from __future__ import annotations

import asyncio
import functools
import unittest
from typing import Any

from inferless_shim.loops import close_event_loop
from inferless_shim.signatures import call_as_declared, how_infer_is_called
from tests.support import TestCase

NAMES = ("prompt", "image_url")
INPUTS = {"prompt": "p", "image_url": "u"}
HANDLER = "the handler"


# Each returns what it was given: that is what the tests look at.
class App:
    def __init__(self, factor: int = 1) -> None:
        self.factor = factor

    def one(self, inputs):
        return (inputs,)

    def one_of_any_name(self, anything):
        return (anything,)

    def one_called_like_an_input(self, prompt):
        return (prompt,)

    def one_with_a_default(self, inputs=None):
        return (inputs,)

    def one_positional_only(self, inputs, /):
        return (inputs,)

    def two(self, inputs, stream_output_handler):
        return (inputs, stream_output_handler)

    def two_called_like_inputs(self, prompt, handler):
        return (prompt, handler)

    def two_positional_only(self, inputs, handler, /):
        return (inputs, handler)

    def two_with_a_default(self, inputs, handler=None):
        return (inputs, handler)

    def any_number(self, *args):
        return args

    def by_name(self, prompt, image_url):
        return (prompt, image_url)

    def by_name_with_a_default(self, prompt, image_url="none"):
        return (prompt, image_url)

    def by_name_alone(self, *, prompt, image_url=None):
        return (prompt, image_url)

    def by_name_with_handler(self, prompt, image_url, stream_output_handler):
        return (prompt, image_url, stream_output_handler)

    def by_name_with_any_handler(self, image_url, prompt, out):
        return (image_url, prompt, out)

    def any_name(self, **kwargs):
        return kwargs

    @staticmethod
    def static(inputs):
        return (inputs,)

    @staticmethod
    def static_two(inputs, handler):
        return (inputs, handler)

    @classmethod
    def of_class(cls, inputs):
        return (cls, inputs)


def called(infer: Any, inputs: dict[str, Any] = INPUTS, *, streaming: bool, names: Any = NAMES) -> Any:
    return how_infer_is_called(infer, names, streaming=streaming)(infer, inputs, HANDLER)


class InferTest(TestCase):
    def test_plain_apps_get_their_inputs(self):
        """The inputs as one object, or by name where the parameters have the inputs' names; no handler."""
        app = App()
        for infer, given in (
            (app.one, (INPUTS,)),
            (app.one_of_any_name, (INPUTS,)),
            (app.one_called_like_an_input, (INPUTS,)),
            (app.one_with_a_default, (INPUTS,)),
            (app.one_positional_only, (INPUTS,)),
            (app.two_with_a_default, (INPUTS, None)),
            (app.any_number, (INPUTS,)),
            (app.by_name, ("p", "u")),
            (app.by_name_with_a_default, ("p", "u")),
            (app.by_name_alone, ("p", "u")),
            (app.any_name, INPUTS),
            (app.static, (INPUTS,)),
            (app.of_class, (App, INPUTS)),
            (functools.partial(App.one, app), (INPUTS,)),
            (functools.wraps(app.by_name)(lambda *args, **kwargs: app.by_name(*args, **kwargs)), ("p", "u")),
        ):
            with self.subTest(getattr(infer, "__name__", infer)):
                self.assertEqual(called(infer, streaming=False), given)

    def test_streaming_apps_get_the_handler_too(self):
        """In the second place, or by its name where inputs go by name; one that has no place for it goes without."""
        app = App()
        for infer, given in (
            (app.one, (INPUTS,)),
            (app.two, (INPUTS, HANDLER)),
            (app.two_called_like_inputs, (INPUTS, HANDLER)),
            (app.two_positional_only, (INPUTS, HANDLER)),
            (app.two_with_a_default, (INPUTS, HANDLER)),
            (app.any_number, (INPUTS, HANDLER)),
            (app.by_name, ("p", "u")),
            (app.by_name_with_handler, ("p", "u", HANDLER)),
            (app.by_name_with_any_handler, ("u", "p", HANDLER)),
            (app.static, (INPUTS,)),
            (app.static_two, (INPUTS, HANDLER)),
        ):
            with self.subTest(getattr(infer, "__name__", infer)):
                self.assertEqual(called(infer, streaming=True), given)

    def test_plain_infer_that_needs_a_handler_gets_one(self):
        """An app that takes the handler without saying that it streams is not refused for that."""
        self.assertEqual(called(App().two, streaming=False), (INPUTS, HANDLER))

    def test_absent_optional_inputs_by_name_are_none_or_their_default(self):
        """What the client left out is the parameter's default, and None where it has none."""
        app, given = App(), {"prompt": "p"}
        self.assertEqual(called(app.by_name, given, streaming=False), ("p", None))
        self.assertEqual(called(app.by_name_with_a_default, given, streaming=False), ("p", "none"))
        self.assertEqual(called(app.by_name_alone, given, streaming=False), ("p", None))
        self.assertEqual(called(app.by_name_with_handler, given, streaming=True), ("p", None, HANDLER))
        self.assertEqual(called(app.any_name, given, streaming=False), given)

    def test_infer_that_takes_nothing_is_a_type_error(self):
        """Without a parameter for the inputs, or without even self."""

        class Without:
            def only_self(self):
                pass

            def nothing():
                pass

            def inputs_for_self(inputs):
                pass

        app = Without()
        for infer in (app.only_self, app.nothing, app.inputs_for_self):
            with self.subTest(infer.__name__), self.assertRaises(TypeError):
                how_infer_is_called(infer, NAMES, streaming=False)

    def test_coroutines_and_generators_are_returned_as_they_are(self):
        """Who calls brings them to their end."""

        async def infer(inputs):
            return inputs

        def generator(inputs):
            yield inputs

        coroutine = called(infer, streaming=False)
        self.assertEqual(asyncio.run(coroutine), INPUTS)
        self.assertEqual(list(called(generator, streaming=False)), [INPUTS])

    def test_handler_that_is_keyword_only_is_passed(self):
        """REPORTED: `infer(self, *, prompt, stream_output_handler)` is called without its handler."""

        def infer(*, prompt, stream_output_handler):
            return (prompt, stream_output_handler)

        self.assertEqual(called(infer, {"prompt": "p"}, streaming=True), ("p", HANDLER))

    def test_parameter_with_a_default_that_is_no_input_leaves_the_others_by_name(self):
        """REPORTED: `infer(self, prompt, image_url, seed=0)`, seed not in the schema, is called with one dict."""

        def infer(prompt, image_url, seed=0):
            return (prompt, image_url, seed)

        self.assertEqual(called(infer, streaming=False), ("p", "u", 0))

    def test_first_input_by_name_and_the_others_as_keywords(self):
        """REPORTED: `infer(self, prompt, **others)` gets the whole dict as `prompt`."""

        def infer(prompt, **others):
            return (prompt, others)

        self.assertEqual(called(infer, streaming=False), ("p", {"image_url": "u"}))


class CallAsDeclaredTest(TestCase):
    def test_methods_get_as_many_arguments_as_they_need(self):
        """Nothing, one argument, or several; what has a default, and what takes any number, is left alone."""

        class Methods:
            def plain(self):
                return ()

            def one(self, args):
                return (args,)

            def one_with_a_default(self, context="own"):
                return (context,)

            def two(self, args, more):
                return (args, more)

            def any_number(self, *args, **kwargs):
                return (args, kwargs)

            def keyword_only(self, *, context="own"):
                return (context,)

            def no_self():
                return ("no self",)

            @staticmethod
            def static():
                return ("static",)

            async def later(self):
                await asyncio.sleep(0)
                return ("later",)

        methods = Methods()
        self.addCleanup(close_event_loop)
        for name, given in (
            ("plain", ()),
            ("one", (None,)),
            ("one_with_a_default", ("own",)),
            ("two", (None, None)),
            ("any_number", ((), {})),
            ("keyword_only", ("own",)),
            ("no_self", ("no self",)),
            ("static", ("static",)),
            ("later", ("later",)),
        ):
            with self.subTest(name):
                self.assertEqual(call_as_declared(getattr(methods, name)), given)


if __name__ == "__main__":
    unittest.main()
