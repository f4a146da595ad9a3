"""Token ids of text, and what servers' counters say about their caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from claimbench.backends import llama_server
from claimbench.errors import Unavailable, WrongOutput
from claimbench.serving import tgi, vllm
from claimbench.serving.tokens import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Bytes, the word `the` behind a space, and an end of sequence."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    space = "\u0120"
    vocabulary = {letter: id for id, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for word in (f"{space}t", f"{space}th", f"{space}the", "<end>"):
        vocabulary[word] = len(vocabulary)
    merges = [(space, "t"), (f"{space}t", "h"), (f"{space}th", "e")]
    rust = Rust(models.BPE(vocab=vocabulary, merges=merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<end>").save_pretrained(folder)  # noqa: S106
    return Tokenizer(folder)


def test_a_text_that_one_token_alone_has_is_that_token(tokenizer: Tokenizer) -> None:
    (letter,) = tokenizer.ids_of("h")
    (word,) = tokenizer.ids_of(" the")
    assert tokenizer.text_of([word, letter]) == " theh"


def test_two_tokens_that_were_drawn_apart_stay_apart(tokenizer: Tokenizer) -> None:
    """Encoding the joined text would give one token for both."""
    apart = [*tokenizer.ids_of(" t"), *tokenizer.ids_of("h"), *tokenizer.ids_of("e")]
    assert len(apart) == 3
    assert tokenizer.ids_of(" the") != apart


def test_an_event_of_several_tokens_is_encoded(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.ids_of("\u00e9")) == 2, "a character of two bytes"


def test_a_prompt_that_its_own_text_does_not_give_back_is_unavailable(tokenizer: Tokenizer) -> None:
    apart = [*tokenizer.ids_of(" t"), *tokenizer.ids_of("h"), *tokenizer.ids_of("e")]
    with pytest.raises(Unavailable, match="no text gives exactly these 3 tokens"):
        tokenizer.text_of(apart)


def test_a_checkpoint_without_a_tokenizer_is_unavailable_to_a_server_that_takes_text(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="has no tokenizer"):
        Tokenizer(tmp_path)


VLLM_PAGE = """
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 120.0
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.79e+09
vllm:generation_tokens_total{engine="0",model_name="m"} 1.5e+02
vllm:prefix_cache_hits_total{engine="0",model_name="m"} HITS
"""


def test_a_prompt_that_the_prefix_cache_answered_is_wrong() -> None:
    unused = vllm.counters(VLLM_PAGE.replace("HITS", "0.0"))
    assert unused == {"prompt_tokens_total": 120, "generation_tokens_total": 150, "prefix_cache_hits_total": 0}
    assert vllm.check_counters(unused) == unused
    with pytest.raises(WrongOutput, match="answered for 16 tokens"):
        vllm.check_counters(vllm.counters(VLLM_PAGE.replace("HITS", "16.0")))


def test_a_prompt_that_llama_cpp_had_cached_is_wrong() -> None:
    last = {"stop": True, "stop_type": "limit", "tokens_evaluated": 9, "tokens_predicted": 4}
    piece = llama_server.Completion().read({**last, "timings": {"cache_n": 0}})
    assert (piece.finish, piece.usage) == ("limit", (9, 4))
    with pytest.raises(WrongOutput, match="answered for 5 tokens"):
        llama_server.Completion().read({**last, "timings": {"cache_n": 5}})


def test_counters_are_summed_over_their_labels() -> None:
    page = 'tgi_request_count{method="a"} 2\ntgi_request_count{method="b"} 3\ntgi_queue_size 7\n'
    assert tgi.counters(page) == {"tgi_request_count": 5}
    assert llama_server.counters("# HELP x\nllamacpp:n_decode_total 7\nllamacpp:requests_processing 1\n") == {
        "n_decode_total": 7
    }
