"""A live stack of engine hosts, faked, on which continuations are prefilled where they decode, with leases."""

import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import openai
import pytest
import pytest_asyncio

import hexagent.client
from hexagent.cli.stack import OPENAI, LocalStack, StackOptions
from hexagent.client import FinishReason, Segment
from hexagent.core.errors import Unsupported
from tests.integration.test_faults import until
from tests.integration.test_trtllm_host import ENGINE, FAKES, nothing_held
from tests.models import write_byte_model

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

LONG = 2_000  # words, so that the first prompt is more than a decode instance prefills by itself
CLUSTER = """
name = "local-test"
agents = "role"
engine_profile = "trtllm-leases"
[[model]]
name = "llama-3.1-8b"
directory = "{model}"
[[pool]]
role = "prefill"
gpu = "h100"
model = "llama-3.1-8b"
[[pool]]
role = "decode"
gpu = "h100"
model = "llama-3.1-8b"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    folder = tmp_path_factory.mktemp("local")
    (folder / "cluster.toml").write_text(CLUSTER.format(model=write_byte_model(folder / "model")))
    engines = [
        ENGINE.format(instance_id=name, python=sys.executable, fakes=FAKES, gpu="") for name in ("p-h100-0", "d-h100-0")
    ]
    (folder / "engines.toml").write_text("".join(engines))
    options = StackOptions(str(folder / "cluster.toml"), "conversation-sticky", data_dir=folder / "stack", gateway=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEXAGENT_ENGINES_FILE", str(folder / "engines.toml"))
        async with LocalStack(options, print) as stack:
            yield stack


async def test_a_continuation_is_prefilled_where_its_prefix_is_and_moves_nothing(stack: LocalStack) -> None:
    said = "all that was said before " * 20
    async with hexagent.client.connect(stack.address) as client, client.workflow("chat", max_tokens=2_000) as workflow:
        question = Segment("of this " * LONG + f"tell [[say:{said}]]")
        first = await workflow.call(question)
        assert (first.text, first.finish_reason) == (said, FinishReason.STOP)
        assert (first.prefill_instance, first.decode_instance) == ("p-h100-0", "d-h100-0")
        assert first.kv_bytes > 0
        stream = workflow.stream([question, first, Segment("go on [[say:" + "and more " * 30 + "]]")])
        pieces = [piece async for piece in stream]
        second: Any = await stream.result()
    assert (second.text, "".join(pieces)) == ("and more " * 30, "and more " * 30)  # each token once, the first too
    assert len(pieces) > 1
    assert (second.prefill_instance, second.decode_instance, second.kv_bytes) == ("d-h100-0", "d-h100-0", 0)
    assert second.times.transfer_end_us == 0
    assert second.times.prefill_end_us == second.times.decode_start_us < second.times.end_us
    assert second.usage.cached_tokens >= first.usage.prompt_tokens // 32 * 32 > 0
    await until(partial(nothing_held, stack))


async def test_what_engine_hosts_lack_is_refused_by_name(stack: LocalStack) -> None:
    async with hexagent.client.connect(stack.address) as client, client.workflow("chat", max_tokens=20) as workflow:
        for options, field in (({"n": 2}, "sampling.n"), ({"logprobs": True}, "logprobs")):
            with pytest.raises(Unsupported, match=field) as caught:
                await workflow.call("hi", **options)
            assert caught.value.reason == "UNSUPPORTED_BY_ENGINE"
    url = f"http://{stack.addresses[OPENAI]}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as gateway:
        for asked in ({"n": 2}, {"response_format": {"type": "json_object"}}, {"logprobs": True}):
            messages: Any = [{"role": "user", "content": "hi"}]
            with pytest.raises(openai.BadRequestError) as refused:
                await gateway.chat.completions.create(model="llama-3.1-8b", messages=messages, **asked)
            assert next(iter(asked)) in refused.value.message
