"""Defects of streams: what a gateway does to events, and when it passes them on."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from tests.defects import checks
from tests.defects.proxy.server import Answer, Defect, Exchange

DONE = b"data: [DONE]\n\n"


def read_chunk(event: bytes) -> dict[str, Any]:
    """The JSON of an event; empty where it has none."""
    try:
        value = json.loads(event.partition(b"data:")[2])
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def write_chunk(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


class ChunkDefect(Defect):
    """Changes the JSON of each event."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Change, drop or add events."""
        async for event in events:
            chunk = read_chunk(event)
            for one in [event] if not chunk else map(write_chunk, self.change(chunk, exchange)):
                yield one

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        """The chunks that are sent instead of one."""
        raise NotImplementedError


class TextChangeDefect(ChunkDefect):
    """Changes the text of each chunk."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        """Both kinds of chunk."""
        for choice in chunk.get("choices") or []:
            holder, name = (choice["delta"], "content") if "delta" in choice else (choice, "text")
            if holder.get(name):
                holder[name] = self.rewrite(holder[name])
        return [chunk]

    def rewrite(self, text: str) -> str:
        """The text that is passed on."""
        raise NotImplementedError


class DeltasTrimmed(
    TextChangeDefect,
    by={checks.STREAM_EQUAL},
    says=r"streamed: ",
    source="https://github.com/diegosouzapw/OmniRoute/pull/8341",
):
    """White space around each piece of text is lost, so that words run together."""

    def rewrite(self, text: str) -> str:
        return text.strip()


class CharactersReplaced(
    Defect,
    by={checks.CHARACTERS},
    says=r"\ufffd",
    source="https://github.com/cnighswonger/claude-code-cache-fix/issues/365",
):
    """Each block of bytes is decoded on its own, which replaces the characters that it cuts."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Blocks of a single byte, which cut every character of several."""
        async for event in events:
            yield "".join(bytes([byte]).decode(errors="replace") for byte in event).encode()


class ToolIndexLost(
    ChunkDefect, by={checks.STREAM_IS_PLAIN}, says=r"tool", source="https://github.com/BerriAI/litellm/issues/33678"
):
    """Every streamed tool call has the index 0."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        for choice in chunk.get("choices") or []:
            for call in choice.get("delta", {}).get("tool_calls") or []:
                call["index"] = 0
        return [chunk]


class ToolIndexMissing(
    ChunkDefect,
    by={checks.STREAM_IS_PLAIN},
    says=r"index",
    source="https://github.com/openai/openai-python/issues/2806",
):
    """Streamed tool calls have no index."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        for choice in chunk.get("choices") or []:
            for call in choice.get("delta", {}).get("tool_calls") or []:
                call.pop("index", None)
        return [chunk]


class ChoiceIndexLost(
    ChunkDefect,
    by={checks.N_STREAMED},
    says=r"under the indexes \[0\]",
    source="https://github.com/BerriAI/litellm/pull/15962",
):
    """Every streamed choice has the index 0."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        for choice in chunk.get("choices") or []:
            choice["index"] = 0
        return [chunk]


class UsageChunkLost(
    ChunkDefect,
    by={checks.STREAM_USAGE},
    says=r"0 chunks carry it",
    source="https://github.com/BerriAI/litellm/issues/5197",
):
    """A chunk without choices counts as empty, and is dropped."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        return [chunk] if chunk.get("choices") else []


class UsageUnasked(
    ChunkDefect,
    by={checks.STREAM_USAGE},
    says=r"usage was not requested",
    source="https://github.com/BerriAI/litellm/pull/35290",
):
    """Usage is asked of the server for the gateway's own accounts, and passed on to everybody."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Ask for it."""
        body = exchange.request.json
        if exchange.request.generates and body.get("stream"):
            exchange.request.json = body | {"stream_options": {"include_usage": True}}
        return None

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        return [chunk]


class UsageWithAChoice(
    ChunkDefect,
    by={checks.STREAM_USAGE},
    says=r"must have no choices",
    source="https://github.com/BerriAI/litellm/issues/28735",
):
    """The chunk with the usage has an empty choice."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        if chunk.get("usage") and not chunk.get("choices"):
            chunk["choices"] = [{"index": 0, "delta": {}, "finish_reason": None}]
        return [chunk]


class FinishReasonLost(
    ChunkDefect,
    by={checks.SAYS_LENGTH},
    says=r"the stream says",
    source="https://github.com/BerriAI/litellm/issues/10686",
):
    """The finish reason is lost where a chunk has no text besides it, or with logprobs."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        for choice in chunk.get("choices") or []:
            choice["finish_reason"] = None
        return [chunk]


