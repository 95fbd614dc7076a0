"""vLLM's own loading code accepts what lpcd writes, and refuses what `--for vllm` refuses.

vLLM does not install without its kernels, but the Python part that reads a quantized checkpoint runs from the
released source: the configuration classes for gptq and compressed-tensors, the matching of layers to grids by
name, the choice of a kernel, the parameters that each fused layer creates and the loaders that fill them. This
replays them for an NVIDIA GPU on our config.json and tensors, and compares what was loaded with our files, and
what its reference decoding makes of it with the weights that lpcd evaluates. No kernel runs.

    LPCD_VLLM_SDIST=vllm-0.33.0.tar.gz python tests/interop/vllm_checks.py LPCD INTEROP_TOOL

LPCD_VLLM_SDIST is the source archive from PyPI or the folder it unpacks to. Of vLLM only the modules in REAL
run; its other modules, and packages that are missing, are replaced by empty ones. Fails while `--for vllm` lets
through what vLLM does not load.
"""

import importlib.abc
import importlib.machinery
import json
import os
import pathlib
import sys
import tarfile
import tempfile
import types

from interop_support import LPCD, TOOL, accepted, check, need, run, skip, write_text

SDIST = pathlib.Path(os.environ.get("LPCD_VLLM_SDIST", ""))
if not os.environ.get("LPCD_VLLM_SDIST") or not SDIST.exists():
    skip("set LPCD_VLLM_SDIST to the source archive of vLLM 0.33")
torch, _, compressed_tensors, safetensors_torch = need(
    "torch", "transformers", "compressed_tensors", "safetensors.torch"
)
torch.set_num_threads(2)

QUANTIZATION = "vllm.model_executor.layers.quantization"
KERNELS = "vllm.model_executor.kernels.linear"
REAL = {
    "vllm",
    "vllm.env_override",
    "vllm.envs",
    "vllm.logger",
    "vllm.logging_utils",
    "vllm.platforms",
    "vllm.platforms.interface",
    "vllm.scalar_type",
    "vllm.version",
    "vllm._version",
    "vllm.distributed.utils",
    "vllm.model_executor",
    "vllm.model_executor.custom_op",
    "vllm.model_executor.layers",
    "vllm.model_executor.layers.linear",
    "vllm.model_executor.layers.utils",
    "vllm.model_executor.kernels",
    "vllm.model_executor.parameter",
    "vllm.model_executor.utils",
    KERNELS,
    QUANTIZATION,
    f"{QUANTIZATION}.auto_gptq",
    f"{QUANTIZATION}.base_config",
    f"{QUANTIZATION}.compressed_tensors.utils",
    f"{QUANTIZATION}.compressed_tensors.compressed_tensors",
    f"{QUANTIZATION}.compressed_tensors.schemes",
    f"{QUANTIZATION}.compressed_tensors.schemes.compressed_tensors_scheme",
    f"{QUANTIZATION}.compressed_tensors.schemes.compressed_tensors_wNa16",
    f"{QUANTIZATION}.compressed_tensors",
    f"{QUANTIZATION}.utils",
    f"{QUANTIZATION}.utils.config_utils",
    f"{QUANTIZATION}.utils.gptq_utils",
    f"{QUANTIZATION}.utils.humming.priority",
    f"{QUANTIZATION}.utils.layer_utils",
    f"{QUANTIZATION}.utils.machete_utils",
    f"{QUANTIZATION}.utils.marlin_utils",
    f"{QUANTIZATION}.utils.quant_utils",
}
REAL_FOLDERS = (
    "vllm.logging_utils",
    "vllm.triton_utils",
    "vllm.utils",
    f"{KERNELS}.mixed_precision",
    f"{QUANTIZATION}.compressed_tensors.transform",
)
MISSING = ("cbor2", "cloudpickle", "zmq", "zmq.asyncio")  # packages that those modules import


