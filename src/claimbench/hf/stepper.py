"""A generation, a step at a time. `generate` pushes its tokens; the clock wants to pull them.

The generation runs in a greenlet, and switches back to its caller with each step's new columns, still on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Emit = Callable[["Tensor"], None]
"""Hands over new columns [batch, n] and waits until the next step is asked for."""
Around = Callable[[], AbstractContextManager[object]]


class Stepper:
    """One generation in a greenlet of its own, a step at a time.

    Gradient and inference mode belong to the thread, not to the greenlet, so each pause puts the caller's back.
    """

    def __init__(self, generation: Callable[[Emit], None], around: Iterable[Around]) -> None:
        import greenlet

        self.generation, self.around = generation, around
        self.child = greenlet.greenlet(self._body)
        self.grad_around = True
        """Whether gradients were on around the generation, before it changed that itself."""
        self.grad_enabled = self.inference_mode = False
        """As the generation had them at its last step."""

    def steps(self) -> Generator[Tensor, None, None]:
        import torch

        self.outside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        columns = self.child.switch()
        try:
            while not self.child.dead:
                yield columns
                columns = self.child.switch()
        finally:
            if not self.child.dead:
                self.child.throw()  # GreenletExit: unwinds the generation where it stands

    def _body(self) -> None:
        import torch

        with ExitStack() as stack:
            for context in self.around:
                stack.enter_context(context())
            self.grad_around = torch.is_grad_enabled()
            self.generation(self._pause)

    def _pause(self, columns: Tensor) -> None:
        import torch

        self.grad_enabled, self.inference_mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        grad, inference = self.outside
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            self.child.parent.switch(columns)

    def functions(self) -> list[str]:
        """Names of the functions that the paused generation is in, innermost first."""
        names, frame = [], self.child.gr_frame
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        return names


class StepTap:
    """A stopping criterion that never stops: it hands the columns that are new since the last call to `emit`."""

    def __init__(self, prompt: Tensor, emit: Emit) -> None:
        self.seen = prompt.shape[1]
        self.emit = emit
        self.go_on = prompt.new_zeros(prompt.shape[0]).bool()
        self.weighing = False
        """Whether drafts wait for the model's verdict: some versions ask the criteria about those too."""

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        if not self.weighing:
            columns = input_ids[:, self.seen :]  # [batch, n]
            self.seen = input_ids.shape[1]
            self.emit(columns)
        return self.go_on

    @contextmanager
    def beside_drafts(self, model: PreTrainedModel) -> Iterator[None]:
        """While it lasts, `model` tells this tap when drafts are made and when they are judged."""
        make = type(model)._get_candidate_generator

        def make_and_follow(*arguments: object, **named: object) -> object:
            generator = make(model, *arguments, **named)
            draft, learn = generator.get_candidates, generator.update_candidate_strategy

            def get_candidates(*arguments: object, **named: object) -> object:
                drafted = draft(*arguments, **named)
                self.weighing = True
                return drafted

            def update_candidate_strategy(*arguments: object, **named: object) -> object:
                self.weighing = False
                return learn(*arguments, **named)

            generator.get_candidates = get_candidates
            generator.update_candidate_strategy = update_candidate_strategy
            return generator

        model._get_candidate_generator = make_and_follow
        try:
            yield
        finally:
            model.__dict__.pop("_get_candidate_generator", None)