class StreamedLogprobsStripped(
    ChunkDefect,
    by={checks.LOGPROBS_STREAMED},
    says=r"logprobs",
    source="https://github.com/ml-explore/mlx-lm/pull/1630",
):
    """``logprobs`` is taken out of streams only."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        for choice in chunk.get("choices") or []:
            choice.pop("logprobs", None)
        return [chunk]


class StreamedModelRenamed(
    ChunkDefect,
    by={checks.ONE_PIECE},
    says=r"the chunks name",
    source="https://github.com/headroomlabs-ai/headroom/pull/2690",
):
    """Chunks name the model as the server's configuration does, whole answers as the client does."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        return [chunk | {"model": f"openrouter/{chunk.get('model')}"}]


class IdInEveryChunk(
    ChunkDefect, by={checks.ONE_PIECE}, says=r"ids", source="https://github.com/BerriAI/litellm/issues/1571"
):
    """Every chunk gets an id of its own."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        exchange.notes["chunks"] = exchange.notes.get("chunks", 0) + 1
        return [chunk | {"id": f"chatcmpl-{exchange.number}-{exchange.notes['chunks']}"}]


class ChunksSentTwice(
    ChunkDefect, by={checks.STREAM_EQUAL}, says=r"streamed: ", source="https://github.com/openclaw/openclaw/pull/1284"
):
    """Every chunk is sent twice."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        return [chunk, chunk]


class EventsMerged(
    Defect,
    by={checks.FRAMED, checks.STREAM_EQUAL},
    says=r"not JSON|no empty line",
    source="https://github.com/marcospds/ngx-sse-client/pull/40",
):
    """Two events that come together lose the blank line between them."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Merge the second event with the third."""
        place = 0
        async for event in events:
            place += 1
            yield event[:-1] if place == 2 else event


class DoneTwice(
    Defect, by={checks.DONE}, says=r"expected \[DONE\] once", source="https://github.com/ray-project/ray/pull/62246"
):
    """The gateway adds its own ``[DONE]``."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """At the end."""
        async for event in events:
            yield event
        yield DONE


class PingsAsChunks(
    Defect,
    by={checks.ONE_PIECE},
    says=r"ids|delta|choices",
    source="https://github.com/router-for-me/CLIProxyAPI/pull/4691",
):
    """A sign of life is sent as data, where a comment is expected."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """After the first event."""
        first = True
        async for event in events:
            yield event
            if first:
                yield b'data: {"type": "ping"}\n\n'
            first = False


class RefusalsAsEvents(
    Defect,
    by={checks.UNKNOWN_MODEL},
    says=r"answered 200, expected 404",
    source="https://github.com/openclaw/clawrouter/issues/101",
):
    """A streamed request that the server refuses is a stream with status 200 and an error in it."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """The stream begins before the server's status is read."""
        if exchange.request.json.get("stream") and answer.status >= 400:
            answer.status, answer.body = 200, b"data: " + answer.body + b"\n\n"
            answer.headers["content-type"] = "text/event-stream"


class StreamBuffered(
    Defect,
    by={checks.ARRIVES},
    says=r"the stream was buffered",
    source="https://github.com/dstackai/dstack/issues/4269",
):
    """A stream is passed on when it is complete."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Collect it."""
        yield b"".join([event async for event in events])


class StreamCompressed(
    Defect,
    by={checks.ARRIVES},
    says=r"the stream was buffered",
    source="https://github.com/tower-rs/tower-http/issues/420",
):
    """A stream is compressed, and the compressor keeps what it has until its block is full."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """For clients that accept it."""
        exchange.notes["gzip"] = answer.is_stream and "gzip" in exchange.request.headers.get("accept-encoding", "")
        if exchange.notes["gzip"]:
            answer.headers["content-encoding"] = "gzip"

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Without a flush."""
        compressor = zlib.compressobj(wbits=31)
        async for event in events:
            yield compressor.compress(event) if exchange.notes["gzip"] else event
        if exchange.notes["gzip"]:
            yield compressor.flush()


