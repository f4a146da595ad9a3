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


class HeadNorm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("stride", ctypes.c_int64)]


class Layer(ctypes.Structure):
    _fields_ = [
        ("before_attention", Norm),
        ("qkv", Matrix),
        ("out", Matrix),
        ("before_mlp", Norm),
        ("up", Matrix),
        ("down", Matrix),
        ("after_attention", Norm),
        ("after_mlp", Norm),
        ("query_norm", HeadNorm),
        ("key_norm", HeadNorm),
        ("window", ctypes.c_int64),
        ("turn", ctypes.c_int64),
        ("sinks", ctypes.c_void_p),
        ("router", Matrix),
        ("experts", ctypes.POINTER(Matrix)),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("vocabulary", "hidden", "heads", "kv_heads", "head_dim", "intermediate")),
        *((name, ctypes.c_int64) for name in ("layers", "norm", "positions", "mlp", "threads", "idle_spin_ns")),
        *((name, ctypes.c_int64) for name in ("rotary", "turns", "parallel", "whole_qk_norm")),
        *((name, ctypes.c_int64) for name in ("experts", "active", "renormalised")),
        *((name, ctypes.c_float) for name in ("norm_epsilon", "attention_scale", "embedding_scale")),
        *((name, ctypes.c_float) for name in ("score_cap", "logit_cap", "swish_factor", "swish_most")),
        ("rotary_scale", ctypes.c_void_p),
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
        ("matrices", ctypes.POINTER(Matrix)),
    ]


class Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "new", "length", "capacity", "cache_bfloat16")),
        *((name, ctypes.c_int64) for name in ("layers", "logits_to_keep")),
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "starts")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        ("logits", ctypes.c_void_p),
        ("hidden", ctypes.c_void_p),
    ]


class Product(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("matrix", "halves", "lines", "columns", "rows")),
        *((name, ctypes.c_void_p) for name in ("x", "y")),
    ]
