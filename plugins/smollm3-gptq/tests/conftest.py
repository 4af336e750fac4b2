"""Shared fixtures: a tiny dense model, GPTQ codes packed and unpacked in NumPy, checkpoints made of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from smollm3_gptq.options import GPTQOptions
from smollm3_gptq.quantizer import GPTQQuantizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

import smollm3_finetune
from smollm3_finetune.api import BuildContext, Purpose, directory_source
from smollm3_finetune.testing import context as plain_context

torch.set_num_threads(1)
HERE = Path(__file__).parent
TOKENIZER = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
STD = 0.08
"""Standard deviation of weights. With the usual 0.02, every layer is nearly linear, which hides errors."""


# ------------------------------------------------------------------------------- the format, in NumPy


def bits_of(words: np.ndarray) -> np.ndarray:
    """(n, m) int32 to (32 n, m): the bit stream of each column, low bits first."""
    as_bytes = np.ascontiguousarray(words.T).astype("<i4").view(np.uint8)  # (m, 4 n)
    return np.unpackbits(as_bytes, axis=1, bitorder="little").T


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """(n, m) int32 to codes (32 n / bits, m); the bit streams run down the columns."""
    stream = bits_of(words)
    pieces = stream.reshape(-1, bits, words.shape[1])
    return sum(pieces[:, k].astype(np.int64) << k for k in range(bits))


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `unpack`."""
    stream = np.stack([(codes >> k) & 1 for k in range(bits)], axis=1).reshape(-1, codes.shape[1])  # (bits n, m)
    as_bytes = np.packbits(stream.T.astype(np.uint8), axis=1, bitorder="little")
    return np.ascontiguousarray(as_bytes).view("<i4").T.copy()


def dequantized(parts: Mapping[str, np.ndarray], bits: int, *, less_one: bool, group_size: int) -> np.ndarray:
    """The weight (out, in) of one layer in float32, from its tensors.

    Source: the class `QuantLinear` of AutoGPTQ 0.7.1; v1 stores each zero point minus one, modulo 2^bits.
    """
    codes = unpack(parts["qweight"], bits)  # (in, out)
    scales = parts["scales"].astype(np.float32)  # (groups, out)
    zeros = unpack(np.ascontiguousarray(parts["qzeros"].T), bits).T[:, : scales.shape[1]]
    if less_one:
        zeros = (zeros + 1) % 2**bits
    groups = parts.get("g_idx")
    if groups is None:
        groups = np.arange(len(codes)) // (group_size if group_size > 0 else len(codes))
    weight = np.empty(codes.shape, np.float32)
    for i, g in enumerate(groups):
        weight[i] = scales[g] * (codes[i] - zeros[g]).astype(np.float32)
    return weight.T.copy()


def weights_in(directory: Path) -> dict[str, np.ndarray]:
    """The dequantized weight of each quantized layer of a checkpoint, read only from its files."""
    about = json.loads((directory / "config.json").read_text()).get("quantization_config") or json.loads(
        (directory / "quantize_config.json").read_text()
    )
    tensors: dict[str, np.ndarray] = {}
    for file in directory.glob("*.safetensors"):
        for name, tensor in load_torch(file).items():
            tensors[name] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16
    less_one = about.get("checkpoint_format", "gptq") == "gptq"
    found = {}
    for name in tensors:
        if name.endswith(".qweight"):
            layer = name.removesuffix(".qweight")
            kinds = ("qweight", "qzeros", "scales", "g_idx")
            parts = {k: tensors[f"{layer}.{k}"] for k in kinds if f"{layer}.{k}" in tensors}
            found[layer] = dequantized(parts, about["bits"], less_one=less_one, group_size=about["group_size"])
    return found


