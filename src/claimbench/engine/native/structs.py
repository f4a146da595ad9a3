"""The structures of decode.c, field by field."""

from __future__ import annotations

import ctypes


class Matrix(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("format", ctypes.c_int64),
    ]


class Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class Layer(ctypes.Structure):
    _fields_ = [
        ("before_attention", Norm),
        ("qkv", Matrix),
        ("out", Matrix),
        ("before_mlp", Norm),
        ("up", Matrix),
        ("down", Matrix),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("vocabulary", "hidden", "heads", "kv_heads", "head_dim", "intermediate")),
        *((name, ctypes.c_int64) for name in ("layers", "norm", "positions", "mlp", "window", "threads")),
        ("idle_spin_ns", ctypes.c_int64),
        ("rotary", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("norm_epsilon", "attention_scale", "embedding_scale", "rotary_scale")),
        ("inverse_frequencies", ctypes.c_void_p),
        ("slopes", ctypes.c_void_p),
        ("embedding", ctypes.c_void_p),
        ("position_embedding", ctypes.c_void_p),
        ("embedding_bfloat16", ctypes.c_int64),
        ("position_rows", ctypes.c_int64),
        ("embedding_norm", Norm),
        ("final_norm", Norm),
        ("layer", ctypes.POINTER(Layer)),
        ("head", Matrix),
    ]


class Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "new", "length", "capacity", "cache_bfloat16")),
        *((name, ctypes.c_int64) for name in ("layers", "logits_to_keep")),
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "starts")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        ("logits", ctypes.c_void_p),
    ]


class Product(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("matrix", "lines", "columns", "rows")),
        *((name, ctypes.c_void_p) for name in ("x", "y")),
    ]
