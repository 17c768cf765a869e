"""What the tests of commands share: one cluster, one worker's process of it, and runs that are killed."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

KILLED = Path(__file__).with_name("killed_run.py")
# Imported once, by the process that all runs to be killed are forked from.
NEEDED = [
    "diffusers.pipelines.z_image.pipeline_z_image", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.qwen3_vl.modeling_qwen3_vl", "vl_core.headless.cli", "vl_core.headless.evaluate.command",
    "vl_core.headless.compare.command", "vl_core.zimage.painting", "miniature.measure.vl_judge",
    "miniature.show.scenes", "miniature.measure.score",
]


@pytest.fixture(scope="session")
def ray_cluster():
    """Ray, on a cluster of two cores that all tests of a session share."""
    ray = pytest.importorskip("ray", reason="the optional extra ray is not installed")
    # Workers are niced by 15 unless told otherwise, and starve beside other work.
    os.environ.update(RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_worker_niceness="0")
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


class Actor:
    """An actor's handle, whose methods are done by a worker that does them for others, too."""

    def __init__(self, worker, made):
        self._worker, self._made = worker, made

    def __getattr__(self, name: str):
        # The promise that the actor is made goes with each call: where that failed, the call fails as Ray's would.
        return SimpleNamespace(remote=lambda *given: self._worker.do.remote(self._made, name, *given))


@pytest.fixture(scope="session")
def shared_worker(ray_cluster):
    """A function: as ``ray.remote``, of actors that live in one process, and the kinds that were asked for.

    A worker of its own imports torch and the models' code anew, which takes longer than what is asked of it.
    """

    class Worker:
        def __init__(self):
            self.actors = []

        def make(self, kind, *given):
            self.actors.append(kind(*given))
            return len(self.actors) - 1

        def do(self, number, method, *given):
            return getattr(self.actors[number], method)(*given)

    remote, workers, kinds = ray_cluster.remote, {}, []

    def of(kind):
        def options(**asked):
            key = str(asked)
            if key not in workers:  # the core is for the tests of workers that are Ray's own
                workers[key] = remote(Worker).options(**{**asked, "num_cpus": 0}).remote()

            def made(*given):
                kinds.append(kind)
                return Actor(workers[key], workers[key].make.remote(kind, *given))

            return SimpleNamespace(remote=made)

        return SimpleNamespace(options=options)

    return of, kinds


@pytest.fixture
def actors_of_one_process(ray_cluster, shared_worker, monkeypatch):
    """``on_ray`` and all else of Ray as they are, but that each actor lives in a process that is there already.

    Gives the kinds of the actors that were made since. Actors that have a process each, of which one is killed, are in
    ``test_compare.py``.
    """
    of, kinds = shared_worker
    kinds.clear()
    kill = ray_cluster.kill
    monkeypatch.setattr(ray_cluster, "remote", of)
    monkeypatch.setattr(ray_cluster, "kill", lambda actor: None if isinstance(actor, Actor) else kill(actor))
    return kinds


@pytest.fixture(scope="session")
def killed_at_every_file():
    """A function: run a command, killed with SIGKILL at the first write of every kind of file, until it ends by itself.

    It takes the command, the folder that it writes and a function that is called after each kill; it returns the kinds
    of files in the order of their first writes, see ``killed_run.py``.
    """
    pytest.importorskip("fcntl", reason="a process is forked for each kill")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(NEEDED)

    def run(command: list[str], folder: Path, after=lambda: None) -> list[str]:
        kinds: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            while True:
                ours, theirs = context.Pipe(duplex=False)
                told = {"command": command, "folder": str(folder), "done": tuple(kinds), "tell": theirs}
                process = context.Process(target=runpy.run_path, args=(str(KILLED), told))
                process.start()
                theirs.close()
                process.join(300)
                assert process.exitcode in (0, -signal.SIGKILL), f"ended with {process.exitcode} after {kinds}"
                if process.exitcode == 0:
                    return kinds
                kinds.append(ours.recv())
                after()

    return run


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """A folder of a CLIP that has learned nothing."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    from vl_core.zimage import tiny

    folder = tmp_path_factory.mktemp("scores") / "clip"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = tiny.build_tokenizer()
    words = CLIPTextConfig(vocab_size=len(tokenizer), eos_token_id=2, **sizes)
    clip = CLIPConfig(
        text_config=words.to_dict(), vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **sizes).to_dict(),
        projection_dim=16,
    )
    CLIPModel(clip).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def few_statistics(tmp_path_factory):
    """Reference statistics of the miniature's text encoder from four prompts: measuring 96 takes seconds."""
    from miniature.train.assemble import MODELS, PIPELINE
    from vl_core.states.statistics import calibrate, calibration_prompts
    from vl_core.zimage.text import open_text_encoder, text_reader

    folder, path = MODELS / PIPELINE, tmp_path_factory.mktemp("statistics") / "few.safetensors"
    parts = open_text_encoder(folder / "text_encoder", folder / "tokenizer", torch.device("cpu"), torch.float32)
    calibrate(text_reader(*parts), calibration_prompts()[:4]).save(path)
    return path


@pytest.fixture(scope="module")
def texts_read_once():
    """The pipeline's states of a prompt, kept for all looks of a file: each learns beside the same 16 other prompts.

    By the weights' place and type: what a test's look learns from is what its own command would have read.
    """
    from vl_core.zimage import look_painter

    read, kept = look_painter.encode_text, {}

    def encode_text(pipeline, prompt, model=""):
        key = (pipeline.text_encoder.name_or_path, pipeline.text_encoder.dtype, prompt, model)
        if key not in kept:
            kept[key] = read(pipeline, prompt, model)
        states, layout = kept[key]
        return states.clone(), layout

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look_painter, "encode_text", encode_text)
        yield
