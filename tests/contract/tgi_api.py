"""The shapes of text-generation-inference's API, as the description of its last release (3.3.7) has them.

Written from docs/openapi.json of huggingface/text-generation-inference: the parts that a measurement meets. What 1.3.3,
document A's release, has otherwise stands beside it.
"""

from __future__ import annotations

from typing import Any

COUNT = {"type": "integer", "minimum": 0}
TOKEN: dict[str, Any] = {
    "type": "object",
    "required": ["id", "text", "logprob", "special"],
    "properties": {
        "id": COUNT,
        "text": {"type": "string"},
        "logprob": {"type": ["number", "null"]},
        "special": {"type": "boolean"},
    },
}
STREAM_RESPONSE: dict[str, Any] = {
    "type": "object",
    "required": ["index", "token"],
    "properties": {
        "index": COUNT,
        "token": TOKEN,
        "top_tokens": {"type": "array", "items": TOKEN},
        "generated_text": {"type": ["string", "null"]},
        "details": {
            "type": ["object", "null"],
            "required": ["finish_reason", "generated_tokens", "input_length"],
            "properties": {
                "finish_reason": {"enum": ["length", "eos_token", "stop_sequence"]},
                "generated_tokens": COUNT,
                "input_length": COUNT,
                "seed": {"type": ["integer", "null"]},
            },
        },
    },
}
ERROR_RESPONSE: dict[str, Any] = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
GENERATE_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "additionalProperties": False,
    "properties": {
        "inputs": {"type": "string"},
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "best_of": {"type": ["integer", "null"], "exclusiveMinimum": 0},
                "decoder_input_details": {"type": "boolean"},
                "details": {"type": "boolean"},
                "do_sample": {"type": "boolean"},
                "frequency_penalty": {"type": ["number", "null"], "exclusiveMinimum": -2},
                "max_new_tokens": {"type": ["integer", "null"], "minimum": 0},
                "repetition_penalty": {"type": ["number", "null"], "exclusiveMinimum": 0},
                "return_full_text": {"type": ["boolean", "null"]},
                "seed": {"type": ["integer", "null"], "exclusiveMinimum": 0},
                "stop": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
                "temperature": {"type": ["number", "null"], "exclusiveMinimum": 0},
                "top_k": {"type": ["integer", "null"], "exclusiveMinimum": 0},
                "top_n_tokens": {"type": ["integer", "null"], "exclusiveMinimum": 0},
                "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
                "truncate": {"type": ["integer", "null"], "minimum": 0},
                "typical_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
                "watermark": {"type": "boolean"},
            },
        },
    },
}
INFO: dict[str, Any] = {
    "type": "object",
    "required": [
        "model_id",
        "max_concurrent_requests",
        "max_best_of",
        "max_stop_sequences",
        "max_input_tokens",
        "max_total_tokens",
        "validation_workers",
        "max_client_batch_size",
        "router",
        "version",
    ],
    "properties": {
        "model_id": {"type": "string"},
        "model_sha": {"type": ["string", "null"]},
        "max_input_tokens": COUNT,
        "max_total_tokens": COUNT,
        "router": {"type": "string"},
        "version": {"type": "string"},
    },
}
STATUSES = {"incomplete_generation": 500, "overloaded": 429, "generation": 424, "validation": 422}
"""The status of each `error_type` of an answer that never began."""
FLAGS = frozenset(
    {
        "--model-id",
        "--revision",
        "--num-shard",
        "--sharded",
        "--quantize",
        "--dtype",
        "--kv-cache-dtype",
        "--speculate",
        "--max-input-tokens",
        "--max-total-tokens",
        "--max-batch-prefill-tokens",
        "--max-batch-total-tokens",
        "--cuda-graphs",
        "--cuda-memory-fraction",
        "--disable-custom-kernels",
        "--hostname",
        "--port",
        "--prometheus-port",
        "--master-port",
        "--shard-uds-path",
    }
)
"""Of the launcher: those that set what a measurement is about, and where it listens."""

LATER = frozenset({"--kv-cache-dtype", "--max-input-tokens", "--cuda-graphs", "--prometheus-port"})
"""Flags that releases before 2.0 lack."""
RELEASES: dict[str, frozenset[str]] = {
    "3.3.7": FLAGS,
    "1.4.3": (FLAGS - LATER) | {"--max-input-length", "--enable-cuda-graphs"},
    "1.3.3": (FLAGS - LATER) | {"--max-input-length"},
}


def without_later_fields(value: dict[str, Any]) -> dict[str, Any]:
    """An answer of 1.3.3: fields that came later are left out, and one has its former name."""
    later = {"index", "input_length", "max_client_batch_size", "router"}
    renamed = {"max_input_tokens": "max_input_length"}
    return {
        renamed.get(name, name): without_later_fields(each) if isinstance(each, dict) else each
        for name, each in value.items()
        if name not in later
    }
