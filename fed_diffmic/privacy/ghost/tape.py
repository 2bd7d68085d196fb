"""What the trained parameters are used for while a loss is computed, and what comes back to each use.

Torch hands every function that is called to a :class:`Tape` first (``TorchFunctionMode``), wherever it stands: in a
layer, or in a ``forward`` that takes a layer's weight past the layer. Calls that are known
(:mod:`fed_diffmic.privacy.ghost.rules`) run on a detached weight and leave their inputs; when the output's gradient
arrives, they make a *use* of the weight of it (:mod:`fed_diffmic.privacy.ghost.uses`). Calls that are not known run as
they are, and so leave the parameter in the graph of the loss, where :meth:`Tape.missed` finds it: no gradient reaches a
parameter unseen. What is computed of one parameter alone (a softmax of gates) is known whatever it is, and its gradient
is passed on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fed_diffmic.privacy.ghost.layout import Layout
from fed_diffmic.privacy.ghost.uses import Rows, Use

Rule = Callable[..., Any]
Maker = Callable[[Tensor], Use]


class CannotTapeError(RuntimeError):
    """The loss uses its parameters in a way that the tape does not follow."""


class _Source(NamedTuple):
    """A parameter (``value`` is ``parameter``), or what was computed of one alone."""

    name: str
    parameter: Tensor
    value: Tensor
    detached: Tensor


class _Tap(torch.autograd.Function):
    """Nothing forward, in place; backward tells what gradient came."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, tell: Callable[[Tensor], None]) -> Tensor:
        """``output`` itself; ``anchor`` lets it need a gradient where nothing before it does."""
        ctx.tell = tell
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        """The gradient goes on where something before needs it."""
        with torch.no_grad():
            ctx.tell(gradients[0])
        return gradients[0] if ctx.needs_input_grad[0] else None, None, None


class _Leaf(torch.autograd.Function):
    """A constant that needs a gradient, and tells what came."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, tell: Callable[[Tensor], None]) -> Tensor:
        """``value``, not copied."""
        ctx.tell = tell
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        """It ends here."""
        with torch.no_grad():
            ctx.tell(gradients[0])
        return None, None, None


class Tape(TorchFunctionMode):
    """Follows the parameters through the computation of a loss; to be entered for it, and left before going backward.

    Args:
        parameters: trained ones, by name.
        layout: whose the rows of the batch are.
        rules: what is known of functions: called with the tape, the function and its arguments; gives its
            result, or ``NotImplemented`` where it does not know such a call.
        finished: called with a parameter's name and uses when all its uses got their gradients.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        layout: Layout,
        rules: Mapping[Any, Rule],
        finished: Callable[[str, list[Use]], None],
    ) -> None:
        super().__init__()
        self.layout = layout
        self._rules = rules
        self._finished = finished
        self._anchor = torch.zeros((), device=layout.device, requires_grad=True)
        self._parameters = {id(p): name for name, p in parameters.items()}
        self._sources = {id(p): _Source(name, p, p, p.detach()) for name, p in parameters.items()}
        self._calls: Counter[str] = Counter()
        self._uses: dict[str, list[Use]] = {name: [] for name in parameters}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One call of a function of torch."""
        kwargs = kwargs or {}
        tensors = list(_tensors([*args, *kwargs.values()]))
        sources = [source for tensor in tensors if (source := self.source(tensor)) is not None]
        if not sources or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func in self._rules and len(sources) < len(tensors):
            result = self._rules[func](self, func, *args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        alone = len(sources) == len(tensors) and len({source.name for source in sources}) == 1
        if alone and isinstance(result, Tensor) and result.requires_grad and all(result is not t for t in tensors):
            # It keeps its graph: whoever uses it unseen is found out as with the parameter itself.
            self._sources[id(result)] = _Source(sources[0].name, sources[0].parameter, result, result.detach())
        return result

    def source(self, tensor: Tensor | None) -> _Source | None:
        """What a tensor is of, if of a parameter."""
        return self._sources.get(id(tensor))

    @overload
    def plain(self, tensor: Tensor) -> Tensor: ...

    @overload
    def plain(self, tensor: None) -> None: ...

    def plain(self, tensor: Tensor | None) -> Tensor | None:
        """A parameter without its gradient, anything else as it is."""
        source = self.source(tensor)
        return tensor if source is None else source.detached

    def tap(self, output: Tensor, inputs: Sequence[Tensor], uses: Iterable[tuple[Tensor | None, Maker]]) -> Tensor:
        """``output``, whose gradient makes a use of each parameter.

        Args:
            output: just made; it is the tape's to write to.
            inputs: what the uses look at, which must not be written to before.
            uses: what makes a use of the output's gradient, with whose use it is; what is no parameter's is left out.
        """
        tell = self._tell(inputs, uses)
        tapped: Tensor = _Tap.apply(output.clone() if output._is_view() else output, self._anchor, tell)
        return tapped

    def leaf(self, value: Tensor, parameter: Tensor, make: Maker) -> Tensor:
        """``value``, a copy of a parameter or copies of it, whose gradient makes a use of the parameter."""
        made: Tensor = _Leaf.apply(value, self._anchor, self._tell([], [(parameter, make)]))
        return made

    def _tell(self, inputs: Sequence[Tensor], uses: Iterable[tuple[Tensor | None, Maker]]) -> Callable[[Tensor], None]:
        named = [(source, make) for parameter, make in uses if (source := self.source(parameter)) is not None]
        for source, _ in named:
            self._calls[source.name] += 1
        seen = [(value.detach(), value._version) for value in inputs]

        def tell(gradient: Tensor) -> None:
            if any(value._version != version for value, version in seen):
                raise CannotTapeError("what a layer took in was overwritten before its gradient came")
            for source, make in named:
                self._add(source, make(gradient))

        return tell

    def _add(self, source: _Source, use: Use) -> None:
        name = source.name
        if source.value is not source.parameter:
            (values,) = torch.autograd.grad(
                source.value, source.parameter, use.product(self.layout), retain_graph=True, is_grads_batched=True
            )
            use = Rows(values)
        self._uses[name].append(use)
        self._calls[name] -= 1
        if not self._calls[name]:
            self._finished(name, self._uses.pop(name))

    def missed(self, loss: Tensor) -> list[str]:
        """Names of parameters that the loss depends on past the tape."""
        seen, found, nodes = set(), set(), [loss.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) in self._parameters:
                found.add(self._parameters[id(variable)])
            nodes.extend(before for before, _ in node.next_functions)
        return sorted(found)

    def backward(self, loss: Tensor) -> None:
        """All gradients; every parameter has been given to ``finished`` afterwards, without uses where none reached it.

        Raises:
            CannotTapeError: a parameter is used past the tape, or what a layer took in was overwritten.
        """
        missed = self.missed(loss)
        if missed:
            raise CannotTapeError(f"{missed[0]} is used in a way that is not known")
        if loss.requires_grad:
            torch.autograd.backward(loss, inputs=[self._anchor])
        for name, uses in self._uses.items():
            self._finished(name, uses)
        self._uses.clear()
        self._sources.clear()


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())
