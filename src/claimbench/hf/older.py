"""Transformers 4.43.4, which DeepSpeed's kernel injection needs, under the names that today's has."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def speak_as_today() -> None:
    """Give the installed library what it lacks of the names that a session asks for; a newer one stays as it is."""
    from transformers import PretrainedConfig, PreTrainedModel

    if not hasattr(PreTrainedModel, "get_decoder"):
        PreTrainedModel.get_decoder = _decoder
    if not hasattr(PretrainedConfig, "get_text_config"):
        PretrainedConfig.get_text_config = _of_itself


def _of_itself(config: PretrainedConfig, decoder: bool = False) -> PretrainedConfig:
    """The models of that version that are driven here have no other part than their language model."""
    return config


def _decoder(model: PreTrainedModel) -> PreTrainedModel:
    return model.base_model