class LongLinesLost(
    Defect,
    by={checks.LARGE_EVENT},
    says=r"large event|KiB",
    source="https://github.com/open-webui/open-webui/pull/24928",
):
    """A line over 16 KiB ends the stream."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """As readers of lines with a limit do."""
        async for event in events:
            if len(event) > 16 * 1024:
                return
            yield event


class FinishReasonOmitted(
    ChunkDefect,
    by={checks.ONE_PIECE},
    says=r"the finish reason must be null, it is 'absent'",
    source="https://github.com/maximhq/bifrost/issues/7397",
):
    """Chunks before the last one have no finish reason, in place of null."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        for choice in chunk.get("choices") or []:
            if choice.get("finish_reason") is None:
                choice.pop("finish_reason", None)
        return [chunk]


class FinishReasonEmpty(
    ChunkDefect,
    by={checks.ONE_PIECE},
    says=r"the finish reason must be null, it is ''",
    source="https://github.com/CangShui/workbuddy-gateway/pull/3",
):
    """Chunks before the last one have an empty finish reason, which clients take for the end."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        for choice in chunk.get("choices") or []:
            choice["finish_reason"] = choice.get("finish_reason") or ""
        return [chunk]


class ToolIdRepeated(
    ChunkDefect,
    by={checks.TOOL_REQUESTED},
    says=r"has an id again",
    source="https://github.com/poolsideai/pool/issues/9",
):
    """Every piece of a streamed tool call has an id, each another one."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        for choice in chunk.get("choices") or []:
            for call in choice.get("delta", {}).get("tool_calls") or []:
                exchange.notes["pieces"] = exchange.notes.get("pieces", 0) + 1
                call["id"] = f"call-{exchange.notes['pieces']}"
        return [chunk]


class UsageOfEachChunkAlone(
    ChunkDefect,
    by={checks.CONTINUOUS},
    says=r"do not grow|the last chunk counts",
    source="https://github.com/vllm-project/vllm/pull/9357",
):
    """Continuous usage counts the tokens of each chunk, and not those so far."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        if chunk.get("usage"):
            chunk["usage"]["completion_tokens"] = min(chunk["usage"]["completion_tokens"], 1)
        return [chunk]


class OffsetsBeginAgain(
    ChunkDefect,
    by={checks.OFFSETS},
    says=r"has the text offset",
    source="https://github.com/vllm-project/vllm/pull/47815",
):
    """The text offsets of each chunk begin at 0."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        for choice in chunk.get("choices") or []:
            if offsets := (choice.get("logprobs") or {}).get("text_offset"):
                choice["logprobs"]["text_offset"] = [offset - offsets[0] for offset in offsets]
        return [chunk]


class StopTextOfBytesLeaks(
    TextChangeDefect,
    by={checks.STOP_BYTES},
    says=r"with stop=",
    source="https://github.com/abetlen/llama-cpp-python/issues/372",
):
    """A stop text beyond ASCII is found too late, and part of it is sent."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Remember the stop text."""
        stop = exchange.request.json.get("stop")
        self._stop = "".join(stop) if isinstance(stop, list) and all(isinstance(one, str) for one in stop) else ""
        return None

    def rewrite(self, text: str) -> str:
        return text if self._stop.isascii() else text + self._stop


class GenerationGoesOn(
    Defect,
    by={checks.FREES_SLOT},
    says=r"after its client left",
    source="https://github.com/maximhq/bifrost/issues/3164",
):
    """A client that disconnects is not reported to the server, which goes on generating."""

    def aborts_upstream(self) -> bool:
        return False

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Read the server's stream to its end, even where no client reads ours."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def read() -> None:
            async for event in events:
                queue.put_nowait(event)
            queue.put_nowait(None)

        reading = asyncio.ensure_future(read())
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            await reading


class StreamCut(
    Defect,
    by={checks.SLOW_STREAM},
    says=r"a long stream failed after",
    source="https://github.com/NVIDIA/nvcf/issues/1060",
    slow=True,
):
    """A route's time-out counts the whole stream."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Drop the connection."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        async for event in events:
            if loop.time() - started_s > self.limit_s:
                exchange.client.reset()
                return
            yield event


class SlowReaderDropped(
    Defect,
    by={checks.SLOW_READER},
    says=r"read slowly failed after",
    source="https://github.com/NousResearch/hermes-agent/pull/58472",
    slow=True,
):
    """A client for which 64 events wait is dropped."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Read as fast as the server sends, and let a bounded queue overflow."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(64)

        async def read() -> None:
            try:
                async for event in events:
                    queue.put_nowait(event)
                await queue.put(None)
            except asyncio.QueueFull:
                exchange.client.reset()

        reading = asyncio.ensure_future(read())
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            reading.cancel()


