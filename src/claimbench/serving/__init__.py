"""Servers from outside: their processes, one streaming client for all of them, loads, and what the times say.

Load generators that exist were looked at before writing one, by their documentation: `vllm bench serve` brings vLLM's
environment of gigabytes to the client's side; guidellm and aiperf (once genai-perf) measure well and export samples,
but are programs of their own, with a schedule, a warm-up and a process outside of the block and its lock, and know no
token ids; llmperf is archived. So the client here is small: one event loop, events parsed by httpx2, raw nanoseconds
kept, and its own cost measured against the null server.
"""
