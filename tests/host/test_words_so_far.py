"""The words so far are shown while they are written: to whoever asked, before the end, not too often."""

from __future__ import annotations

import asyncio
import itertools
import json
import time

import pytest

PATIENCE = 120.0


async def told(server, prompt: dict) -> tuple[list[tuple[float, str, str]], list[str], list[dict]]:
    """What is shown and when, to whoever asked and to somebody else, and what the node says at its end."""
    import aiohttp

    shown, others, reports = [], [], []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws", params={"clientId": "asked"}) as mine,
        session.ws_connect(f"{server.url}/ws", params={"clientId": "another"}) as theirs,
    ):

        async def listen() -> None:
            async for message in theirs:
                if message.type == aiohttp.WSMsgType.TEXT:
                    others.append(json.loads(message.data)["type"])

        listening = asyncio.create_task(listen())
        async with session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": "asked"}) as answer:
            assert answer.status == 200, await answer.text()
        while True:
            message = await asyncio.wait_for(mine.receive(), PATIENCE)
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            found = json.loads(message.data)
            assert found["type"] not in ("execution_error", "execution_interrupted"), found
            if found["type"] == "zimagevl.words":
                shown.append((time.perf_counter(), found["data"]["node"], found["data"]["words"]))
            if found["type"] == "executed":
                reports.append(found["data"])
            if found["type"] == "execution_success":
                listening.cancel()
                return shown, others, reports


@pytest.mark.parametrize("kind", ["native", "transformers"])
@pytest.mark.parametrize(("node", "chosen"), [("Describe", {"max_tokens": 150}), ("Condition", {"mode": "words"})])
def test_words_arrive_before_the_end_and_the_report_has_them_all(
    kind, node, chosen, server, object_info, wiring, slow_writers
):
    prompt, _ = wiring.node_prompt(node, object_info, chosen=chosen)
    prompt["QWEN3VL"] = slow_writers[kind]
    shown, others, reports = asyncio.run(told(server, prompt))
    assert len(shown) >= 2 and {id for _, id, _ in shown} == {"ours"}
    words = [one for *_, one in shown]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(words))
    assert len(words[-1]) > len(words[0]) and not any(one.endswith("\N{REPLACEMENT CHARACTER}") for one in words)
    assert len(shown) <= 2 + (shown[-1][0] - shown[0][0]) / 0.25
    assert "zimagevl.words" not in others
    report = "\n".join(next(one for one in reports if one["node"] == "ours")["output"]["text"])
    assert words[-1][:40].strip() in report