class EmptyType(type):
    """A class whose attributes are again such classes, and which stands in annotations."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return EmptyType(name, (), {})

    def __or__(cls, other):
        return object

    __ror__ = __or__


class EmptyModule(types.ModuleType):
    __path__ = []
    __file__ = __file__

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, EmptyType(name, (), {}))
        return getattr(self, name)


class EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("vllm."):
            wanted = name not in REAL and not name.startswith(REAL_FOLDERS)
        else:
            wanted = name in MISSING
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec):
        module = EmptyModule(spec.name)
        if spec.name.startswith("vllm."):  # modules in it may be real
            module.__path__ = [str(pathlib.Path(SOURCE, *spec.name.split(".")))]
        return module

    def exec_module(self, module):
        pass


def unpacked(folder):
    if SDIST.is_dir():
        return SDIST
    with tarfile.open(SDIST) as archive:
        members = [m for m in archive if m.name.endswith((".py", ".json")) and m.name.count("/vllm/") == 1]
        archive.extractall(folder, members, filter="data")
    return next(pathlib.Path(folder).iterdir())


archive_folder = tempfile.TemporaryDirectory()
SOURCE = unpacked(archive_folder.name)
sys.path.insert(0, str(SOURCE))
sys.meta_path.insert(0, EmptyModules())
import vllm.platforms  # noqa: E402
from vllm.platforms.interface import DeviceCapability, Platform, PlatformEnum  # noqa: E402


class Gpu(Platform):
    _enum = PlatformEnum.CUDA
    device_name = device_type = "cuda"
    capability = DeviceCapability(8, 0)

    @classmethod
    def get_device_capability(cls, device_id=0):
        return cls.capability

    @classmethod
    def is_pin_memory_available(cls):
        return False


vllm.platforms._current_platform = Gpu()
import vllm.config  # noqa: E402
import vllm.distributed.utils  # noqa: E402

vllm.config.get_current_vllm_config_or_none = lambda: None
vllm.distributed.divide = vllm.distributed.utils.divide
vllm.distributed.get_tensor_model_parallel_rank = lambda: 0
vllm.distributed.get_tensor_model_parallel_world_size = lambda: 1
import vllm.model_executor.layers.quantization.utils.humming.priority  # noqa: E402

humming_utils = vllm.model_executor.layers.quantization.utils.humming
humming_utils.prioritize_humming = humming_utils.priority.prioritize_humming
import vllm.model_executor.layers.quantization.auto_gptq as auto_gptq  # noqa: E402
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (  # noqa: E402
    compressed_tensors_wNa16 as wna16,
)
from vllm.model_executor.kernels.linear.mixed_precision import humming  # noqa: E402
from vllm.model_executor.layers.linear import (  # noqa: E402
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (  # noqa: E402
    CompressedTensorsConfig,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import (  # noqa: E402
    unpack_quantized_values_into_int32,
)

humming.has_humming = lambda: True  # vLLM requires it on NVIDIA GPUs
wna16.matmul_batch_invariant = torch.matmul
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


class WrongLoad(Exception):
    pass


def need_that(condition, message):
    if not condition:
        raise WrongLoad(message)


def read_configuration(path, tensors):
    config = json.loads((path / "config.json").read_text())
    stored = config["quantization_config"]
    if stored["quant_method"] == "gptq":
        check(auto_gptq.AutoGPTQConfig.override_quantization_method(stored, None) == "auto_gptq", "not taken as gptq")
        auto_gptq.get_safetensors_params_metadata = lambda *_, **__: {
            name: {"dtype": {torch.int32: "I32", torch.float16: "F16", torch.float32: "F32"}[values.dtype]}
            for name, values in tensors.items()
        }
        quantization = auto_gptq.AutoGPTQConfig.from_config(stored)
    else:
        quantization = CompressedTensorsConfig.from_config(stored)
    quantization.packed_modules_mapping = FUSED
    quantization.maybe_update_config(str(path))
    return config, quantization


def make_layers(config, quantization):
    """The linear layers of vLLM's Llama, which create their parameters, as (prefix, layer, shards)."""
    hidden, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    common = {"bias": False, "params_dtype": torch.float16, "quant_config": quantization}
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}.self_attn.qkv_proj"
        layer = QKVParallelLinear(
            hidden, config["head_dim"], heads, config["num_key_value_heads"], prefix=name, **common
        )
        yield name, layer, dict(zip("qkv", FUSED["qkv_proj"]))
        name = f"model.layers.{i}.self_attn.o_proj"
        yield name, RowParallelLinear(heads * config["head_dim"], hidden, prefix=name, **common), {None: "o_proj"}
        name = f"model.layers.{i}.mlp.gate_up_proj"
        yield name, MergedColumnParallelLinear(hidden, [ffn, ffn], prefix=name, **common), dict(
            enumerate(FUSED["gate_up_proj"])
        )
        name = f"model.layers.{i}.mlp.down_proj"
        yield name, RowParallelLinear(ffn, hidden, prefix=name, **common), {None: "down_proj"}