def dense_logits(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    """The logits of a plain transformers model in float64 with the unpacked weights."""
    config = AutoConfig.from_pretrained(str(directory))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    stored = {n: t for file in directory.glob("*.safetensors") for n, t in load_torch(file).items()}
    state = {n: t.double() for n, t in stored.items() if n.endswith(".weight")}
    state |= {f"{n}.weight": torch.from_numpy(w).double() for n, w in weights_in(directory).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return logits


def make_checkpoint(
    out: Path,
    *,
    bits: int = 4,
    group_size: int = 32,
    layout: str = "gptq",
    act_order: bool = False,
    sym: bool = True,
    bias: bool = False,
    g_idx: bool = True,
    head: bool = False,
    layers: int = 1,
    hidden: int = 64,
    intermediate: int = 96,
    seed: int = 0,
) -> Path:
    """Write a LLaMA with random GPTQ codes in its linear layers, in the layout of AutoGPTQ and gptqmodel.

    Asymmetric zero points take every value, including 0 and the maximum.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, tie_word_embeddings=False, attention_bias=bias,
        mlp_bias=bias, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=STD)
    model.save_pretrained(out)
    tensors = load_file(out / "model.safetensors")
    top = 2**bits - 1
    for name in [n for n in tensors if "_proj.weight" in n or (head and n == "lm_head.weight")]:
        out_features, in_features = tensors.pop(name).shape
        size = group_size if group_size > 0 else in_features
        groups = -(-in_features // size)
        codes = rng.integers(0, top + 1, (in_features, out_features))
        zeros = np.full((groups, out_features), 2 ** (bits - 1))
        if not sym:
            zeros = rng.integers(0, top + 1, zeros.shape)
            zeros[0, 0], zeros[-1, 1] = 0, top
        step = STD * np.sqrt(12) / top  # the standard deviation of a uniform distribution
        scales = (step * rng.uniform(0.5, 1.5, zeros.shape)).astype(np.float16)
        index = (np.arange(in_features) // size).astype(np.int32)
        stored = (zeros - 1) % 2**bits if layout == "gptq" else zeros
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.qweight"] = pack(codes, bits)
        tensors[f"{layer}.qzeros"] = pack(stored.T, bits).T.copy()
        tensors[f"{layer}.scales"] = scales
        if g_idx:
            tensors[f"{layer}.g_idx"] = rng.permutation(index) if act_order else index
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((out / "config.json").read_text())
    about["quantization_config"] = {
        "quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": act_order, "sym": sym,
        "checkpoint_format": layout,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(about))
    return out


@pytest.fixture(scope="session")
def numpy_gptq() -> SimpleNamespace:
    """The format in NumPy, without any code of the plugin."""
    functions = (pack, unpack, weights_in, dense_logits, make_checkpoint)
    return SimpleNamespace(**{f.__name__: f for f in functions})


# ------------------------------------------------------------------------------------- runs and models


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and a separate cache."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name, value in {"SMOLLM3_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    for name in ("SMOLLM3_DISABLE_PLUGINS", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return work


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BuildContext]:
    """Factory of BuildContexts for the CPU, with a new cache unless one is passed."""

    def make(
        dtype: str = "float32",
        purpose: Purpose = Purpose.TRAIN,
        cache: Path | None = None,
        rows: Sequence[Sequence[int]] | None = None,
    ) -> BuildContext:
        plain = plain_context(cache or tmp_path_factory.mktemp("cache"), dtype=dtype, purpose=purpose)
        return plain if rows is None else dataclasses.replace(plain, calibration=lambda: rows)

    return make


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SmolLM3 of two layers with the embedded model's tokenizer, on disk in float32."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZER))
    config = SmolLM3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, no_rope_layers=[1, 0], max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = SmolLM3ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=STD)
    path: Path = tmp_path_factory.mktemp("dense") / "small"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def rows() -> list[list[int]]:
    """Calibration: eight rows of 32 tokens."""
    return torch.randint(3, 2048, (8, 32), generator=torch.Generator().manual_seed(1)).tolist()


REAL = {"4-bit-asymmetric-act-order": GPTQOptions(bits=4, group_size=32, sym=False, desc_act=True)}
"""Checkpoints that gptqmodel quantizes; each needs a process with its imports."""
OTHER_REAL = {
    "4-bit": GPTQOptions(bits=4, group_size=32),
    "4-bit-act-order": GPTQOptions(bits=4, group_size=32, desc_act=True),
    "3-bit-asymmetric": GPTQOptions(bits=3, group_size=32, sym=False),
    "8-bit-row": GPTQOptions(bits=8, group_size=-1),
}
"""More of them, for long tests."""


@pytest.fixture(scope="session")
def real(
    dense: Path, rows: list[list[int]], context: Callable[..., BuildContext], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Checkpoints quantized by gptqmodel from `dense`, through the plugin's `write`."""
    return written(REAL, dense, context(rows=rows), tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def other_real(
    dense: Path, rows: list[list[int]], context: Callable[..., BuildContext], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The checkpoints of OTHER_REAL."""
    return written(OTHER_REAL, dense, context(rows=rows), tmp_path_factory.mktemp("other-real"))


def written(cases: dict[str, GPTQOptions], dense: Path, context: BuildContext, root: Path) -> dict[str, Path]:
    needs_gptqmodel()

    def write(name: str) -> Path:
        (root / name).mkdir()
        GPTQQuantizer(cases[name]).write(directory_source(dense, ref="small"), root / name, context)
        return root / name

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(cases, pool.map(write, cases), strict=True))


OWN = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

jobs, autogptq, out = json.loads(sys.argv[1]), sys.argv[2], {}
ids = torch.arange(3, 19)[None]

def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, device_map="cpu")

for name, directory in jobs.items():
    for layer, module in load(directory).named_modules():
        if hasattr(module, "dequantize_weight"):
            out[f"{name}/{layer}"] = module.dequantize_weight().T.contiguous()  # it is (in, out)

def gradient(model):
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model.train()(inputs_embeds=x, use_cache=False).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return x.grad

first = next(iter(jobs.values()))
out["gradient/right"] = gradient(load(first))
evaluated = load(first).eval()
with torch.no_grad():
    evaluated(input_ids=ids)
out["gradient/after an evaluation"] = gradient(evaluated)

from smollm3_finetune.model import load_model
for name, directory in {**jobs, "autogptq": autogptq}.items():
    model = load_model(directory, quant_options={"kernel": "gptqmodel"}, device="cpu", dtype="float32").model
    kinds = {type(m).__name__ for m in model.modules()}
    assert any(k.startswith("Torch") for k in kinds), kinds
    with torch.no_grad():
        out[f"kernel/{name}"] = model.eval()(input_ids=ids, use_cache=False).logits
save_file(out, sys.argv[3])
"""


@pytest.fixture(scope="session")
def own(real: dict[str, Path], autogptq: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Results of gptqmodel on the checkpoints: weights, gradients before and after an evaluation, logits."""
    return own_results(real, autogptq, tmp_path_factory.mktemp("own") / "own.safetensors")


@pytest.fixture(scope="session")
def other_own(
    other_real: dict[str, Path], autogptq: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """The same of `other_real`."""
    return own_results(other_real, autogptq, tmp_path_factory.mktemp("other-own") / "own.safetensors")


def own_results(real: dict[str, Path], autogptq: Path, file: Path) -> dict[str, torch.Tensor]:
    job = json.dumps({case: str(directory) for case, directory in real.items()})
    done = subprocess.run(
        [sys.executable, "-c", OWN, job, str(autogptq), str(file)], capture_output=True, text=True, check=False,
        env={**os.environ, "TORCHDYNAMO_DISABLE": "1", "GPTQMODEL_CPU_WORKERS": "2"},  # else it compiles for a minute
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return load_torch(file)


def needs_gptqmodel() -> None:
    if importlib.util.find_spec("gptqmodel") is None:
        pytest.skip("gptqmodel is not installed")


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a checkpoint so that a test can change it."""

    def copy(directory: Path, name: str = "copied") -> Path:
        return Path(shutil.copytree(directory, tmp_path / name))

    return copy


@pytest.fixture(scope="session")
def autogptq() -> Path:
    """A checkpoint written by auto-gptq 0.7.1: a random LLaMA of three layers, including zero biases."""
    return HERE / "autogptq-0.7.1-4bit-32g"


# --------------------------------------------------------------------------- a fast fake of gptqmodel

FAKE_TORCH = """
def manual_seed(seed): ...
def device(name): return name
"""
FAKE_GPTQMODEL = '''
"""Stands in for gptqmodel: "quantizes" by copying a finished checkpoint, marked by the calibration rows."""
import json, os, shutil, time
from pathlib import Path
from types import SimpleNamespace

ABOUT = json.loads(Path(__file__).with_name("about.json").read_text())
logged = 0

def note(**event):
    with open(ABOUT["log"], "a") as log:
        log.write(json.dumps(event) + "\\n")
    global logged
    logged += 1
    if logged == ABOUT.get("stop"):
        time.sleep(60)

print("gptqmodel prints a lot")
note(started=os.getpid(), directory=os.getcwd())

class QuantizeConfig:
    def __init__(self, **options):
        note(options={k: str(v) for k, v in options.items()})

class Linear(SimpleNamespace): ...

class GPTQModel:
    @staticmethod
    def load(source, config):
        return GPTQModel()

    def __init__(self):
        text = SimpleNamespace(num_hidden_layers=2)
        layer = SimpleNamespace(weight=SimpleNamespace(shape=ABOUT.get("shape", (64, 96))))
        modules = [("model.layers.0.mlp." + ABOUT.get("layer", "down_proj"), Linear(**vars(layer)))]
        config = SimpleNamespace(get_text_config=lambda: text)
        parameters = [(name, None) for name in ("lm_head.weight", *ABOUT.get("parameters", ()))]
        self.model = SimpleNamespace(
            config=config, named_modules=lambda: modules, named_parameters=lambda: parameters
        )
        self.quantize_config = None
        self.quant_log = [
            {"layer": 0, "module": "mlp.up_proj", "loss": "0.0123"}, *ABOUT.get("quant_log", ())
        ]

    def simple_layer_modules(self, model_config, quantize_config):
        return [["mlp." + ABOUT.get("layer", "down_proj")]]

    def extract_layers_node(self):
        return ["model.layers"]

    def quantize(self, rows, **more):
        self.rows = [row["input_ids"] for row in rows]
        note(rows=self.rows)
        if ABOUT.get("compiles"):  # as ninja does
            import subprocess

            note(compiler=subprocess.Popen(["sleep", "60"]).pid)
        if "exit" in ABOUT:
            os._exit(ABOUT["exit"])
        if "errno" in ABOUT:
            raise OSError(ABOUT["errno"], os.strerror(ABOUT["errno"]))
        if "error" in ABOUT:
            raise ValueError(ABOUT["error"])
        for layer in range(2):
            self.layer_callback.layer_complete(layer_idx=layer, submodule_finalized=True)
            self.wait()

    def wait(self):
        note(step=True)
        time.sleep(ABOUT["pause"])

    def save(self, out):
        out = Path(out)
        for file in sorted(Path(ABOUT["finished"]).iterdir()):
            whole = file.read_bytes()
            if file.suffix == ".safetensors":  # the low byte of a scale
                whole = whole[:-2] + bytes([(whole[-2] + sum(map(sum, self.rows))) % 256]) + whole[-1:]
            with (out / file.name).open("wb") as stream:
                stream.write(whole[: len(whole) // 2])
                stream.flush()
                self.wait()
                stream.write(whole[len(whole) // 2 :])
        note(saved=True)
'''


class Fake(NamedTuple):
    """A fake gptqmodel in the worker process, and the events that it logged."""

    log: Path
    about: Path

    def set(self, **about: Any) -> None:
        self.about.write_text(json.dumps({**json.loads(self.about.read_text()), **about}))

    def events(self, key: str) -> list[Any]:
        if not self.log.exists():
            return []
        events = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [e[key] for e in events if key in e]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, dense: Path) -> Path:
    """A GPTQ checkpoint of the architecture of `dense`, packed in NumPy: what the fake gptqmodel "makes"."""
    made = make_checkpoint(tmp_path_factory.mktemp("finished") / "made", layers=2)
    config = json.loads((made / "config.json").read_text())
    quantization = {**config["quantization_config"], "meta": {"offload_to_disk_path": "/tmp/gone"}}
    about = json.loads((dense / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**about, "quantization_config": quantization}))
    tensors = {n: t for n, t in load_file(made / "model.safetensors").items() if ".layers." in n}
    whole = load_file(dense / "model.safetensors")
    tensors |= {n: t for n, t in whole.items() if not n.endswith("_proj.weight")}
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    (made / "quantize_config.json").write_text(json.dumps(quantization))
    return made


@pytest.fixture
def fake(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """The worker imports a fake gptqmodel (and torch) that take no time; everything else is real."""
    needs_gptqmodel()  # its version is checked
    site = tmp_path / "site"
    (site / "gptqmodel").mkdir(parents=True)
    (site / "torch.py").write_text(FAKE_TORCH)
    (site / "gptqmodel" / "__init__.py").write_text(FAKE_GPTQMODEL)
    made = Fake(tmp_path / "fake.log", site / "gptqmodel" / "about.json")
    made.about.write_text(json.dumps({"log": str(made.log), "finished": str(finished), "pause": 0}))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH")))))
    return made
