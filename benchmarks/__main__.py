"""``python -m benchmarks NAME``: run one benchmark, or write its tables into ``docs/performance.md``."""

from __future__ import annotations

import argparse
import importlib
import sys

NAMES = {
    "cpu": "what an encode costs on a CPU, first time and again",
    "gpu": "the same and its parts on an NVIDIA GPU, at the size of Qwen3-VL-4B",
    "learn": "learning a look: a step and a whole look, at the size of Z-Image or on the miniature",
    "memory": "bytes alive at once while a picture is read for words, counted without a GPU",
    "words": "a description: our step beside transformers' generate, and how often their tokens differ",
    "runs": "the simple workflow from Run to picture, before and after, in ComfyUI with the miniature",
    "evaluate": "a cell of an evaluation beside its painting steps, and the memory of each model's turn",
    "soak": "a server under load for minutes: memory, identical results, Stop and kill -9 in every long job",
    "stages": "each stage against one clone of its input",
    "loading": "memory and bytes read while a model is loaded",
    "native": "ComfyUI's own Qwen3-VL, its path and ours (run with ComfyUI's Python)",
    "turns": "Qwen3-VL, text encoder and Z-Image by turns on a small card, under ComfyUI (run with ComfyUI's Python)",
    "adapter": "fitting a picture adapter at the size of Qwen3-VL-4B",
    "against": "this tree beside another revision: the same calls in turns, least CPU time, ratio per row",
    "tables": "write the tables of docs/performance.md from benchmarks/results",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, summary in NAMES.items():
        module = importlib.import_module(f".{name}", __package__) if name in sys.argv[1:2] else None
        command = commands.add_parser(name, help=summary)
        if module:
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
