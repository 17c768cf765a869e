"""Space adapters: planted maps between two encoders' states come back, and only what fits is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vl_core.adapters.space_adapter import FILE_KIND, SpaceAdapter, SpaceFit, fit_space_adapter
from vl_core.states.storage import read_tensors, write_tensors

WIDTH, PROMPTS, TOKENS = 10, 40, 24


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fitted(plant, method: str, width_out: int = WIDTH, noise: float = 0.0, **options) -> SpaceAdapter:
    fit = SpaceFit(WIDTH, width_out, paired=method != "whitening")
    for index in range(PROMPTS):
        x = random(TOKENS, WIDTH, seed=index)
        fit.add(x, plant(x) + noise * random(TOKENS, width_out, seed=1000 + index))
    return fit.solve(method, **options)


def rotation() -> torch.Tensor:
    return torch.linalg.qr(random(WIDTH, WIDTH, seed=77)).Q


@pytest.mark.parametrize(
    ("method", "plant", "width_out"),
    [
        ("per_dimension", lambda x: x * torch.linspace(0.5, 3, WIDTH) + 2, WIDTH),
        ("ridge", lambda x: x @ random(WIDTH, 7, seed=5) - 1, 7),
        ("reduced_rank", lambda x: x @ random(WIDTH, 2, seed=5) @ random(2, 14, seed=6) + 3, 14),
        ("procrustes", lambda x: 2.5 * x @ rotation() + 1, WIDTH),
    ],
)
def test_a_planted_map_comes_back_and_is_reported_on_held_out_prompts(method, plant, width_out):
    adapter = fitted(plant, method, width_out)
    fresh = random(8, WIDTH, seed=999)
    torch.testing.assert_close(adapter.apply(fresh, sinks="include"), plant(fresh), rtol=5e-3, atol=2e-2)
    assert adapter.report.r2 > 0.99
    assert adapter.report.cosine > 0.99
    assert adapter.report.held_out == PROMPTS // 5 * TOKENS


def test_per_dimension_is_numpys_least_squares_line():
    adapter = fitted(lambda x: x * 1.7 - 0.3, "per_dimension", noise=0.5)
    kept = [i for i in range(PROMPTS) if (i + 1) % 5]
    x = np.concatenate([random(TOKENS, WIDTH, seed=i).double().numpy() for i in kept])
    noise = np.concatenate([random(TOKENS, WIDTH, seed=1000 + i).double().numpy() for i in kept])
    lines = [np.polyfit(x[:, d], 1.7 * x[:, d] - 0.3 + 0.5 * noise[:, d], 1) for d in range(WIDTH)]
    fresh = random(6, WIDTH, seed=998)
    expected = np.stack([np.polyval(line, fresh[:, d].double().numpy()) for d, line in enumerate(lines)], 1)
    np.testing.assert_allclose(adapter.apply(fresh, sinks="include").double().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_whitening_brings_the_targets_mean_and_spread_without_pairs():
    adapter = fitted(lambda x: 3 * x.flip(0) + 5, "whitening")
    found = adapter.apply(random(4000, WIDTH, seed=7), sinks="include")
    torch.testing.assert_close(found.mean(0), torch.full((WIDTH,), 5.0), rtol=0, atol=0.4)
    torch.testing.assert_close(found.std(0), torch.full((WIDTH,), 3.0), rtol=0.1, atol=0)


def test_prompts_read_by_two_encoders_give_what_feeding_their_states_gives():
    def source(prompt: str) -> torch.Tensor:
        return random(TOKENS, WIDTH, seed=int(prompt))

    calls = []
    adapter = fit_space_adapter(
        [str(index) for index in range(PROMPTS)], source, lambda prompt: 2 * source(prompt) - 1, "per_dimension",
        progress=lambda: calls.append(0),
    )
    fresh = random(5, WIDTH, seed=900)
    assert len(calls) == PROMPTS
    torch.testing.assert_close(adapter.apply(fresh), fitted(lambda x: 2 * x - 1, "per_dimension").apply(fresh))
    with pytest.raises(ValueError, match="at least one"):
        fit_space_adapter([], source, source)


def test_unrelated_states_score_nothing():
    fit = SpaceFit(WIDTH, WIDTH)
    for index in range(PROMPTS):
        fit.add(random(TOKENS, WIDTH, seed=index), random(TOKENS, WIDTH, seed=500 + index))
    assert fit.solve("ridge").report.r2 < 0.05


def test_a_saved_adapter_is_the_same(tmp_path):
    adapter = fitted(lambda x: 2 * x, "procrustes")
    adapter.save(tmp_path / "space.safetensors")
    fresh = random(5, WIDTH, seed=1)
    assert torch.equal(SpaceAdapter.load(tmp_path / "space.safetensors").apply(fresh), adapter.apply(fresh))


@pytest.mark.parametrize("part", ["method", "report", "prompts"])
def test_a_file_that_lacks_something_is_named(tmp_path, part):
    adapter = fitted(lambda x: 2 * x, "per_dimension")
    adapter.save(tmp_path / "space.safetensors")
    tensors, header = read_tensors(tmp_path / "space.safetensors", FILE_KIND)
    (header if part in header else header["report"]).pop(part)
    write_tensors(tmp_path / "odd.safetensors", FILE_KIND, tensors, header)
    with pytest.raises(ValueError, match=rf"^odd\.safetensors: .*'{part}'"):
        SpaceAdapter.load(tmp_path / "odd.safetensors")


def test_what_does_not_fit_is_refused_in_words():
    fit = SpaceFit(WIDTH, 7)
    with pytest.raises(ValueError, match="Let both encoders read the same prompt"):
        fit.add(random(5, WIDTH, seed=0), random(4, 7, seed=0))
    for index in range(6):
        fit.add(random(5, WIDTH, seed=index), random(5, 7, seed=index))
    with pytest.raises(ValueError, match="equal widths"):
        fit.solve("per_dimension")


@pytest.mark.parametrize("method", ["per_dimension", "procrustes", "whitening", "ridge", "reduced_rank"])
@pytest.mark.parametrize("source", [0.0, 3.0, 1e-30, 1e-42], ids=["zero", "constant", "tiny", "denormal"])
def test_a_source_that_says_nothing_gives_the_targets_mean(method, source):
    """Constant, or so small that its spread is none: the mean is all that is known, and nothing is NaN."""
    fit, targets = SpaceFit(WIDTH, WIDTH), []
    for index in range(PROMPTS):
        x = torch.full((TOKENS, WIDTH), source)
        if source < 1e-3:
            x = x * random(TOKENS, WIDTH, seed=index)
        t = random(TOKENS, WIDTH, seed=1000 + index) + 2
        fit.add(x, t)
        targets += [t] * ((index + 1) % 5 != 0)
    adapter = fit.solve(method)
    mapped = adapter.apply(torch.full((4, WIDTH), source))
    assert mapped.isfinite().all()
    if method in ("per_dimension", "procrustes"):
        torch.testing.assert_close(mapped, torch.cat(targets).mean(0).expand(4, -1), rtol=1e-4, atol=1e-4)


def test_what_is_held_out_is_bounded(monkeypatch):
    from vl_core.adapters import space_adapter

    monkeypatch.setattr(space_adapter, "MOST_HELD_OUT", 3 * TOKENS)
    fit = SpaceFit(WIDTH, WIDTH)
    for index in range(PROMPTS):
        fit.add(random(TOKENS, WIDTH, seed=index), random(TOKENS, WIDTH, seed=index))
    assert sum(len(x) for x, _ in fit._held) == 3 * TOKENS and fit.prompts == PROMPTS - 3


@pytest.mark.parametrize("name", ["center", "offset", "gain"])
def test_a_map_that_is_not_finite_is_refused(tmp_path, name):
    adapter = fitted(lambda x: 2 * x, "per_dimension")
    getattr(adapter, name)[3] = float("nan")
    adapter.save(tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=rf"odd\.safetensors: expected finite values.*'{name}'"):
        SpaceAdapter.load(tmp_path / "odd.safetensors")
