"""What a document measured, as it says so itself: what runs here is compared with it, and departures are shown."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictFloat, StrictInt

from claimbench.schema.cell import Dtype
from claimbench.schema.frozen import Frozen


class Setting(Frozen):
    """Absent: the document does not say, or says what the study asks for."""

    hardware: str | None = Field(default=None, description="regular expression that the device's name must match")
    devices: StrictInt | None = Field(default=None, ge=1, description="how many")
    model: str | None = Field(default=None, description="a checkpoint by its name in params.yaml")
    system: str | None = Field(default=None, description="what stood where the study runs another system")
    options: dict[str, StrictInt | StrictFloat | bool | str] = Field(default={}, description="of the backend, by name")
    versions: dict[str, str] = Field(
        default={}, description="of libraries and servers: 1.3.3 is that version alone, >=0.7.3 any from it on"
    )
    dtype: Dtype | None = Field(default=None, description="of weights and activations")
    attention: str | None = Field(default=None, description="eager, sdpa, flash_attention_2, or in words")
    batch: StrictInt | None = Field(default=None, ge=1, description="rows")
    prompt: str | None = Field(default=None, description="its text, or what it was")
    prompt_tokens: StrictInt | None = Field(default=None, ge=1, description="per row")
    new_tokens: StrictInt | None = Field(default=None, ge=1, description="generated tokens per row")
    cache_length: StrictInt | None = Field(
        default=None, ge=1, description="tokens that a static cache was allocated for"
    )
    warmups: StrictInt | None = Field(default=None, ge=0, description="untimed generations")
    warmup_tokens: StrictInt | None = Field(default=None, ge=1, description="of each, prompt included")
    samples: StrictInt | None = Field(default=None, ge=1, description="timed generations in all")
    statistic: Literal["mean", "median", "one"] | None = Field(default=None, description="what was made of the samples")

    def with_nearer(self, *nearer: Setting | None) -> Setting:
        """This one, where an experiment's or a cell's own says nothing else."""
        found = self.model_dump(exclude_unset=True)
        for setting in nearer:
            found |= setting.model_dump(exclude_unset=True) if setting else {}
        return Setting.model_validate(found)
