"""A program that is started like text-generation-launcher and speaks its API; what it says is held to the description.

Set by the environment: FAKE_TGI_FAILS (an error type, `event`, `eos` or `model`), FAKE_TGI_LOG (a file that receives
each request's body and the flags) and FAKE_TGI_RELEASE (an older one, with its flags and answers).
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
from tests.contract import tgi_api

FAILS = os.environ.get("FAKE_TGI_FAILS", "")
COUNTED = {"requests": 0}
RELEASE = os.environ.get("FAKE_TGI_RELEASE", "3.3.7")
KNOWN = tgi_api.RELEASES[RELEASE]


def told(value: dict[str, Any]) -> str:
    """`value`, which follows the last release's description, as this release has it."""
    return json.dumps(value if RELEASE == "3.3.7" else tgi_api.without_later_fields(value))


def flags_of(arguments: list[str]) -> dict[str, str]:
    flags: dict[str, str] = {}
    name = ""
    for word in arguments:
        if word.startswith("--"):
            name = word
            if name == "--help":
                lines = [f"      {flag} <VALUE>\n          What {flag} sets [env: X=]" for flag in sorted(KNOWN)]
                sys.exit(print("Usage: text-generation-launcher [OPTIONS]\n", *lines, sep="\n"))
            if name not in KNOWN:
                sys.exit(f"error: unexpected argument '{name}' found")
            flags[name] = ""
        else:
            flags[name] = word
    return flags


FLAGS = flags_of(sys.argv[1:])


def info() -> dict[str, Any]:
    value = {
        "model_id": "another/model" if FAILS == "model" else FLAGS["--model-id"],
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": 128,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_input_tokens": int(FLAGS.get("--max-input-tokens") or FLAGS["--max-input-length"]),
        "max_total_tokens": int(FLAGS["--max-total-tokens"]),
        "validation_workers": 2,
        "max_client_batch_size": 4,
        "router": "text-generation-router",
        "version": RELEASE,
        "sha": None,
        "docker_label": None,
    }
    jsonschema.validate(value, tgi_api.INFO)
    return value


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, "text/plain", b"")
        elif self.path == "/info":
            self._send(200, "application/json", told(info()).encode())
        else:
            page = f'tgi_request_count {COUNTED["requests"]}\ntgi_batch_inference_duration_count{{method="decode"}} 3\n'
            self._send(200, "text/plain", page.encode())

    def do_POST(self) -> None:
        COUNTED["requests"] += 1
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        log = os.environ.get("FAKE_TGI_LOG")
        if log:
            kept = {"path": self.path, "body": body, "flags": FLAGS, "prefix_caching": os.environ.get("PREFIX_CACHING")}
            Path(log).write_text(json.dumps(kept), encoding="utf-8")
        jsonschema.validate(body, tgi_api.GENERATE_REQUEST)
        if FAILS in tgi_api.STATUSES:
            self._send(tgi_api.STATUSES[FAILS], "application/json", json.dumps(error(FAILS)).encode())
        else:
            self._stream(body)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        asked = body["parameters"]["max_new_tokens"]
        count = asked - 1 if FAILS == "eos" else asked
        for number in range(count):
            if FAILS == "event" and number == count // 2:
                self.wfile.write(f"data:{json.dumps(error('generation'))}\n\n".encode())
                break
            self.wfile.write(f"data:{told(event(body, number, count))}\n\n".encode())
            self.wfile.flush()
        self.close_connection = True


def event(body: dict[str, Any], number: int, count: int) -> dict[str, Any]:
    last = number == count - 1
    details = None
    if last and body["parameters"].get("details"):
        reason = "eos_token" if FAILS == "eos" else "length"
        details = {
            "finish_reason": reason,
            "generated_tokens": count,
            "input_length": len(body["inputs"]),
            "seed": None,
        }
    value = {
        "index": number + 1,
        "token": {"id": number + 5, "text": chr(97 + number), "logprob": -0.5, "special": False},
        "generated_text": "all of it" if last else None,
        "details": details,
    }
    jsonschema.validate(value, tgi_api.STREAM_RESPONSE)
    return value


def error(kind: str) -> dict[str, str]:
    value = {"error": f"asked for {kind}", "error_type": kind}
    jsonschema.validate(value, tgi_api.ERROR_RESPONSE)
    return value


if __name__ == "__main__":
    ThreadingHTTPServer((FLAGS["--hostname"], int(FLAGS["--port"])), Handler).serve_forever()