class CompletionStreamUnended(
    Defect,
    by={checks.DONE},
    says=r"ended without \[DONE\]",
    source="https://github.com/quangdang46/openproxy/issues/242",
):
    """Streams of plain completions are translated on a path of their own, which ends without ``[DONE]``."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Chats keep it."""
        async for event in events:
            if event != DONE or not exchange.request.path.endswith("/v1/completions"):
                yield event


class IdInEveryCompletionChunk(
    ChunkDefect,
    by={checks.ONE_PIECE, checks.CREATED},
    says=r"chunks of one stream carry \d+ ids",
    source="https://github.com/raullenchai/Rapid-MLX/pull/752",
):
    """Every chunk of a plain completion gets an id and a time of its own; those of chats share theirs."""

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        if chunk.get("object") == "text_completion":
            self.count = getattr(self, "count", 0) + 1
            chunk |= {"id": f"cmpl-{self.count}", "created": chunk["created"] + self.count}
        return [chunk]


class CompletionStreamBuffered(
    StreamBuffered,
    by={checks.ARRIVES},
    says=r"the stream was buffered",
    source="https://github.com/dstackai/dstack/issues/4269",
):
    """Streams of plain completions are passed on when they are complete, those of chats as they come."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Collect it."""
        passed_on = super().on_stream(exchange, events) if exchange.request.path == "/v1/completions" else events
        async for piece in passed_on:
            yield piece


class CompletionSaysStop(
    ChunkDefect,
    by={checks.SAYS_LENGTH},
    says=r"cut after 4 tokens, the finish reason is 'stop'",
    source="https://github.com/llm-d/llm-d-inference-sim/issues/29",
):
    """Plain completions end with ``stop``, whatever ended them, whole and streamed."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Whole answers too."""
        body = answer.json
        if exchange.request.path == "/v1/completions" and answer.status == 200 and body.get("choices"):
            answer.json = self.change(body, exchange)[0]

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        for choice in chunk.get("choices") or []:
            if choice.get("finish_reason") and exchange.request.path == "/v1/completions":
                choice["finish_reason"] = "stop"
        return [chunk]


class CutStreamSaysToolCalls(
    ChunkDefect,
    by={checks.TOOL_CUT},
    says=r"cut after 50 tokens ends with 'tool_calls'",
    source="https://github.com/vllm-project/vllm/issues/53269",
):
    """A stream that has sent a good part of a call's arguments ends with ``tool_calls``, a cut one too."""

    LEAST_CHARACTERS = 32

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        for choice in chunk.get("choices") or []:
            for call in choice.get("delta", {}).get("tool_calls") or []:
                sent = len((call.get("function") or {}).get("arguments") or "")
                exchange.notes["sent"] = exchange.notes.get("sent", 0) + sent
            if choice.get("finish_reason") and exchange.notes.get("sent", 0) >= self.LEAST_CHARACTERS:
                choice["finish_reason"] = "tool_calls"
        return [chunk]


class StreamHeldOpen(
    Defect,
    by={checks.DONE},
    says=r"the response stayed open for \d\.\d s after \[DONE\], 3 times running",
    source="https://github.com/modelcontextprotocol/typescript-sdk/issues/321",
):
    """The response does not end with its last event, and a client that reads to the end waits."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """For longer than it took."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        async for event in events:
            yield event
        await asyncio.sleep(1.2 + 2 * (loop.time() - started_s))


class DoneFoundInText(
    Defect,
    by={checks.PROMPT_UNCHANGED},
    says=r"came back unchanged, and not in a stream: it lost",
    source="https://github.com/rahilp/second-brain-cloudflare/issues/353",
):
    """An event that has ``[DONE]`` anywhere in its text counts as the end."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Drop what comes with it and after it."""
        async for event in events:
            if b"[DONE]" in event:
                yield DONE
                return
            yield event


class StreamsWithToolsBuffered(
    StreamBuffered,
    by={checks.ARRIVES},
    says=r"the stream was buffered: .*the request has tools, without which the stream is incremental",
    source="https://github.com/BerriAI/litellm/pull/38722",
):
    """A stream of a request with tools is passed on when it is complete, as it may contain a call."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Collect it."""
        passed_on = super().on_stream(exchange, events) if exchange.request.json.get("tools") else events
        async for piece in passed_on:
            yield piece