def load(layer, prefix, shards, tensors):
    """Fills the parameters as load_weights of the model does; every tensor must have its place and fit."""
    parent = prefix.rpartition(".")[0]
    parameters = dict(layer.named_parameters())
    used = set()
    for shard, name in shards.items():
        for key, parameter in parameters.items():
            used.add(f"{parent}.{name}.{key}")
            need_that(f"{parent}.{name}.{key}" in tensors, f"{prefix} wants {name}.{key}")
            arguments = [] if shard is None else [shard]
            parameter.weight_loader(parameter, tensors[f"{parent}.{name}.{key}"], *arguments)
    for key, parameter in parameters.items():
        if key != "weight_shape":
            stored = torch.cat([tensors[f"{parent}.{name}.{key}"] for name in shards.values()], parameter.output_dim)
            need_that(torch.equal(parameter.data, stored), f"{prefix}.{key} was loaded differently")
    return used


def decoded(layer):
    """The weight in f32 by vLLM's unpacking: of the fallback without kernels, and of the kernels' preparation."""
    if hasattr(layer, "scheme"):
        scheme = layer.scheme
        scheme.use_batch_invariant = True
        layer.weight_scale.data = layer.weight_scale.data.float()
        return scheme.apply_weights(layer, torch.eye(layer.input_size), None).T
    kind = layer.quant_method.quant_type
    codes = unpack_quantized_values_into_int32(layer.qweight.data, kind, packed_dim=0)
    scales = layer.scales.data.float()
    return ((codes - kind.bias) * scales.repeat_interleave(codes.shape[0] // scales.shape[0], 0)).T


def replay(path, weights):
    """Names of the kernels that vLLM would use."""
    tensors = safetensors_torch.load_file(path / "model.safetensors")
    config, quantization = read_configuration(path, tensors)
    kernels, used = set(), set()
    for prefix, layer, shards in make_layers(config, quantization):
        method = getattr(layer, "scheme", layer.quant_method)
        kernels.add(type(method.kernel).__name__.removesuffix("LinearKernel"))
        used |= load(layer, prefix, shards, tensors)
        parent = prefix.rpartition(".")[0]
        expected = torch.cat([weights[f"{parent}.{name}.weight"] for name in shards.values()])
        need_that(torch.equal(decoded(layer), expected), f"{prefix} decodes to other weights")
    left = {name for name in tensors if name.startswith("model.layers.") and "norm" not in name} - used
    left = {name for name in left if not name.endswith(".g_idx")}  # vLLM drops them
    need_that(not left, f"without a place: {sorted(left)}")
    return "+".join(sorted(kernels))


def outcome(path, weights):
    try:
        Gpu.capability = DeviceCapability(8, 0)
        kernels = replay(path, weights)
        Gpu.capability = DeviceCapability(9, 0)
        return True, f"{kernels}, {replay(path, weights)}"
    except WrongLoad as error:
        return False, f"WRONG: {error}"
    except Exception as error:  # whatever vLLM raises
        return False, f"{type(error).__name__}: {' '.join(str(error).split())}"


GRIDS = ["g32", "g32,asym", "g-1", "g-1,asym"]
MODELS = {
    "llama": ["llama", "head_dim=32", "hidden=128", "ffn=256"],
    "narrow": ["llama", "head_dim=20", "hidden=160", "ffn=96"],  # 40 rows in k and v
}
# (model, format and options, beginning of the outcome: the kernels of compute capability 8.0, or an error)
CASES = [
    ("llama", "gptq:4,g32", "Marlin"),
    ("llama", "gptq:4,g64", "Marlin"),
    ("llama", "gptq:4,g128", "Marlin"),
    ("llama", "gptq:4,g-1", "Marlin"),
    ("llama", "gptq:4,g128,v2", "Marlin"),
    ("llama", "gptq:8,g32", "Marlin"),
    ("llama", "gptq:8,g-1", "Marlin"),
    ("llama", "gptq:4,g32 --bits-for *.mlp.*=8", "Marlin"),
    ("llama", "gptq:4,g32 --bits-for *q_proj*=8 --bits-for *k_proj*=8 --bits-for *v_proj*=8", "Marlin"),
    ("llama", "gptq:4,g32 --bits-for *v_proj*=8", "AssertionError"),
    ("llama", "gptq:4,g32 --bits-for *down_proj*=3", "ValueError: Unsupported quantization config"),
    ("llama", "gptq:2,g32", "ValueError: Unsupported quantization config"),
    ("llama", "gptq:3,g32", "ValueError: Unsupported quantization config"),
    ("llama", "gptq:4,g32,asym", "ValueError: Unsupported quantization config"),
    ("llama", "gptq:8,g32,asym", "ValueError: Unsupported quantization config"),
    ("llama", "gptq:4,g16", "ValueError: Marlin does not support group_size"),
    ("narrow", "gptq:4,g16", "ValueError: Marlin does not support group_size"),
    ("narrow", "gptq:4,g-1", "Marlin"),
    ("narrow", "gptq:4,g32", "WRONG: model.layers.0.self_attn.o_proj.scales"),  # 80 inputs: a last group of 16
    *(("llama", f"ct:{bits},{grid}", "Humming") for bits in (2, 3, 5, 6, 7) for grid in GRIDS),
    *(("llama", f"ct:4,{grid}", "Marlin") for grid in GRIDS),
    ("llama", "ct:8,g32", "Marlin"),
    ("llama", "ct:8,g-1", "Marlin"),
    ("llama", "ct:8,g32,asym", "Humming"),
    ("llama", "ct:8,g-1,asym", "Humming"),
    ("llama", "ct:4,g64", "Marlin"),
    ("llama", "ct:4,g128,asym", "Marlin"),
    ("llama", "ct:3,g16", "Humming"),
    ("llama", "ct:4,g16", "Exllama"),
    ("llama", "ct:4,g16,asym", "Humming"),
    ("llama", "ct:8,g16", "Exllama"),
    ("llama", "ct:3,g32 --bits-for *down_proj*=4", "Humming+Marlin"),
    ("llama", "ct:3,g32 --bits-for *v_proj*=4", "AssertionError"),
    ("narrow", "ct:3,g-1", "Humming"),
    ("narrow", "ct:4,g-1,asym", "Marlin"),
    ("narrow", "ct:3,g-1,asym", "WRONG: model.layers.0.self_attn.qkv_proj.weight_zero_point"),  # 40 rows: 3.75 words
]

print(f"vllm {vllm.__version__}, compressed-tensors {compressed_tensors.__version__}, torch {torch.__version__}")
print("kernels at compute capability 8.0, 9.0, or what stops vLLM; where `lpcd --for vllm` says otherwise")
let_through = []
with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    write_text(work / "text.txt")
    for name, arguments in MODELS.items():
        run(TOOL, "tiny", work / name, *arguments)
    for i, (name, case, expected) in enumerate(CASES):
        out, dense = work / f"out{i}", work / f"dense{i}"
        format, *options = case.split()
        command = [LPCD, "quantize", work / name, "--out", out, "--format", format, *options, "--calib",
                   work / "text.txt", "--samples", 8, "--seq-len", 64, "--quiet"]  # fmt: skip
        allowed = accepted(*command, "--for", "vllm")
        if not allowed:
            run(*command)
        run(LPCD, "export", out, "--format", "dense:fp32", "--out", dense, "--quiet")
        loads, result = outcome(out, safetensors_torch.load_file(dense / "model.safetensors"))
        note = "" if loads == allowed else " [--for vllm lets it through]" if allowed else " [--for vllm refuses it]"
        print(f"{name} {case}: {result}{note}", flush=True)
        check(result.startswith(expected), f"{case}: expected {expected}")
        if allowed and not loads:
            let_through.append(f"{name} {case}")
check(not let_through, f"--for vllm lets through what vLLM does not load: {'; '.join(let_through)}")
