"""Memory taken while a model is loaded, measured in a process of its own, on the CPU (Linux)."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from .common import Report, add_output_argument
from .models import build_model

MIB = 1 << 20


def add_arguments(parser) -> None:
    add_output_argument(parser)
    parser.add_argument("--size", default="medium", choices=["tiny", "medium"])


def run(arguments) -> None:
    report = Report("loading", torch.device("cpu"), arguments.out, size=arguments.size, file="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), arguments.size)
        for what, dtype, deepest in (
            ("all blocks, bf16", "bfloat16", None), ("to layer -6, bf16", "bfloat16", -6),
            ("all blocks, bf16 -> float32", "float32", None),
        ):
            report.section(what, lambda what=what, dtype=dtype, deepest=deepest: _add(
                report, what, load_in_a_process(Path(folder), dtype, deepest)
            ))
        report.section("arithmetic", lambda: _full_size(report))
    report.write()


def write_folder(folder: Path, size: str) -> None:
    """A random model in bf16 with its tokenizer, as Hugging Face lays it out."""
    model, tokenizer = build_model(size, torch.device("cpu"), torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="50MB")
    tokenizer.save_pretrained(folder)


def load_in_a_process(folder: Path, dtype: str, deepest: int | None) -> dict[str, Any]:
    """Bytes of weights, most memory taken over the process's start, seconds and blocks of one load.

    The process is forked from one that has imported all that a load needs, and has loaded nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.models.auto.modeling_auto"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_load, args=(str(folder), dtype, deepest, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError("the loading ended without figures: see above") from None
    finally:
        process.join()


def _load(folder: str, dtype: str, deepest: int | None, told: Any) -> None:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from vl_core import Qwen3VLEncoder

    # Only what is resident counts, so every weight is touched; what is imported late is in before it is measured.
    with torch.device("meta"):
        AutoModel.from_config(AutoConfig.from_pretrained(folder))
    AutoTokenizer.from_pretrained(folder)
    torch.zeros(1).to(getattr(torch, dtype)).sum()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before, start = _resident("VmRSS"), time.perf_counter()
    encoder = Qwen3VLEncoder.from_pretrained(folder, dtype=getattr(torch, dtype), deepest_layer=deepest)
    weights = encoder.model.state_dict().values()
    sum(float(weight.sum()) for weight in weights)
    told.send({
        "seconds": time.perf_counter() - start, "peak": _resident("VmHWM") - before,
        "weights": sum(weight.nbytes for weight in weights), "blocks": encoder.loaded_layers,
    })


def _resident(name: str) -> int:
    """Bytes, now (VmRSS) or at the peak (VmHWM). ``ru_maxrss`` would count what the parent process held as well."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def _add(report: Report, what: str, figures: dict) -> None:
    report.add(
        what, weights_MiB=figures["weights"] / MIB, peak_MiB=figures["peak"] / MIB,
        **{"peak over weights": figures["peak"] / figures["weights"]}, blocks=figures["blocks"],
        seconds=figures["seconds"],
    )


def _full_size(report: Report) -> None:
    """Bytes of Qwen3-VL-4B's own config, in bf16."""
    from transformers import AutoModel

    from .models import build_config, build_tokenizer

    with torch.device("meta"):
        model = AutoModel.from_config(build_config("full", build_tokenizer()))
    sizes = {name: 2 * weight.numel() for name, weight in model.named_parameters()}
    dropped = sum(
        size for name, size in sizes.items()
        if name.startswith("language_model.layers.") and int(name.split(".")[2]) >= 31
    )
    report.add("Qwen3-VL-4B, all blocks, bf16", weights_MiB=sum(sizes.values()) / MIB, blocks=36)
    report.add("Qwen3-VL-4B, to layer -6, bf16", weights_MiB=(sum(sizes.values()) - dropped) / MIB, blocks=31)
